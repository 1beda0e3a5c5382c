"""Where a risk's outputs are: said by its loss, or found."""

from __future__ import annotations

from itertools import islice

from .._data.samples import first_samples
from .._losses import OnOutputs, PerSample
from .._risk.risk import Risk
from ..errors import UnsupportedError
from .split import NoSplitError, check_split, split_at_outputs


def on_outputs(risk: Risk, who: str, instead: str) -> OnOutputs:
    """The loss of a risk, split at the model's outputs.

    Args:
        risk: Its loss says where the outputs are, or calls its model once.
        who: Needs it.
        instead: What else to type.

    Returns:
        The loss itself, or one with the same values.

    Raises:
        UnsupportedError: If there is no split, with the reason and how to write one.
    """
    found = split_of(risk)
    if isinstance(found, OnOutputs):
        return found
    raise UnsupportedError(
        f"{who} needs to know where the outputs are; this risk has a {type(risk.kind).__name__}: {found}. Write the "
        f"loss as OnOutputs(outputs, criterion), with outputs = lambda model, batch: ... of shape (b, ...) and "
        f"criterion = lambda outputs, batch: ... of shape (b,), or {instead}."
    )


def split_of(risk: Risk) -> OnOutputs | str:
    """The loss split at the outputs, or the reason why it cannot be, as a clause; worked out once.

    Args:
        risk: Any.

    Returns:
        One of the two.
    """
    kind = risk.kind
    if isinstance(kind, OnOutputs):
        return kind
    if not isinstance(kind, PerSample):
        return "it has no loss for each sample alone"
    if "split" not in risk.remembered:
        try:
            risk.remembered["split"] = _found(risk, kind)
        except NoSplitError as error:
            risk.remembered["split"] = str(error)
    return risk.remembered["split"]


def _found(risk: Risk, kind: PerSample) -> OnOutputs:
    (_, batch, weights), *others = islice(risk.passes(), 2)
    few = first_samples(batch, len(weights))
    split = split_at_outputs(kind.losses, risk.model, risk.theta, few[0] if few else batch, risk.precision)
    for _, other, _ in others or [(0, batch, weights)]:
        check_split(split, kind.losses, risk.model, other, risk.precision)
    return split
