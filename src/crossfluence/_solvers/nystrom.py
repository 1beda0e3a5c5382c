"""A random sketch of the curvature, inverted: the preconditioner for many questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import VECTORS_AT_ONCE
from .._curvature.base import AbstractCurvature, Relative, refuse_damping
from .._curvature.operator import operator, operator_products, operator_readings
from .._curvature.scale import tempered
from .._risk.base import AbstractRisk
from .._storage.partial import NO_CHECKPOINT, Checkpoint
from ..errors import NegativeCurvatureError
from .base import AbstractSolver, require_symmetric
from .cost import Cost
from .low_rank import LowRankInverse, check_rank, inverse_within


@dataclass(frozen=True)
class Nystrom(AbstractSolver):
    r"""The curvature as `rank` random directions see it, $(A\Omega)(\Omega^\top A\Omega)^{-1}(A\Omega)^\top$ plus l2.

    Its `rank` products do not wait for each other, so they share passes over the data. As a preconditioner,
    `CG(damping, preconditioner=Nystrom(rank, damping))`, it leaves a system whose condition no longer depends on the
    largest eigenvalues. Outside the sketch it divides by the smallest eigenvalue of the sketch, damped. By itself
    `LowRank` is nearer to the exact scores for the same number of products.

    Attributes:
        rank: Directions, p numbers each.
        damping: Added to the eigenvalues; that of the solver it serves. A number, or `Relative`.
        seed: Of the directions.
        curvature: Default: the Hessian.

    Example:
        >>> Nystrom(50, damping=1e-3).rank
        50

    References:
        Frangella, Tropp and Udell, "Randomized Nyström preconditioning", SIAM J. Matrix Anal. Appl. 44(2), 2023.
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
        """One product for each direction, all together."""
        rank = min(self.rank, risk.p)
        size = risk.fine.weights.element_size() * rank * risk.p
        together, readings = rank + operator_products(self.damping, risk), operator_readings(risk)
        return Cost(
            sequential_products=readings,
            batched_products=together,
            data_passes=readings,
            inverse_bytes=size,
            temporary_bytes=4 * size,
        )

    def _invert(self, risk: AbstractRisk) -> LowRankInverse:
        """Sketches the curvature without its l2 term.

        Args:
            risk: The trained model.

        Returns:
            An inverse that solves in 2 `rank` p operations for each question.

        Raises:
            UnsupportedError: If the curvature is not symmetric.
            NegativeCurvatureError: If it is not positive once damped.
        """
        return self._resumed(risk, NO_CHECKPOINT)

    def _resumed(self, risk: AbstractRisk, kept: Checkpoint) -> LowRankInverse:
        require_symmetric(risk, self, "LowRank(rank)")
        matrix = operator(self.curvature, self.damping, risk)
        fine, damping = matrix.risk, matrix.damping
        scale, *products = kept.state or (tempered(matrix.units),)
        kept.maybe_save(lambda: (scale, *products))
        test = _directions(fine.layout.flatten(fine.theta), self.rank, self.seed)
        for part in test.split(VECTORS_AT_ONCE)[len(products) :]:
            products = [*products, matrix.undamped(part * scale) * scale]
            kept.maybe_save(lambda done=products: (scale, *done))
        squares = scale.square()
        sketch = torch.cat(products) - fine.decay * squares * test
        least = matrix.decay * squares  # one number, where the parameters' own units are ordinary
        basis, values = _eigenpairs(test, sketch, float(least.min()), damping)
        core = torch.diag(values) + (basis * least) @ basis.T
        inner = inverse_within(core.double(), 0.0, fine.precision)
        outside = float(values.min()) + float(least.median())
        return LowRankInverse(repr(self), risk.signature, basis, inner.to(basis), outside, damping, None, scale=scale)


def _directions(like: Shaped[Tensor, " p"], rank: int, seed: int) -> Shaped[Tensor, "r p"]:
    """Orthonormal random rows."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(like), min(rank, len(like)), generator=generator).to(like)
    return torch.linalg.qr(drawn).Q.T


def _eigenpairs(
    test: Shaped[Tensor, "r p"], sketch: Shaped[Tensor, "r p"], least: float, damping: float
) -> tuple[Shaped[Tensor, "r p"], Shaped[Tensor, " r"]]:
    """Eigenvectors and eigenvalues of the sketched matrix, which is shifted up while its root is taken."""
    size = float(sketch.abs().max()) or 1.0  # squares are taken of what is about one: a curvature may be 1e200
    sketch = sketch / size
    core = (test @ sketch.T).double()
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    shift = torch.finfo(sketch.dtype).eps * float(sketch.norm())
    lowest = float(values[0])
    if lowest < -least / size - shift:
        lowest *= size
        raise NegativeCurvatureError(
            f"Nystrom met negative curvature: v'(H + {damping:g} I)v / v'v = {lowest + least:.3g}. Raise damping above "
            f"{damping - lowest - least:.3g}, use curvature=GaussNewton(), or LowRank, which does not need it positive."
        )
    shift = max(shift, -2 * lowest, torch.finfo(sketch.dtype).tiny)  # a sketch of zeros has zero eigenvalues
    root = (vectors * (values + shift).rsqrt()).to(sketch)  # (r, r)
    _, sizes, basis = torch.linalg.svd(root.T @ (sketch + shift * test), full_matrices=False)
    return basis, (sizes.square() - shift).clamp_min(0) * size
