"""The dense matrix, written out and factorised: the reference for every other solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._autodiff.functional import VECTORS_AT_ONCE
from .._curvature.base import PROBES, TRACED, AbstractCurvature, Relative, know_trace, refuse_damping
from .._curvature.operator import operator
from .._curvature.scale import equilibrating
from .._risk.base import AbstractRisk
from .._risk.risk import Risk
from .._storage.archive import Parts, stored
from ..errors import SingularCurvatureError, SolveError
from .base import AbstractInverse, AbstractSolver, Solution
from .cost import Cost
from .limits import warn_imprecise

RANK = 8  # times the rounding error: what a singular value has to exceed to count
TILTED = 1e-6  # at most, by what is left of training
REFINED = 3  # solves, each for what the last ones left
NEGLIGIBLE = 1e-9  # error of a solution that goes unreported
SPECTRUM_UP_TO = 4_000  # parameters for which the eigenvalues of an unsymmetric matrix are still quick


@dataclass(frozen=True)
class Exact(AbstractSolver):
    """Forms the p x p curvature and factorises it in float64; p products with the data, 16 p² bytes, 32 p² meanwhile.

    The products are taken in float64 too where the problem is small (at most 3,000 parameters, n times p at most 20
    million) and the loss can be computed so. Rank and symmetry are judged once rows and columns are divided by the
    square roots of the diagonal, so that no column's unit matters.

    An indefinite matrix is inverted as it is, with the damping added and no absolute values; the report gives its
    smallest eigenvalue. A singular one (symmetries of the model leave directions that training does not determine,
    such as rotations of an embedding) is solved where the question does not depend on these directions, and
    refused where it does.

    Attributes:
        damping: Added to the eigenvalues; a number, or `Relative`.
        curvature: Default: the Hessian, or the field's Jacobian for a `FieldLoss`.

    Example:
        >>> Exact(damping=1e-3)
        Exact(damping=0.001, curvature=None)
    """

    saveable: ClassVar[bool] = True
    damping: float | Relative = 0.0
    curvature: AbstractCurvature | None = None

    def __post_init__(self) -> None:
        refuse_damping(self.damping)

    def cost(self, risk: AbstractRisk) -> Cost:
        """A product for each parameter, and a dense matrix of which four copies live together."""
        square, traced = 8 * risk.p**2, risk.p > TRACED and isinstance(self.damping, Relative)
        together = risk.p + (PROBES if traced else 0)
        return Cost(
            batched_products=together, inverse_bytes=2 * square, temporary_bytes=2 * square, matrix_order=risk.p
        )

    def _invert(self, risk: AbstractRisk) -> ExactInverse:
        """Forms the matrix, scales its rows and columns by the diagonal, and factorises it.

        Args:
            risk: The trained model.

        Returns:
            An inverse that solves for any vector in p² operations.
        """
        damped = operator(self.curvature, self.damping, risk)
        curvature, fine, symmetric = damped.curvature, damped.risk, damped.symmetric
        matrix = dense(curvature, fine)
        know_trace(curvature, fine, matrix)
        damping = damped.damping
        matrix.diagonal().add_(damping)
        scale = equilibrating(matrix)
        if symmetric:
            refuse_asymmetric(matrix * scale * scale.unsqueeze(1), fine.precision)
            matrix = (matrix + matrix.T) / 2
        smallest = _smallest_eigenvalue(matrix, symmetric)
        matrix.mul_(scale).mul_(scale.unsqueeze(1))
        factors, pivots, least, singular = _factorised(matrix, scale, curvature, risk)
        notes = ("The curvature is singular: training leaves some directions undetermined (symmetries).",)
        return ExactInverse(
            repr(self), risk.signature, matrix, factors, pivots, singular, _tolerance(risk, scale, least), damping,
            None if smallest is None else smallest - damping, notes if singular else (), scale, least, fine.precision,
        )  # fmt: skip


def _with_scale(parts: Parts, form: str) -> Parts:
    """The fields of an inverse; those of the first format may have no scale of the parameters."""
    if "scale" in parts:
        return parts
    if parts["singular"]:
        raise TypeError("an inverse of a singular curvature was kept in another form")
    matrix = parts["matrix"]
    least = float(torch.linalg.matrix_norm(matrix, -2))
    return parts | {"scale": torch.ones_like(matrix[0]), "least": least, "precision": parts["tolerance"] ** 2}


@stored("ExactInverse", _with_scale)
@dataclass(frozen=True, eq=False)
class ExactInverse(AbstractInverse):
    """A damped curvature, its rows and columns scaled by its diagonal, with its LU factors, in float64.

    If it is singular, the factors are those of the matrix with ones in place of the zero singular values.
    """

    solver: str
    signature: str
    matrix: Float[Tensor, "p p"]
    factors: Float[Tensor, "p p"]
    pivots: Tensor
    singular: bool
    tolerance: float
    damping: float
    smallest_eigenvalue: float | None
    notes: tuple[str, ...]
    scale: Float[Tensor, " p"]
    least: float
    precision: float
    in_double: ClassVar[bool] = True

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Two triangular solves for each vector, refined; refuses a question that a singular matrix cannot answer."""
        wanted = (vectors.to(self.matrix) * self.scale).T
        matrix = self.matrix.T if transposed else self.matrix
        found, change = torch.zeros_like(wanted), torch.zeros_like(wanted)
        for _ in range(REFINED):
            change = torch.linalg.lu_solve(self.factors, self.pivots, wanted - matrix @ found, adjoint=transposed)
            found += change
        residuals = (matrix @ found - wanted).norm(dim=0) / wanted.norm(dim=0).clamp_min(1e-300)
        if self.singular and float(residuals.max()) > self.tolerance:
            raise SingularCurvatureError(
                f"The curvature is singular, and the question depends on directions that training does not determine: "
                f"{float(residuals.max()):.2g} of its gradient lies in them. Give a damping, such as "
                f"Exact(damping=Relative(1e-3)), or train with l2 and say so: Risk(..., l2=...)."
            )
        errors = self._errors(matrix, found, change)
        warn_imprecise(errors)
        return Solution(
            (found.T * self.scale).to(vectors), residuals=tuple(residuals.tolist()), errors=tuple(errors.tolist())
        )

    def _errors(self, matrix: Tensor, found: Tensor, change: Tensor) -> Float[Tensor, " m"]:
        """Errors in the norm of the matrix: of the last refinement, and of products that are rounded."""
        size = (found * (matrix @ found)).sum(0).abs().sqrt().clamp_min(1e-300)
        last = (change * (matrix @ change)).sum(0).abs().sqrt() / size
        rounded = self.precision * found.norm(dim=0) / (self.least**0.5 * size)
        return torch.where((errors := last + rounded) > NEGLIGIBLE, errors, 0.0)


