"""The diagonal of the curvature, inverted: the simplest preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._curvature.base import PROBES, AbstractCurvature, Relative, refuse_damping
from .._curvature.operator import operator, operator_products, operator_readings
from .._risk.base import AbstractRisk
from .._storage.archive import stored
from ..errors import SingularCurvatureError
from .base import AbstractInverse, AbstractSolver, Solution
from .cost import Cost

FLOOR = 1e-3  # of the mean, where the diagonal is about one: what random signs leave below it is noise


@dataclass(frozen=True)
class Jacobi(AbstractSolver):
    """Divides by the diagonal of the curvature, estimated from 64 products: `CG(preconditioner=Jacobi())`.

    Helps where the diagonals of the curvature and of the gradients' second moments differ; differences of scale alone
    every solver takes care of. By itself it is a crude inverse.

    Attributes:
        damping: Added to the diagonal; that of the solver it serves. A number, or `Relative`.
        seed: Of the random signs; up to 64 parameters need none.
        curvature: Default: the Hessian, or the field's Jacobian for a `FieldLoss`.

    Example:
        >>> Jacobi(1e-3)
        Jacobi(damping=0.001, seed=0, curvature=None)
    """

    saveable: ClassVar[bool] = True
    damping: float | Relative = 0.0
    seed: int = 0
    curvature: AbstractCurvature | None = None

    def __post_init__(self) -> None:
        refuse_damping(self.damping)

    def cost(self, risk: AbstractRisk) -> Cost:
        """The products of the estimate, all together."""
        size, count = risk.fine.weights.element_size() * risk.p, min(PROBES, risk.p)
        together = count + operator_products(self.damping, risk)
        readings = operator_readings(risk)
        return Cost(
            sequential_products=readings,
            batched_products=together,
            data_passes=readings,
            inverse_bytes=size,
            temporary_bytes=count * size,
        )

    def _invert(self, risk: AbstractRisk) -> JacobiInverse:
        """Estimates the diagonal; entries that come out too small to be meant are raised.

        Args:
            risk: The trained model.

        Returns:
            An inverse that costs p operations for each question.

        Raises:
            SingularCurvatureError: If the damped diagonal is zero somewhere.
        """
        matrix = operator(self.curvature, self.damping, risk)
        damped, squares = matrix.diagonal(self.seed), matrix.units.square()
        noise = FLOOR * (damped * squares).abs().mean() / squares
        raised = torch.maximum(damped, noise).clamp_min(matrix.decay)
        if not float(raised.min()) > 0:
            raise SingularCurvatureError(
                "The curvature is zero at some parameters, and so is its damping: there is nothing to divide by. Give "
                "a damping, such as Jacobi(damping=1e-3), or train with l2 and say so: Risk(..., l2=...)."
            )
        return JacobiInverse(repr(self), risk.signature, raised, matrix.damping)


@stored("JacobiInverse")
@dataclass(frozen=True, eq=False)
class JacobiInverse(AbstractInverse):
    """A positive diagonal."""

    approximation: ClassVar[str] = "Jacobi leaves out what parameters do to each other"
    solver: str
    signature: str
    diagonal: Shaped[Tensor, " p"]
    damping: float
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ("Each parameter by itself: what parameters do to each other is left out.",)
    in_double: ClassVar[bool] = True

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """One division for each parameter."""
        return Solution(vectors / self.diagonal)
