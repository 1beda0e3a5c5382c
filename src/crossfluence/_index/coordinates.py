"""Gradients of samples and of questions in the eigenbases of a fit, block by block, and which coordinates are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from .._kronecker.factors import Eigenblock
from .._kronecker.gradients import AbstractGradients, ByBlock, DenseGradients
from .._kronecker.inverse import EKFACInverse
from .._types import Params


@dataclass(frozen=True, eq=False)
class BlockCoordinates:
    r"""One block of a fit, as an index sees it.

    With eigenvalues λ and inverse eigenvalues W, a sample's gradient g and a question's q in the eigenbasis, the score
    is $-\frac1n\sum_j q_j W_j g_j$. Stored is $c_j = g_j w_j$; a question asks with $t_j = q_j W_j / w_j$.

    Attributes:
        block: Eigenvectors and eigenvalues.
        inverse_eigenvalues: W, shape `(g, r, c)`.
        kept: Places in the flat block that are stored, in order.
        equalised: Whether $w_j = 1/\sqrt{\lambda_j}$, which gives stored numbers one size; else $\sqrt{W_j}$.
    """

    block: Eigenblock
    inverse_eigenvalues: Shaped[Tensor, "g r c"]
    kept: Int[Tensor, " k"]
    equalised: bool

    @property
    def of_all(self) -> bool:
        """True if every coordinate is stored."""
        return len(self.kept) == self.inverse_eigenvalues.numel()

    @cached_property
    def sample_factors(self) -> Shaped[Tensor, " k"]:
        """Factors w of what is kept."""
        if not self.equalised:
            return self._chosen(self.inverse_eigenvalues.sqrt())
        return self._chosen(self.block.values.rsqrt().nan_to_num(posinf=0.0))

    @cached_property
    def question_factors(self) -> Shaped[Tensor, " k"]:
        """Factors W / w of what is kept."""
        other = self.block.values.sqrt() if self.equalised else self.inverse_eigenvalues.rsqrt().nan_to_num(posinf=0.0)
        return self._chosen(self.inverse_eigenvalues * other)

    @cached_property
    def energy(self) -> Shaped[Tensor, " k"]:
        """W / w²: how much of a score is in a squared stored number."""
        return self.question_factors / self.sample_factors.clamp_min(torch.finfo(self.sample_factors.dtype).tiny)

    @cached_property
    def spread(self) -> Shaped[Tensor, "g r c"]:
        """W²λ: the expected square of a question's product with a sample, per squared component of the question."""
        return self.inverse_eigenvalues.square() * self.block.values

    def _chosen(self, values: Tensor) -> Tensor:
        return values.flatten() if self.of_all else values.flatten()[self.kept]

    def of_samples(self, gradients: AbstractGradients) -> tuple[Shaped[Tensor, "b k"], Shaped[Tensor, " b"]]:
        """Stored numbers of some samples' gradients, and the sum over the whole block of W g²."""
        stored, norms = [], []
        for piece in self._along(gradients):
            flat = piece.flatten(1)
            norms.append(flat.square() @ self.inverse_eigenvalues.flatten())
            stored.append(self._few(flat) * self.sample_factors)
        return torch.cat(stored), torch.cat(norms)

    def of_questions(
        self, gradients: AbstractGradients, newton: Shaped[Tensor, "g r c"]
    ) -> tuple[Shaped[Tensor, "m k"], Shaped[Tensor, "5 m"]]:
        """Factors of the stored numbers for each question; and sums over the whole block.

        Args:
            gradients: Of the questions.
            newton: W times the gradient of the risk.

        Returns:
            Both. The sums are, for each question: drift; the expected square of a score, of all and of what is stored;
            the squared length of the solution, and its product with the question.
        """
        asked, sums = [], []
        for piece in self._along(gradients):
            flat = piece.flatten(1)
            squares = flat.square()
            kept = self._few(squares) @ self._chosen(self.spread)
            whole = self.inverse_eigenvalues.flatten()
            sums.append(torch.stack([
                -(flat @ newton.flatten()), squares @ self.spread.flatten(), kept, squares @ whole.square(),
                squares @ whole,
            ]))  # fmt: skip
            asked.append(self._few(flat) * self.question_factors)
        return torch.cat(asked), torch.cat(sums, 1)

    def flat(self, gradients: AbstractGradients) -> Shaped[Tensor, "b k"]:
        """All components along the eigenvectors."""
        return torch.cat([piece.flatten(1) for piece in self._along(gradients)])

    def _few(self, flat: Tensor) -> Tensor:
        return flat if self.of_all else flat[:, self.kept]

    def _along(self, gradients: AbstractGradients) -> Iterator[Shaped[Tensor, "b g r c"]]:
        """Components along the eigenvectors, written out some samples at a time."""
        for piece in gradients.rotated(self.block.left, self.block.right).pieces():
            yield piece.movedim(1, 0)