def _tolerance(risk: AbstractRisk, scale: Float[Tensor, " p"], least: float) -> float:
    """The share of a query that may lie in null directions: rounding, and their tilt where training has not ended."""
    theta, gradient = (part.to(scale) for part in (risk.layout.flatten(risk.theta), risk.gradient))
    # of a symmetry along t, H t = -g: the direction found is off by |g| / (|t| smallest eigenvalue kept)
    tilt = float((scale * gradient).norm() / ((theta / scale).norm() * least).clamp_min(1e-300))
    return risk.precision**0.5 + min(tilt, TILTED)


def _factorised(
    matrix: Float[Tensor, "p p"], scale: Float[Tensor, " p"], curvature: AbstractCurvature, risk: AbstractRisk
) -> tuple[Tensor, Tensor, float, bool]:
    """LU factors, pivots, the smallest singular value that counts, and whether others became zeros in the matrix."""
    factors, pivots, info = torch.linalg.lu_factor_ex(matrix)
    least = 0.0 if float(info) > 0 else _smallest_singular_value(factors, pivots)
    suspect = RANK * risk.precision * float(matrix.norm())
    if least > suspect:
        return factors, pivots, least, False
    left, values, right = _triplets(matrix, risk.symmetric)
    null = values <= _noise(left, values, right, scale, curvature, risk, suspect)
    if not bool(null.any()):
        return factors, pivots, least, False
    outer = left[:, null] @ right[:, null].T
    matrix -= (left[:, null] * values[null]) @ right[:, null].T
    factors, pivots = torch.linalg.lu_factor(matrix + outer)
    least = float(values[~null].min()) if bool((~null).any()) else 1.0
    return factors, pivots, least, True


