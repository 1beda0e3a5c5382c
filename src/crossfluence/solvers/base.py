"""The two nouns of this folder: a solver is a setting, an inverse is what it makes of a risk."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from .._abstract_risk import AbstractRisk
from .._errors import NotConvergedWarning, StaleError
from .._functional import undisturbed
from .._objective import questions
from .._types import Batch, Objective
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
        solver: `repr` of what did the work, where that is not the solver asked for.
    """

    vectors: Shaped[Tensor, "m p"]
    steps: tuple[int, ...] = ()
    residuals: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    solver: str = ""


@dataclass(frozen=True, eq=False)
class Answers:
    """What some questions came to.

    Attributes:
        names: m labels.
        values: The objectives at the trained parameters, shape `(m,)`.
        reached: How the field along each solution depends on each sample's weight; the scores are its negative.
        drift: How far one more Newton step would move each objective, shape `(m,)`.
        solution: Of the linear solves, if there were any.
        notes: Sentences for the report.
    """

    names: tuple[str, ...]
    values: Tensor
    reached: Shaped[Tensor, "n m"]
    drift: Shaped[Tensor, " m"]
    solution: Solution | None = None
    notes: tuple[str, ...] = ()


class AbstractInverse(ABC):
    """The damped inverse of a curvature at one trained model, reusable for any number of questions.

    Attributes:
        solver: `repr` of what made it.
        signature: Content hash of the risk it belongs to.
        damping: The absolute damping that was added.
        smallest_eigenvalue: Of the curvature before damping, where known.
        notes: Sentences for the report.
    """

    solver: str
    signature: str
    damping: float
    smallest_eigenvalue: float | None
    notes: tuple[str, ...]

    def solve(self, vectors: Shaped[Tensor, "m p"], *, transposed: bool = True) -> Solution:
        """Solves with the damped transpose of J, or with J itself.

        Args:
            vectors: Right-hand sides, one in each row.
            transposed: Whether to solve with the transpose, as influence does.

        Returns:
            One solution in each row.
        """
        with undisturbed():
            return self._solve(vectors, transposed)

    @abstractmethod
    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution: ...

    def answers(
        self, risk: AbstractRisk, objective: Objective, candidates: Iterable[Batch] | None
    ) -> Iterator[Answers]:
        """Questions in chunks: their gradients, a solve, and one forward-mode pass over the samples for each.

        Args:
            risk: The trained model that this inverse belongs to.
            objective: The questions.
            candidates: Samples that were not trained on, instead of the training data.

        Yields:
            One chunk after another.
        """
        for chunk in questions(objective, risk.model, risk.theta):
            solution = self.solve(chunk.gradients)
            u = solution.vectors
            reached = risk.sensitivity(u) if candidates is None else risk.sensitivity_of(candidates, u)
            yield Answers(chunk.names, chunk.values, reached, -(u @ risk.gradient), solution)


class AbstractSolver(ABC):
    """A setting from which an inverse is made."""

    def invert(self, risk: AbstractRisk) -> AbstractInverse:
        """Does the work that all questions share.

        Args:
            risk: The trained model.

        Returns:
            An inverse, for any number of questions about this risk.
        """
        with undisturbed():
            risk.check()
            return self._invert(risk)

    @abstractmethod
    def _invert(self, risk: AbstractRisk) -> AbstractInverse: ...


def inverse_of(solver: AbstractSolver | AbstractInverse, risk: AbstractRisk) -> AbstractInverse:
    """An inverse that belongs to the risk: made now, or the given one if it fits.

    Args:
        solver: A solver, or what its `invert` returned earlier.
        risk: The trained model that is asked about.

    Returns:
        An inverse at the risk's parameters.

    Raises:
        StaleError: If the given inverse belongs to another risk.
        TypeError: If it is neither.
    """
    if isinstance(solver, AbstractSolver):
        return solver.invert(risk)
    if not isinstance(solver, AbstractInverse):
        raise TypeError(f"Got a solver of type {type(solver).__name__}; needed one such as crossfluence.Auto().")
    if solver.signature != risk.signature:
        raise StaleError(
            f"This inverse was made for another risk (content hash {solver.signature[:8]}, this one has "
            f"{risk.signature[:8]}): the model, data, loss, l2, weights or params differ. Make it again: "
            f"solver.invert(risk)."
        )
    return solver


def natural_curvature(curvature: AbstractCurvature | None, risk: AbstractRisk) -> AbstractCurvature:
    """The curvature asked for, or the Hessian, or the field's Jacobian where there is no Hessian."""
    if curvature is not None:
        return curvature
    return Hessian() if risk.symmetric else FieldJacobian()


def warn_unconverged(solver: str, residuals: Tensor, rtol: float, steps: int) -> None:
    """Says that a solve did not get as far as was asked.

    Args:
        solver: Its name.
        residuals: Shares of the right-hand sides that are left.
        rtol: What was asked for.
        steps: How many it took.
    """
    worst = float(residuals.max())
    if worst > rtol * 10:  # rounding keeps the true residual a little above the recursive one
        warnings.warn(
            f"{solver} stopped after {steps} steps with a residual of {worst:.2g} of the right-hand side; asked "
            f"for rtol={rtol:g}. Raise max_steps or damping, give a preconditioner, or accept it: rtol={worst:.1g}.",
            NotConvergedWarning,
            stacklevel=3,
        )
