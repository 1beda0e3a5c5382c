"""Sentences of a report: which parameters have which kind of block, and which gradients cost more than others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .._risk.risk import Risk
from .coupled import CoupledRows
from .factors import Eigenblock
from .layers import Layers
from .recognised import Alone

LEFT_OUT = (
    "without any curvature, never reached by the loss, left out",
    "without any curvature, left out",
)
NAMED = 8  # parameters that are left out, in a report


def shares(risk: Risk, layers: Layers | CoupledRows, blocks: Iterable[Eigenblock]) -> str:
    """A sentence about which parameters have which kind of block.

    Args:
        risk: The trained model.
        layers: Of the model.
        blocks: Fitted.

    Returns:
        Shares of the parameters, and one or more of their names.
    """
    inside, sizes = {layer_block.slot for layer_block in layers.layer_blocks}, Counter[str]()
    names: dict[str, list[str]] = {}
    for block in blocks:
        kind = _kind(block, block.slot in inside)
        sizes[kind] += block.slot.size
        names.setdefault(kind, []).extend(block.slot.names)
    parts = [f"{size / risk.p:.2%} {kind} ({_some(names[kind], kind)})" for kind, size in sizes.most_common()]
    return f"Parameters by kind of block: {'; '.join(parts)}.{_outside(risk, layers)}"


def _outside(risk: Risk, layers: Layers | CoupledRows) -> str:
    """Sentences about parameters whose gradients cost more than others, and how much."""
    if isinstance(layers, CoupledRows):
        return " Each sample's row is taken through its whole batch: as many backward passes as there are samples."
    alone = {name for each in layers.layer_blocks if isinstance(each.kind, Alone) for name in each.slot.names}
    told = (
        (alone, "belong to modules that are run once more on each sample alone"),
        (layers.outside.keys(), f"lie outside of layers, and take {layers.separately.cost}"),
    )
    parts = [
        f"{_share(risk, names):.2%} of the parameters ({_some(list(names), LEFT_OUT[0])}) {what}"
        for names, what in told
        if names
    ]
    more = " crossfluence.extend.layer_gradients registers a layer of one's own."
    return "".join(f" {part}." for part in parts) + (more if parts else "")


def _share(risk: Risk, names: Iterable[str]) -> float:
    return sum(risk.theta[name].numel() for name in names) / risk.p


def _some(names: list[str], kind: str) -> str:
    """Names of all that is left out, as far as there is room; of other blocks, one."""
    shown = NAMED if kind in LEFT_OUT else 1
    return ", ".join([*names[:shown], *(["..."] if len(names) > shown else [])])


def _kind(block: Eigenblock, inside: bool) -> str:
    if not block.values.any():
        return LEFT_OUT[0 if block.right is None else 1]
    if block.right is None:
        return "diagonal"
    if block.slot.form[1] == 1:
        return "exact"
    return "Kronecker factors of their layer" if inside else "Kronecker factors of their own gradients"
