"""Kronecker factors, their eigenbases, and mean squared gradients along them: the curvature that EK-FAC inverts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._checkpoint import NOWHERE, Checkpoint
from .._errors import NonFiniteError
from .._risk import Risk
from .blocks import AbstractGradients, Slot
from .fisher import AbstractFisher
from .kronecker import Layers, layers_of

Moments: TypeAlias = dict[Slot, tuple[Tensor | None, ...]]
Bases: TypeAlias = tuple[tuple[Slot, Tensor | None, Tensor | None], ...]
Keep: TypeAlias = Callable[[Callable[[], "Sums"]], None]
LONGEST_SIDE = 8_192  # of a block, beyond which it keeps its own coordinates: its factor would not fit


@dataclass(frozen=True, eq=False)
class Eigenblock:
    r"""One block of a curvature, $(U_L \otimes U_R)\operatorname{diag}(\text{values})(U_L \otimes U_R)^\top$.

    A block with one row is exact, because its right factor is all of it; one without bases is a diagonal.

    Attributes:
        slot: Where it lies.
        left: Eigenvectors of the output gradients' factor in columns, `(g, r, r)`; `None` for the rows as they are.
        right: The same of the inputs' factor, `(g, c, c)`.
        values: Mean squared gradients along the eigenvectors, `(g, r, c)`, in units of the mean loss; without l2.
    """

    slot: Slot
    left: Tensor | None
    right: Tensor | None
    values: Shaped[Tensor, "g r c"]

    def filtered(self, block: Shaped[Tensor, "m g r c"], response: Shaped[Tensor, "g r c"]) -> Tensor:
        """A block with its components along the eigenvectors multiplied by `response`."""
        return self.back(self.along(block) * response)

    def along(self, block: Shaped[Tensor, "m g r c"]) -> Shaped[Tensor, "m g r c"]:
        """Components along the eigenvectors."""
        block = block if self.left is None else self.left.mT @ block
        return block if self.right is None else block @ self.right

    def back(self, components: Shaped[Tensor, "m g r c"]) -> Shaped[Tensor, "m g r c"]:
        """The inverse of `along`."""
        block = components if self.left is None else self.left @ components
        return block if self.right is None else block @ self.right.mT


@dataclass(frozen=True, eq=False)
class Sums:
    """A pass over the data that is under way.

    Attributes:
        done: Batches that are in it.
        draws: State of the generator of draws after them.
        totals: By block, divided by n, in float64.
    """

    done: int = 0
    draws: Tensor | None = None
    totals: tuple[tuple[Slot, tuple[Tensor | None, ...]], ...] = ()


def eigenblocks(risk: Risk, curvature: AbstractFisher, kept: Checkpoint = NOWHERE) -> tuple[Layers, list[Eigenblock]]:
    """Fits every block in two passes over the data: factors first, then the eigenvalues.

    Args:
        risk: The trained model.
        curvature: Whose blocks.
        kept: Is offered the sums after each batch.

    Returns:
        The layers, and one block for each of their slots, in the precision of the model.

    Raises:
        NonFiniteError: If a gradient is not finite, with its batch and parameters.

    References:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015;
        George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018.
    """
    layers = layers_seen(risk, curvature)
    bases, so_far = kept.state or ((), Sums())
    if not bases:
        moments = factors(risk, curvature, layers, so_far, lambda sums: kept.offer(lambda: ((), sums())))
        bases, so_far = eigenbases(moments, risk), Sums()
    return layers, blocks_along(
        risk, curvature, layers, bases, so_far, lambda sums: kept.offer(lambda: (bases, sums()))
    )


def layers_seen(risk: Risk, curvature: AbstractFisher) -> Layers:
    """The model's layers, as the largest batch shows them."""
    _, batch, roots = next(curvature.roots(risk, largest_batch(risk)))
    return layers_of(risk.model, risk.theta, roots[0], batch)


def factors(
    risk: Risk, curvature: AbstractFisher, layers: Layers, so_far: Sums = Sums(), keep: Keep | None = None
) -> Moments:
    """The first pass: mean second moments of both sides of each block, in float64."""
    return _mean(risk, curvature, layers, lambda _, gradients: gradients.moments(LONGEST_SIDE), so_far, keep)


def eigenbases(moments: Moments, risk: Risk) -> Bases:
    """Eigenvectors of both sides of each block, in the precision of the model; `None` for sides without factors."""
    like = risk.weights
    return tuple(
        (slot, _eigenvectors(left, like), _eigenvectors(right, like)) for slot, (left, right) in moments.items()
    )


def blocks_along(
    risk: Risk,
    curvature: AbstractFisher,
    layers: Layers,
    bases: Bases,
    so_far: Sums = Sums(),
    keep: Keep | None = None,
) -> list[Eigenblock]:
    """The second pass: mean squared gradients along the eigenvectors; zero for blocks that no batch reaches."""
    sides = {slot: (left, right) for slot, left, right in bases}

    def squares(slot: Slot, gradients: AbstractGradients) -> list[Tensor]:
        return [gradients.rotated(*sides[slot]).squares()]

    found = _mean(risk, curvature, layers, squares, so_far, keep)
    reached = {slot: value.to(risk.weights) for slot, (value,) in found.items() if value is not None}
    values = {slot: risk.weights.new_zeros(slot.form) for slot in layers.slots} | reached
    return [Eigenblock(slot, *sides.get(slot, (None, None)), values[slot]) for slot in layers.slots]


def largest_batch(risk: Risk) -> int:
    """The number of the batch to look at first: one sample alone does not tell samples from positions."""
    sizes = risk.reading.sizes
    return max(range(len(sizes)), key=sizes.__getitem__)


def _mean(
    risk: Risk,
    curvature: AbstractFisher,
    layers: Layers,
    statistic: Callable[[Slot, AbstractGradients], Sequence[Tensor | None]],
    so_far: Sums,
    keep: Keep | None,
) -> Moments:
    """Statistics of the samples' gradients, added up in double precision and divided by n."""
    totals, draws = dict(so_far.totals), curvature.draws()
    if so_far.draws is not None:
        draws.set_state(so_far.draws.cpu())
    batches = tqdm(
        curvature.roots(risk, so_far.done, draws), desc="EK-FAC", unit="batch", initial=so_far.done,
        total=len(risk.reading.sizes), disable=None, leave=False,
    )  # fmt: skip
    for index, batch, roots in batches:
        for root in roots:
            for slot, gradients in layers.gradients(root, batch).items():
                found = statistic(slot, gradients)
                if not all(part is None or part.sum().isfinite() for part in found):
                    raise NonFiniteError(risk.blame(index, batch, f"The gradient by {' and '.join(slot.names)}"))
                if slot not in totals:
                    totals[slot] = tuple(
                        None if part is None else torch.zeros_like(part, dtype=torch.float64) for part in found
                    )
                for total, part in zip(totals[slot], found, strict=True):
                    if total is not None and part is not None:
                        total.add_(part, alpha=1 / risk.n)
        if keep is not None:
            keep(lambda done=index + 1: Sums(done, draws.get_state(), tuple(totals.items())))
    return totals


def _eigenvectors(factor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if factor is None else torch.linalg.eigh(factor).eigenvectors.to(like)
