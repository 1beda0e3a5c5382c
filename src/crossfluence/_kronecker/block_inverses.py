"""Blocks of an inverse between gradients of samples and of questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from .factors import Eigenblock
from .gradients import AbstractGradients, OuterProducts


@dataclass(frozen=True, eq=False)
class BlockInverse:
    r"""A block of the inverse, between gradients of samples and of questions.

    Both gradients are often single outer products, and then $\langle l r^\top, W \circ l' r'^\top\rangle$ in the
    eigenbasis is a short sum over s of $(l^\top (\alpha_s \circ l'))\,(r^\top (\beta_s \circ r'))$ once
    $W \approx \sum_s \alpha_s \beta_s^\top$: s (r + c) products instead of r c.

    Attributes:
        block: The eigenbasis.
        inverse_eigenvalues: $W$, shape `(g, r, c)`.
        tolerance: Share of the scores, in root mean square, that the short sum may miss.
    """

    block: Eigenblock
    inverse_eigenvalues: Shaped[Tensor, "g r c"]
    tolerance: float

    @cached_property
    def terms(self) -> tuple[Shaped[Tensor, "r s"], Shaped[Tensor, "c s"]] | None:
        r"""$\alpha$ and $\beta$; `None` where the block's own size is cheaper.

        $W$ is weighted with the gradients' energy along each eigenvector, cut off after as many singular values as
        the tolerance needs, and the weights are taken out again.
        """
        (groups, rows, columns), energy = self.block.slot.form, self.block.values[0].double()
        if groups > 1 or not energy.any():
            return None
        left, right = energy.sum(1) / energy.sum(), energy.sum(0)  # of samples times questions: no square roots
        weighted = left.unsqueeze(1) * self.inverse_eigenvalues[0] * right
        wide = columns > rows
        small = weighted @ weighted.T if wide else weighted.T @ weighted
        squares, vectors = (part.flip(-1) for part in torch.linalg.eigh(small))
        left_over = squares.clamp_min(0).flip(0).cumsum(0).flip(0)
        s = int((left_over > self.tolerance**2 * left_over[0]).sum())
        if s * (rows + columns) >= rows * columns:
            return None
        basis = vectors[:, :s]
        alpha, beta = (basis, weighted.T @ basis) if wide else (weighted @ basis, basis)
        return (alpha * _reciprocal(left)).to(self.inverse_eigenvalues), (beta * _reciprocal(right)).to(
            self.inverse_eigenvalues
        )

    def applied(self, directions: Shaped[Tensor, "m g r c"]) -> Shaped[Tensor, "m g r c"]:
        """Directions, multiplied by this block of the inverse."""
        return self.block.apply_eigenfunction(directions, self.inverse_eigenvalues)

    def preconditioned(self, gradients: AbstractGradients) -> PreconditionedQueries:
        """The queries' gradients, multiplied by this block of the inverse."""
        if not isinstance(gradients, OuterProducts) or not gradients.single or self.terms is None:
            return PreconditionedQueries(self, gradients)
        (alpha, beta), (left, right) = self.terms, (self.block.left, self.block.right)
        seen = gradients.rotated(left, right)
        return PreconditionedQueries(
            self, gradients, (_scaled(seen.left, alpha, left), _scaled(seen.right, beta, right))
        )


@dataclass(frozen=True, eq=False)
class SameBlock:
    """No curvature: questions stay as they are, or are multiplied parameter by parameter.

    Attributes:
        scale: Shape `(g, r, c)`.
        tolerance: None.
    """

    tolerance: ClassVar[float] = 0.0
    scale: Shaped[Tensor, "g r c"] | None = None

    def preconditioned(self, gradients: AbstractGradients) -> PreconditionedQueries:
        """Themselves, or multiplied."""
        short = None
        if (
            self.scale is None
            and isinstance(gradients, OuterProducts)
            and gradients.single
            and len(gradients.left) == 1
        ):
            short = gradients.left[:, :, 0], gradients.right[:, :, 0]
        return PreconditionedQueries(self, gradients, short)

    def applied(self, directions: Shaped[Tensor, "m g r c"]) -> Shaped[Tensor, "m g r c"]:
        """Directions, or multiplied."""
        return directions if self.scale is None else directions * self.scale.to(directions)


@dataclass(frozen=True, eq=False)
class PreconditionedQueries:
    """Gradients of m questions by one block, multiplied by its inverse.

    Attributes:
        inverse: Of the block.
        gradients: Of the questions.
        short: The short sum's vectors, `(s, m, r)` and `(s, m, c)`, if it is the cheaper way.
        held: Written out and rounded, by type, once that was asked for.
    """

    inverse: BlockInverse | SameBlock
    gradients: AbstractGradients
    short: tuple[Shaped[Tensor, "s m r"], Shaped[Tensor, "s m c"]] | None = field(default=None, repr=False)
    held: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def directions(self) -> Shaped[Tensor, "m g r c"]:
        """Written out."""
        return self.inverse.applied(self.gradients.dense().movedim(0, 1))

    def flat(self, rounded: torch.dtype | None) -> Shaped[Tensor, "m d"]:
        """Written out in rows; rounded ones take the place of the others in memory."""
        if rounded is None:
            return self.directions.flatten(1)
        if rounded not in self.held:
            self.held[rounded] = self.directions.flatten(1).to(rounded)
            vars(self).pop("directions", None)
        return self.held[rounded]

    def scores_with(self, samples: AbstractGradients) -> Shaped[Tensor, "b m"]:
        """Inner products with samples' gradients."""
        if self.short is None or not isinstance(samples, OuterProducts) or not samples.single:
            return samples.along(self.directions)
        left, right = (
            side[0, :, 0] @ vectors.flatten(0, 1).T
            for side, vectors in zip((samples.left, samples.right), self.short, strict=True)
        )
        return (left * right).unflatten(1, self.short[0].shape[:2]).sum(1)


def _reciprocal(energy: Shaped[Tensor, " d"]) -> Shaped[Tensor, "d 1"]:
    """One over it; zero where no sample has more than rounding errors."""
    known = energy > torch.finfo(energy.dtype).eps * energy.max()
    return torch.where(known, 1 / energy, 0).unsqueeze(1)


def _scaled(
    side: Shaped[Tensor, "1 m 1 d"], terms: Shaped[Tensor, "d s"], basis: Tensor | None
) -> Shaped[Tensor, "s m d"]:
    """Every question's vector times every term, in the layer's own coordinates."""
    scaled = side[0, :, 0] * terms.T.unsqueeze(1)
    return scaled if basis is None else scaled @ basis[0].T