@dataclass(frozen=True, eq=False)
class Coordinates:
    """All blocks of a fit.

    Attributes:
        inverse: The fit.
        blocks: Of its blocks those of which something is stored, and the others.
    """

    inverse: EKFACInverse
    blocks: tuple[BlockCoordinates, ...]

    @classmethod
    def of(cls, inverse: EKFACInverse, kept: Sequence[Tensor], *, equalised: bool) -> Coordinates:
        """The blocks of a fit, of which some places are kept."""
        parts = zip(inverse.blocks, inverse.responses, kept, strict=True)
        return cls(inverse, tuple(BlockCoordinates(*part, equalised) for part in parts))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of numbers stored of each block."""
        return tuple(len(block.kept) for block in self.blocks)

    def of_samples(self, found: ByBlock, b: int) -> tuple[list[Tensor], Shaped[Tensor, " b"]]:
        """Stored numbers of b samples by block; and each one's score for its own loss, times -n."""
        stored, own = [], torch.zeros(())
        for block in self.blocks:
            gradients = found.get(block.block.slot)
            rows, norms = _nothing(block, b) if gradients is None else block.of_samples(gradients)
            stored.append(rows)
            own = own + norms
        return stored, own

    def of_questions(self, found: ByBlock, newton: Sequence[Tensor], m: int) -> tuple[list[Tensor], Tensor]:
        """Factors for m questions, by block; and the sums of `BlockCoordinates.of_questions`, over all blocks."""
        asked, sums = [], torch.zeros(())
        for block, step in zip(self.blocks, newton, strict=True):
            gradients = found.get(block.block.slot)
            if gradients is None:
                asked.append(_nothing(block, m)[0])
                continue
            rows, part = block.of_questions(gradients, step)
            asked.append(rows)
            sums = sums + part
        return asked, sums if sums.ndim else self.blocks[0].inverse_eigenvalues.new_zeros(5, m)

    def dense(self, params: Params) -> ByBlock:
        """Gradients by block from named tensors with samples or questions in front."""
        slots = [block.block.slot for block in self.blocks]
        return {slot: DenseGradients(slot.gather(params).movedim(0, 1)) for slot in slots}

    def newton(self, gradient: Params) -> list[Tensor]:
        """The inverse times a gradient, in the eigenbases."""
        return [
            block.block.along(block.block.slot.gather(gradient).unsqueeze(0))[0] * block.inverse_eigenvalues
            for block in self.blocks
        ]


def strongest(inverse: EKFACInverse, tolerance: float, *, equalised: bool) -> list[Int[Tensor, " k"]]:
    r"""Coordinates to keep: the expected square of one in a score is $(\lambda_j W_j)^2$.

    Args:
        inverse: The fit.
        tolerance: Share of the scores, in root mean square, that those left out may hold.
        equalised: Whether coordinates without any curvature have to be left out.

    Returns:
        For each block the places in it, flat and in order.
    """
    parts = zip(inverse.blocks, inverse.responses, strict=True)
    squares = [(block.values.double() * response.double()).square().flatten().cpu() for block, response in parts]
    if not tolerance:
        return [(own > 0).nonzero()[:, 0] if equalised else torch.arange(len(own)) for own in squares]
    ordered = torch.cat(squares).sort().values
    below = ordered.cumsum(0)
    dropped = int((below <= tolerance**2 * below[-1]).sum())
    least = ordered[min(dropped, len(ordered) - 1)]
    return [((own >= least) & (own > 0)).nonzero()[:, 0] for own in squares]


def _nothing(block: BlockCoordinates, b: int) -> tuple[Tensor, Tensor]:
    like = block.inverse_eigenvalues
    return like.new_zeros(b, len(block.kept)), like.new_zeros(b)
