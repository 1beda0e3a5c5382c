"""Kronecker factors, their eigenbases, and mean squared gradients along them: the curvature that EK-FAC inverts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._errors import NonFiniteError
from .._risk import Risk
from .blocks import AbstractGradients, Slot
from .fisher import AbstractFisher
from .kronecker import Layers, layers_of

Bases: TypeAlias = dict[Slot, tuple[Tensor | None, Tensor | None]]
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


def eigenblocks(risk: Risk, curvature: AbstractFisher) -> tuple[Layers, list[Eigenblock]]:
    """Fits every block in two passes over the data: factors first, then the eigenvalues.

    Args:
        risk: The trained model.
        curvature: Whose blocks.

    Returns:
        The layers, and one block for each of their slots, in the precision of the model.

    Raises:
        NonFiniteError: If a gradient is not finite, with its batch and parameters.

    References:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015;
        George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018.
    """
    layers = layers_seen(risk, curvature)
    bases = eigenbases(factors(risk, curvature, layers), risk)
    return layers, blocks_along(risk, curvature, layers, bases)


def layers_seen(risk: Risk, curvature: AbstractFisher) -> Layers:
    """The model's layers, as the largest batch shows them."""
    _, batch, roots = next(islice(curvature.roots(risk), largest_batch(risk), None))
    return layers_of(risk.model, risk.theta, roots[0], batch)


def factors(risk: Risk, curvature: AbstractFisher, layers: Layers) -> dict[Slot, list[Tensor | None]]:
    """The first pass: mean second moments of both sides of each block, in float64."""
    return _mean(risk, curvature, layers, lambda _, gradients: gradients.moments(LONGEST_SIDE))


def eigenbases(moments: dict[Slot, list[Tensor | None]], risk: Risk) -> Bases:
    """Eigenvectors of both sides of each block, in the precision of the model; `None` for sides without factors."""
    found = {slot: [_eigenvectors(side, risk.weights) for side in sides] for slot, sides in moments.items()}
    return {slot: (left, right) for slot, (left, right) in found.items()}


def blocks_along(risk: Risk, curvature: AbstractFisher, layers: Layers, bases: Bases) -> list[Eigenblock]:
    """The second pass: mean squared gradients along the eigenvectors; zero for blocks that no batch reaches."""
    found = _mean(risk, curvature, layers, lambda slot, gradients: [gradients.rotated(*bases[slot]).squares()])
    reached = {slot: value.to(risk.weights) for slot, (value,) in found.items() if value is not None}
    values = {slot: risk.weights.new_zeros(slot.form) for slot in layers.slots} | reached
    return [Eigenblock(slot, *bases.get(slot, (None, None)), values[slot]) for slot in layers.slots]


def largest_batch(risk: Risk) -> int:
    """The number of the batch to look at first: one sample alone does not tell samples from positions."""
    sizes = risk.reading.sizes
    return max(range(len(sizes)), key=sizes.__getitem__)


def _mean(
    risk: Risk,
    curvature: AbstractFisher,
    layers: Layers,
    statistic: Callable[[Slot, AbstractGradients], Sequence[Tensor | None]],
) -> dict[Slot, list[Tensor | None]]:
    """Statistics of the samples' gradients, added up in double precision and divided by n."""
    totals: dict[Slot, list[Tensor | None]] = {}
    for index, batch, roots in tqdm(curvature.roots(risk), desc="EK-FAC", unit="batch", disable=None, leave=False):
        for root in roots:
            for slot, gradients in layers.gradients(root, batch).items():
                found = statistic(slot, gradients)
                if not all(part is None or part.sum().isfinite() for part in found):
                    raise NonFiniteError(risk.blame(index, batch, f"The gradient by {' and '.join(slot.names)}"))
                if slot not in totals:
                    totals[slot] = [
                        None if part is None else torch.zeros_like(part, dtype=torch.float64) for part in found
                    ]
                for total, part in zip(totals[slot], found, strict=True):
                    if total is not None and part is not None:
                        total.add_(part, alpha=1 / risk.n)
    return totals


def _eigenvectors(factor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if factor is None else torch.linalg.eigh(factor).eigenvectors.to(like)
