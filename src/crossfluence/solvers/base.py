"""The two nouns of this folder: a solver is a setting, an inverse is what it makes of a risk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from .._errors import StaleError
from .._risk import Risk
from ..curvature.base import AbstractCurvature
from ..curvature.field import FieldJacobian
from ..curvature.hessian import Hessian


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solve gave.

    Attributes:
        vectors: Shape `(m, p)`, the solutions.
        steps: Iterations for each right-hand side; empty for direct solvers.
        residuals: `‖J'u - a‖ / ‖a‖` for each right-hand side.
        notes: Sentences for the report.
    """

    vectors: Shaped[Tensor, "m p"]
    steps: tuple[int, ...] = ()
    residuals: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


class AbstractInverse(ABC):
    """The damped inverse of a curvature at one trained model, reusable for any number of questions.

    Attributes:
        solver: `repr` of what made it.
        fingerprint: Content hash of the model it belongs to.
        damping: The absolute damping that was added.
        smallest_eigenvalue: Of the curvature before damping, where known.
        notes: Sentences for the report.
    """

    solver: str
    fingerprint: str
    damping: float
    smallest_eigenvalue: float | None
    notes: tuple[str, ...]

    @abstractmethod
    def solve(self, vectors: Shaped[Tensor, "m p"], *, transposed: bool = True) -> Solution:
        """Solves `(J' + damping) u = v` for each row, or with J itself."""


class AbstractSolver(ABC):
    """A setting from which an inverse is made."""

    @abstractmethod
    def invert(self, risk: Risk) -> AbstractInverse:
        """Does the work that all questions share."""


def inverse_of(solver: AbstractSolver | AbstractInverse, risk: Risk) -> AbstractInverse:
    """An inverse that belongs to the risk: made now, or the given one if it fits.

    Args:
        solver: A solver, or what its `invert` returned earlier.
        risk: The trained model that is asked about.

    Returns:
        An inverse at the risk's parameters.

    Raises:
        StaleError: If the given inverse belongs to another model.
        TypeError: If it is neither.
    """
    if isinstance(solver, AbstractSolver):
        return solver.invert(risk)
    if not isinstance(solver, AbstractInverse):
        raise TypeError(f"Got a solver of type {type(solver).__name__}; needed one such as crossfluence.Auto().")
    if solver.fingerprint != risk.fingerprint:
        raise StaleError(
            f"This inverse was made for a model with content hash {solver.fingerprint[:8]}; the risk's model has "
            f"{risk.fingerprint[:8]}. Make it again: solver.invert(risk)."
        )
    return solver


def natural_curvature(curvature: AbstractCurvature | None, risk: Risk) -> AbstractCurvature:
    """The curvature asked for, or the Hessian, or the field's Jacobian where there is no Hessian."""
    if curvature is not None:
        return curvature
    return Hessian() if risk.kind.symmetric else FieldJacobian()
