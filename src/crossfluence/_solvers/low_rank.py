"""The few directions along which the curvature is largest, inverted; the others taken together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .._curvature.base import AbstractCurvature, Relative, damping_products, refuse_damping
from .._curvature.operator import Operator, operator
from .._curvature.scale import scale_products, scale_readings
from .._risk.base import AbstractRisk
from .._storage.archive import stored
from .._storage.partial import NO_CHECKPOINT, Checkpoint
from ..errors import SingularCurvatureError
from .base import AbstractInverse, AbstractSolver, Solution
from .cost import Cost
from .exact import refuse_asymmetric
from .krylov import arnoldi

STEPS_PER_DIRECTION = 2  # twice the rank: of what a Krylov subspace finds, about the larger half has converged
NOTED = 0.01  # share of a question outside the kept directions from which on the report says so


@dataclass(frozen=True)
class LowRank(AbstractSolver):
    r"""The curvature along its `rank` strongest directions, by Lanczos; by Arnoldi where it is not symmetric.

    Takes 2 `rank` products once, and then no pass over the data for any question. Of the other directions it is
    known that their eigenvalues lie between l2 and the smallest one that was kept, $\lambda_r$. They are divided by the
    upper end, $\lambda_r + \text{damping}$: the lower end blows up all that was not resolved, and leaving these
    directions out loses most of the ranking (measured in docs/measured/damping.md). With a rank of p it is exact.

    Attributes:
        rank: Directions to keep; p numbers are stored for each.
        damping: Added to the eigenvalues; a number, or `Relative`.
        seed: Of the random start.
        curvature: Default: the Hessian, or the field's Jacobian for a `FieldLoss`.

    Example:
        >>> LowRank(50, damping=1e-3).rank
        50

    References:
        Schioppa, Zablotskaia, Vilar and Sokolov, "Scaling up influence functions", AAAI 2022, who leave out the rest.
    """

    saveable: ClassVar[bool] = True
    rank: int
    damping: float | Relative = 0.0
    seed: int = 0
    curvature: AbstractCurvature | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank)
        refuse_damping(self.damping)

    def cost(self, risk: AbstractRisk) -> Cost:
        """Two products for each direction, which wait for each other."""
        size, rank = risk.fine.weights.element_size(), min(self.rank, risk.p)
        return Cost(
            sequential_products=min(STEPS_PER_DIRECTION * self.rank, risk.p)
            + (scale_readings(risk) if rank == risk.p else 0),
            batched_products=damping_products(self.damping, risk) + (scale_products(risk) if rank == risk.p else 0),
            data_passes=scale_readings(risk) if rank == risk.p else 0,
            inverse_bytes=size * rank * (risk.p + rank),
            temporary_bytes=size * STEPS_PER_DIRECTION * rank * risk.p,
        )

    def _invert(self, risk: AbstractRisk) -> LowRankInverse:
        """Finds the directions.

        Args:
            risk: The trained model.

        Returns:
            An inverse that solves in 2 `rank` p operations for each question.
        """
        return self._resumed(risk, NO_CHECKPOINT)

    def _resumed(self, risk: AbstractRisk, kept: Checkpoint) -> LowRankInverse:
        matrix = operator(self.curvature, self.damping, risk)
        fine, steps = matrix.risk, STEPS_PER_DIRECTION * self.rank
        if self.rank >= risk.p:
            return self._whole(matrix.scaled(matrix.units), risk, kept)
        basis, core = arnoldi(matrix.undamped, fine.layout.flatten(fine.theta), steps, self.seed, kept)
        core = (core + core.T) / 2 if risk.symmetric else core
        found = _ends(core, risk.symmetric)
        strongest = _strongest(core, self.rank, risk.symmetric)  # (k, r)
        core = strongest.T @ core @ strongest
        sizes = torch.linalg.eigvals(core).abs()
        inner = inverse_within(core, matrix.damping, fine.precision)
        directions, outside = strongest.T.to(basis) @ basis, float(sizes.min()) + matrix.damping
        return LowRankInverse(
            repr(self), risk.signature, directions, inner.to(basis), outside, matrix.damping, found[0],
            (_told(risk, found, len(sizes), float(sizes.min())),),
        )  # fmt: skip

    def _whole(self, matrix: Operator, risk: AbstractRisk, kept: Checkpoint) -> LowRankInverse:
        """All directions: exact, so they are taken where no parameter's unit matters."""
        like = matrix.scale
        basis, core = arnoldi(matrix.product, like, len(like), self.seed, kept)
        if risk.symmetric:
            refuse_asymmetric(core, matrix.risk.precision)
            core = (core + core.T) / 2
        inner = inverse_within(core, 0.0, matrix.risk.precision)
        turned = (basis / matrix.scale).double()
        undamped = turned.T @ core @ turned
        undamped.diagonal().sub_(matrix.damping)
        found = _ends(undamped, risk.symmetric)
        return LowRankInverse(
            repr(self), risk.signature, basis, inner.to(basis), math.inf, matrix.damping, found[0],
            (_told(risk, found, risk.p, min(map(abs, found))),), matrix.scale,
        )  # fmt: skip