def _triplets(matrix: Float[Tensor, "p p"], symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values: left columns, values, right columns."""
    if not symmetric:
        left, values, right = torch.linalg.svd(matrix)
        return left, values, right.T
    values, vectors = torch.linalg.eigh(matrix)
    return vectors, values.abs(), vectors * torch.where(values < 0, -1, 1)


def _noise(
    left: Tensor, values: Tensor, right: Tensor, scale: Tensor, curvature: AbstractCurvature, risk: AbstractRisk,
    suspect: float,
) -> float:  # fmt: skip
    """The largest singular value that means zero: by the rounding of the products, or of the parameters themselves."""
    fine = risk.fine
    if fine is risk or not isinstance(fine, Risk):
        return suspect
    chosen = values <= suspect  # in double precision these count, unless rounding the parameters moves them as far
    generator = torch.Generator().manual_seed(0)
    theta = {name: at + risk.precision * at * torch.randn(at.shape, generator=generator, dtype=at.dtype).to(at)
             for name, at in fine.theta.items()}  # fmt: skip
    beside = fine.rebuilt(fine.model, fine.kind, theta, fine.weights)
    probes = right[:, chosen].T * scale
    change = (curvature.product(beside, probes) - curvature.product(fine, probes)) * scale @ left[:, chosen]
    floor = fine.precision / risk.precision * suspect
    return min(max(floor, RANK * float(torch.linalg.matrix_norm(change, 2))), suspect)


def dense(curvature: AbstractCurvature, risk: AbstractRisk) -> Float[Tensor, "p p"]:
    """The matrix in full, in float64, from products with unit vectors.

    Args:
        curvature: Which matrix.
        risk: Where.

    Returns:
        Shape `(p, p)`.
    """
    like = risk.layout.flatten(risk.theta)
    matrix = torch.empty(risk.p, risk.p, dtype=torch.float64, device=like.device)
    starts = range(0, risk.p, VECTORS_AT_ONCE)
    for start in tqdm(starts, desc="curvature", unit="block", disable=None, leave=False):
        stop = min(start + VECTORS_AT_ONCE, risk.p)
        units = like.new_zeros(stop - start, risk.p)
        units[:, start:stop].fill_diagonal_(1)
        matrix[:, start:stop] = curvature.product(risk, units).T.double()
    return matrix


def refuse_asymmetric(matrix: Tensor, eps: float) -> None:
    """Refuses a matrix of second derivatives that rounding, or a wrong derivative, has made unsymmetric.

    Args:
        matrix: In units in which its diagonal is about one.
        eps: Of the arithmetic that made it.

    Raises:
        SolveError: If it differs from its transpose beyond rounding.
    """
    share = float((matrix - matrix.T).norm() / matrix.norm().clamp_min(1e-300))
    if share > eps**0.5:
        raise SolveError(
            f"The matrix of second derivatives is not symmetric (by {share:.2g} of its norm), so a layer of the model "
            f"has wrong second derivatives (weight_norm on the CPU is known for it), or the loss is so flat here that "
            f"rounding is all that is left of them. Take that layer out, for instance with "
            f"torch.nn.utils.parametrize.remove_parametrizations, use curvature=GaussNewton(), or give a damping."
        )


def _smallest_eigenvalue(matrix: Tensor, symmetric: bool) -> float | None:
    """The smallest eigenvalue or real part; not of large unsymmetric matrices, where it would outlast the solve."""
    if symmetric:
        return float(torch.linalg.eigvalsh(matrix)[0])
    return float(torch.linalg.eigvals(matrix).real.min()) if len(matrix) <= SPECTRUM_UP_TO else None


def _smallest_singular_value(factors: Tensor, pivots: Tensor) -> float:
    """By inverse iteration from a fixed random start; close enough to tell zero from small."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(factors), 1, dtype=torch.float64, generator=generator).to(factors)
    growth = 0.0
    for _ in range(4):
        vector = vector / vector.norm()
        vector = torch.linalg.lu_solve(factors, pivots, torch.linalg.lu_solve(factors, pivots, vector, adjoint=True))
        growth = float(vector.norm())
        if not 0 < growth < float("inf"):
            return 0.0
    return growth**-0.5
