"""The dense matrix, written out and factorised: the reference for every other solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._abstract_risk import AbstractRisk
from .._errors import SingularCurvatureError, SolveError
from .._functional import VECTORS_AT_ONCE
from .._params import coarseness
from ..curvature.base import AbstractCurvature, Relative, absolute
from .base import AbstractInverse, AbstractSolver, Solution, natural_curvature
from .work import Work

SPECTRUM_UP_TO = 4_000  # parameters for which the eigenvalues of an unsymmetric matrix are still quick


@dataclass(frozen=True)
class Exact(AbstractSolver):
    """Forms the p x p curvature and factorises it in float64; p products with the data, 8 p² bytes.

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

    damping: float | Relative = 0.0
    curvature: AbstractCurvature | None = None

    def work(self, risk: AbstractRisk) -> Work:
        """A product for each parameter, and a dense matrix of which four copies live together."""
        square = 8 * risk.p**2
        return Work(together=risk.p, held=2 * square, saved=True, scratch=2 * square, order=risk.p)

    def _invert(self, risk: AbstractRisk) -> ExactInverse:
        """Forms and factorises the matrix.

        Args:
            risk: The trained model.

        Returns:
            An inverse that solves for any vector in p² operations.
        """
        curvature = natural_curvature(self.curvature, risk)
        matrix = dense(curvature, risk)
        damping = absolute(self.damping, float(matrix.diagonal().mean()))
        symmetric = risk.symmetric
        if symmetric:
            _refuse_asymmetric(matrix, coarseness(risk.theta))
            matrix = (matrix + matrix.T) / 2
        smallest = _smallest_eigenvalue(matrix, symmetric)
        matrix.diagonal().add_(damping)
        noise = 8 * torch.finfo(risk.weights.dtype).eps * float(matrix.norm())
        factors, pivots, info = torch.linalg.lu_factor_ex(matrix)
        notes: tuple[str, ...] = ()
        singular = float(info) > 0 or _smallest_singular_value(factors, pivots) <= noise
        if singular:
            factors, pivots = torch.linalg.lu_factor(matrix + noise * torch.eye(risk.p).to(matrix))
            notes = ("The curvature is singular: training leaves some directions undetermined (symmetries).",)
        tolerance = torch.finfo(risk.weights.dtype).eps ** 0.5
        return ExactInverse(
            repr(self), risk.signature, matrix, factors, pivots, singular, tolerance, damping, smallest, notes
        )


@dataclass(frozen=True, eq=False)
class ExactInverse(AbstractInverse):
    """A damped curvature with its LU factors, in float64; of the slightly shifted matrix if it is singular."""

    solver: str
    signature: str
    matrix: Float[Tensor, "p p"]
    factors: Float[Tensor, "p p"]
    pivots: Tensor
    singular: bool
    tolerance: float
    damping: float
    smallest_eigenvalue: float | None
    notes: tuple[str, ...] = ()

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Two triangular solves for each vector, refined; refuses a question that a singular matrix cannot answer."""
        wanted = vectors.to(self.matrix).T
        matrix = self.matrix.T if transposed else self.matrix
        found = torch.zeros_like(wanted)
        for _ in range(4 if self.singular else 2):  # refinement takes the shift out again
            found += torch.linalg.lu_solve(self.factors, self.pivots, wanted - matrix @ found, adjoint=transposed)
        residuals = (matrix @ found - wanted).norm(dim=0) / wanted.norm(dim=0).clamp_min(1e-300)
        if self.singular and float(residuals.max()) > self.tolerance:
            raise SingularCurvatureError(
                f"The curvature is singular, and the question depends on directions that training does not determine: "
                f"{float(residuals.max()):.2g} of its gradient lies in them. Give a damping, such as "
                f"Exact(damping=Relative(1e-3)), or train with l2 and say so: Risk(..., l2=...)."
            )
        return Solution(found.T.to(vectors), residuals=tuple(residuals.tolist()))


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


def _refuse_asymmetric(matrix: Tensor, eps: float) -> None:
    share = float((matrix - matrix.T).norm() / matrix.norm().clamp_min(1e-300))
    if share > eps**0.5:
        raise SolveError(
            f"The matrix of second derivatives is not symmetric (by {share:.2g} of its norm), so a layer of the model "
            f"has wrong second derivatives; weight_norm on the CPU is known for it. Take that layer out, for instance "
            f"with torch.nn.utils.parametrize.remove_parametrizations, or use curvature=GaussNewton()."
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