@stored("LowRankInverse")
@dataclass(frozen=True, eq=False)
class LowRankInverse(AbstractInverse):
    """An orthonormal basis, the inverse inside it, and one number for all directions outside.

    All that is in the units of `scale`. With a basis of all directions, the number is infinite.
    """

    approximation: ClassVar[str] = "LowRank has one number for all directions outside of its basis"
    solver: str
    signature: str
    basis: Shaped[Tensor, "r p"]
    inner: Shaped[Tensor, "r r"]
    outside: float
    damping: float
    smallest_eigenvalue: float | None
    notes: tuple[str, ...] = ()
    scale: Shaped[Tensor, " p"] | float = 1.0
    in_double: ClassVar[bool] = True

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Inside and outside; says how much of the question lies outside."""
        vectors = vectors.to(self.basis) * self.scale
        inside = vectors @ self.basis.T  # (m, r)
        if math.isinf(self.outside):
            return Solution((inside @ (self.inner if transposed else self.inner.T)) @ self.basis * self.scale)
        rest = vectors - inside @ self.basis
        solved = (inside @ (self.inner if transposed else self.inner.T)) @ self.basis + rest / self.outside
        share = float((rest.norm(dim=1) / vectors.norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)).max())
        note = f"Up to {share:.0%} of a question's gradient lies outside the directions kept; a higher rank keeps more."
        return Solution(solved * self.scale, notes=(note,) if share >= NOTED else ())


def _ends(core: Float[Tensor, "k k"], symmetric: bool) -> tuple[float, float]:
    """The smallest and the largest eigenvalue, or real part."""
    found = torch.linalg.eigvalsh(core) if symmetric else torch.linalg.eigvals(core).real
    return float(found.min()), float(found.max())


def _told(risk: AbstractRisk, found: tuple[float, float], kept: int, smallest: float) -> str:
    name = "Lanczos" if risk.symmetric else "Arnoldi"
    return (
        f"{name} found eigenvalues from {found[0]:.3g} to {found[1]:.3g}; {kept} directions of {risk.p} kept, down to "
        f"{smallest:.3g}."
    )


def inverse_within(core: Float[Tensor, "r r"], damping: float, eps: float) -> Float[Tensor, "r r"]:
    """The damped inverse of a small matrix.

    Args:
        core: The curvature in a basis.
        damping: Added to the diagonal.
        eps: Of the arithmetic that made it.

    Returns:
        Its inverse.

    Raises:
        SingularCurvatureError: If there is none to working precision.
    """
    damped = core + damping * torch.eye(len(core)).to(core)
    sizes = torch.linalg.svdvals(damped)
    if float(sizes[-1]) <= 8 * eps * float(sizes[0]):
        raise SingularCurvatureError(
            f"The curvature is singular along a direction that was kept (singular value {float(sizes[-1]):.2g}). "
            f"Give a damping, such as Relative(1e-3), a lower rank, or train with l2 and say so: Risk(..., l2=...)."
        )
    return torch.linalg.inv(damped)


def check_rank(rank: int) -> None:
    """Refuses a rank that is not positive.

    Args:
        rank: Directions to keep.

    Raises:
        ValueError: If it is zero or less, or no whole number.
    """
    if rank < 1 or rank != int(rank):
        raise ValueError(f"Got rank={rank}; needed at least 1, as a whole number.")


def _strongest(core: Float[Tensor, "k k"], rank: int, symmetric: bool) -> Float[Tensor, "k r"]:
    """Orthonormal columns that span the eigenvectors of the largest eigenvalues in size; pairs stay together."""
    if rank == len(core):
        return torch.eye(rank).to(core)
    if symmetric:
        values, vectors = torch.linalg.eigh(core)
        return vectors[:, values.abs().argsort(descending=True)[:rank]]
    values, vectors = torch.linalg.eig(core)
    order = values.abs().argsort(descending=True)
    chosen = order[:rank]
    if float(values[order[rank]].abs()) >= (1 - 1e-9) * float(values[order[rank - 1]].abs()):  # a conjugate pair
        chosen = order[: rank + 1]
    spanned = torch.cat([vectors[:, chosen].real, vectors[:, chosen].imag], dim=1)
    left, _, _ = torch.linalg.svd(spanned, full_matrices=False)
    return left[:, : len(chosen)]
