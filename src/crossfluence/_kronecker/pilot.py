"""A fit of some random samples in place of all of them, and how far it can be relied on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._data.batches import probe
from .._data.samples import cut
from .._results.ids import numbered
from .._risk.risk import Risk
from .._types import Batch
from ..errors import UnsupportedError
from .block_inverses import BlockInverse
from .factors import Eigenblock, KroneckerFit, Moments
from .gradients import ByBlock
from .layers import Layers

FIRST = 100  # samples that "auto" begins with
ENOUGH = 0.99  # estimated correlation of a half's scores with those of the exact fit at which "auto" ends
FRESH, SHARE = 40, 4  # samples for eigenvalues: at least so many, and one for so many that made the bases
SAMPLES = 32  # of which pairs are compared

Inverses = Callable[[Sequence[Eigenblock]], list[BlockInverse]]


@dataclass(frozen=True, eq=False)
class PilotFit:
    """Eigenblocks from a pilot.

    Attributes:
        blocks: Fitted.
        note: How many samples, how far two halves agree, and what the fit read.
    """

    blocks: list[Eigenblock]
    note: str


def pilot_fit(fit: KroneckerFit, size: int | str, inverses: Inverses) -> PilotFit | None:
    """Bases from some random samples, and eigenvalues from fresh ones, which did not make the bases.

    Eigenvalues measured on the samples that made the bases are too large at the top. They are drawn halfway towards the
    product of their row and column sums, which averages over many of them.

    Args:
        fit: Of all samples; its layers are used.
        size: How many samples make the bases, or "auto": doubled until the fits of two halves agree.
        inverses: Damps and inverts blocks.

    Returns:
        Blocks; `None` if all samples would be needed.

    Raises:
        UnsupportedError: If batches cannot be taken apart.
    """
    risk, counted = fit.risk, int(fit.risk.weights.count_nonzero())
    order = _order(risk)
    first = FIRST if size == "auto" else int(size)
    halves: list[Moments] = []
    read, made, start = 0, first, 0
    while True:
        fresh = max(FRESH, made // SHARE)
        if made + fresh > counted // 2 if size == "auto" else made + fresh > counted:
            return None
        # the fresh ones come first, so that those that made the bases can be added to
        parts = [_fit_of(fit, order[counted - stop : counted - begin]) for begin, stop in _halves(start, made)]
        found = [part.moments() for part in parts]
        read += made - start
        halves = [_mean(old, new, start / made) for old, new in zip(halves, found, strict=True)] if halves else found
        fresh_fit = _fit_of(fit, order[:fresh])
        agreement = None
        if size == "auto":
            ends = [_damped_fit(fit, fresh_fit, half) for half in halves]
            read += 2 * fresh
            agreement = _agreement(fit, order[:SAMPLES], [inverses(blocks) for blocks in ends])
        if agreement is None or agreement >= ENOUGH:
            blocks = _damped_fit(fit, fresh_fit, _mean(halves[0], halves[1], 0.5))
            read += fresh
            return PilotFit(blocks, _note(made, fresh, read, agreement, risk))
        start, made = made, 2 * made


def _halves(start: int, stop: int) -> list[tuple[int, int]]:
    middle = (start + stop) // 2
    return [(start, middle), (middle, stop)]


def _damped_fit(fit: KroneckerFit, fresh: KroneckerFit, moments: Moments) -> list[Eigenblock]:
    """Eigenvalues of fresh samples in the bases of others."""
    return [replace(block, values=_smoothed(block.values)) for block in fresh.along(fit.bases(moments))]


def _smoothed(values: Shaped[Tensor, "g r c"]) -> Shaped[Tensor, "g r c"]:
    """Halfway towards the product of row and column sums over the total."""
    total = values.sum((1, 2), keepdim=True)
    product = (
        values.sum(2, keepdim=True) * values.sum(1, keepdim=True) / total.clamp_min(torch.finfo(values.dtype).tiny)
    )
    return (values + product) / 2


def _mean(one: Moments, other: Moments, share: float) -> Moments:
    """Of two parts of the data, the first of which has a share of the samples."""
    mixed = dict(one)
    for slot, parts in other.items():
        before = one.get(slot) or tuple(torch.zeros_like(part) for part in parts)
        mixed[slot] = tuple(share * a + (1 - share) * b for a, b in zip(before, parts, strict=True))
    return mixed


def _agreement(fit: KroneckerFit, places: Tensor, ends: Sequence[Sequence[BlockInverse]]) -> float:
    """The root of the correlation of two fits' scores over pairs of different samples: a half's with the exact fit."""
    part = part_of(fit.risk, places)
    assert isinstance(fit.layers, Layers)
    gradients = [fit.layers.gradients(part.kind.losses, batch) for _, batch, _ in part.passes()]
    tables = torch.stack([_scores(gradients, inverses).double() for inverses in ends])
    off = ~torch.eye(tables.shape[1], dtype=torch.bool, device=tables.device)
    found = torch.corrcoef(torch.stack([table[off] for table in tables]))[0, 1]
    return float(found.clamp_min(0).sqrt().nan_to_num(1.0))


def _scores(gradients: Sequence[ByBlock], inverses: Sequence[BlockInverse]) -> Shaped[Tensor, "k k"]:
    by_slot, rows = {part.block.slot: part for part in inverses}, []
    for one in gradients:
        row = []
        for other in gradients:
            both = [slot for slot in one if slot in other and slot in by_slot]
            row.append(sum(by_slot[slot].preconditioned(other[slot]).scores_with(one[slot]) for slot in both))
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def _note(made: int, fresh: int, read: int, agreement: float | None, risk: Risk) -> str:
    estimated = f" The scores of a fit of half of them are estimated to correlate by {agreement or 0:.3f} with the"
    estimated = "" if agreement is None else f"{estimated} exact fit's."
    return (
        f"Fitted to a pilot: eigenvectors of {made} random samples, eigenvalues of {fresh} others, {read} samples read "
        f"where a fit of all {risk.n} reads {2 * risk.n}.{estimated} EKFAC(pilot=None) fits all."
    )


def _order(risk: Risk) -> Tensor:
    """Samples in random order, those without weight last."""
    shuffled = torch.randperm(risk.n, generator=torch.Generator().manual_seed(0))
    return shuffled[(risk.weights.cpu()[shuffled] == 0).long().argsort(stable=True)]


def _fit_of(fit: KroneckerFit, places: Tensor) -> KroneckerFit:
    return replace(fit, risk=part_of(fit.risk, places))


def part_of(risk: Risk, places: Tensor) -> Risk:
    """The same trained model with some of its samples.

    Args:
        risk: The trained model.
        places: Which samples.

    Returns:
        A risk of them, in batches of at most the size of the whole's.

    Raises:
        UnsupportedError: If a batch cannot be taken apart.
    """
    wanted = places.sort().values
    ends = torch.tensor(risk.reading.sizes).cumsum(0)
    batch_of, pieces = torch.searchsorted(ends, wanted, right=True), []
    for index, batch, weights in risk.passes(set(batch_of.tolist())):
        rows = (wanted[batch_of == index] - (ends[index] - len(weights))).tolist()
        pieces.append((_rows(batch, len(weights), rows), len(rows)))
    data = list(_merged(pieces, min(max(risk.reading.sizes), -(-len(wanted) // risk.ranks.count))))
    part = risk._changed(data=[batch for batch, _ in data])
    part._read(probe(part.data, n=[count for _, count in data]))
    ids = tuple(risk.labels[place] for place in wanted.tolist())
    part._set(weights=risk.weights[wanted.to(risk.weights.device)], ids=ids, rows=numbered(ids))
    return part


def _rows(batch: Batch, b: int, rows: list[int]) -> Batch:
    found = cut(batch, b, lambda part: part[rows] if isinstance(part, Tensor) else [part[row] for row in rows])
    if found is None:
        raise UnsupportedError(
            f"A pilot takes single samples out of batches, and a batch of type {type(batch).__name__} cannot be taken "
            f"apart. Give batches of tensors, tuples, lists or dicts, or type EKFAC(pilot=None)."
        )
    return found


def _merged(pieces: Sequence[tuple[Batch, int]], size: int) -> Iterator[tuple[Batch, int]]:
    """Neighbours together, where their tensors have the same shapes."""
    waiting: tuple[Batch, int] | None = None
    for piece in pieces:
        both = None if waiting is None or waiting[1] + piece[1] > size else _joined(waiting, piece)
        if waiting is not None and both is None:
            yield waiting
        waiting = both or piece
    if waiting is not None:
        yield waiting


def _joined(one: tuple[Batch, int], other: tuple[Batch, int]) -> tuple[Batch, int] | None:
    (first, form), (second, same) = tree_flatten(one[0]), tree_flatten(other[0])
    fitting = form == same and all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim and b.ndim
        and (len(a), len(b)) == (one[1], other[1]) and a.shape[1:] == b.shape[1:]
        for a, b in zip(first, second, strict=False)
    )  # fmt: skip
    if not fitting:
        return None
    return tree_unflatten([torch.cat(pair) for pair in zip(first, second, strict=True)], form), one[1] + other[1]
