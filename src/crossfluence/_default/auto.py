"""The library's choice of solver, and its reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import singledispatch

from jaxtyping import Shaped
from torch import Tensor

from .._curvature.base import Relative, refuse_damping
from .._curvature.gauss_newton import GaussNewton
from .._curvature.hessian import Hessian
from .._horizon.horizon import Horizon
from .._losses import OnOutputs
from .._risk.base import AbstractRisk
from .._risk.double import DENSE_PARAMETERS, DENSE_WORK
from .._risk.risk import Risk
from .._solvers.base import AbstractInverse, AbstractSolver, Solution, risk_of
from .._solvers.cg import CG
from .._solvers.cost import Cost
from .._solvers.exact import Exact
from .._solvers.gmres import GMRES
from ..errors import NegativeCurvatureError, SingularCurvatureError, SolveError, UnsupportedError
from .standing import drift_left, gradient_left, sample_scale

BUDGET = 30  # passes over the data
STOPPED = 1.0  # gradient left, over that of a sample: above it, no curvature makes a minimum of it
DRIFTED, STILL = 0.2, 1e-3  # move by a Newton step, over the largest score: with positive curvature, and with any
ONCE, PASSES = 8, 4  # passes before a question, and for each product


@dataclass(frozen=True)
class Auto(AbstractSolver):
    """Chooses a solver by a plain rule; what it chose, and why, stands in `scores.report`.

    At a minimum the answer is exact: the solver that a risk with a structure of its own calls for (skip-gram:
    preconditioned `CG`); `Exact` if the model has at most 3,000 trained parameters and n times p is at most 20
    million; else `GMRES` for a `FieldLoss`, `CG` with `GaussNewton` for an `OnOutputs` loss, and `CG` with the Hessian
    otherwise.

    Where training was stopped before its minimum, it is `Horizon`, which takes sizes from the risk's record and,
    without one, is good for the order alone; with the Hessian where no outputs can be found in the loss. A `FieldLoss`
    is damped. Training counts as stopped if the gradient that it left is larger than that of a sample over n; if a
    dense curvature is not positive, or one more Newton step moves typical questions by more than a fifth of their
    largest scores; or if a question meets negative curvature, or directions that training does not determine. A risk
    from which samples were taken out is at no minimum by design, and is answered as if it were.

    Attributes:
        damping: If given, the answer is that of the curvature with this damping, wherever training ended.
        budget: Passes over the data for one question, at most about so many, where training was stopped. Factorising
            the roots of `Horizon`, some seconds at most whatever the data, comes on top.

    Example:
        >>> Auto()
        Auto(damping=None, budget=30)
    """

    damping: float | Relative | None = None
    budget: float = BUDGET

    def __post_init__(self) -> None:
        if self.damping is not None:
            refuse_damping(self.damping)
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, float)) or not self.budget > 0:
            raise ValueError(f"Got budget={self.budget!r}; needed a positive number of passes over the data.")

    def invert(self, risk: AbstractRisk, *, checkpoint: str | os.PathLike[str] | None = None) -> AbstractInverse:
        """As every solver; the file of a checkpoint is that of the chosen solver."""
        if checkpoint is None:
            return super().invert(risk)
        solver, reason = self.choose(risk)
        found = solver.invert(risk, checkpoint=checkpoint)
        noted = _noted(found, solver, reason)
        if noted.notes != found.notes:
            noted.save(checkpoint)  # the file holds what was returned
        return noted

    def cost(self, risk: AbstractRisk) -> Cost:
        """That of the chosen solver."""
        return self.choose(risk)[0].cost(risk)

    def choose(self, risk: AbstractRisk) -> tuple[AbstractSolver, str]:
        """The solver for a risk as the gradient that training left tells it, and the reason as a clause.

        Args:
            risk: The trained model.

        Returns:
            A solver, and why. `invert` may find later that training was stopped, from the curvature.
        """
        solver, reason = preferred(risk, self.damping or 0.0)
        if not isinstance(risk, Risk) or not self._judges(risk) or (left := gradient_left(risk)) <= STOPPED:
            return solver, reason
        return self._stopped(risk, f"it left a gradient {left:.2g} times that of a sample over n")

    def _judges(self, risk: AbstractRisk) -> bool:
        """True for a risk that a stopped training may have left: no solver of its own, all of its samples."""
        plain = preferred.dispatch(type(risk)) is preferred.dispatch(object)
        return self.damping is None and isinstance(risk, Risk) and plain and bool((risk.weights == 1).all())

    def _stopped(self, risk: AbstractRisk, cause: str) -> tuple[AbstractSolver, str]:
        """The solver where there is no minimum."""
        assert isinstance(risk, Risk)
        why = f"training was stopped before a minimum ({cause})"
        products = max(1, int((self.budget - ONCE) / PASSES))
        if not risk.symmetric:
            damping = sample_scale(risk)
            damped = Exact(damping) if _small(risk) else GMRES(damping, rtol=0.01, max_steps=products)
            return damped, f"{why}, and the field's Jacobian is not symmetric, so it was damped"
        if isinstance(risk.split, OnOutputs):
            return Horizon(steps=min(Horizon().steps, 2 * products)), why
        return Horizon(steps=min(Horizon().steps, products), curvature=Hessian()), f"{why}, and {risk.split}"

    def _invert(self, risk: AbstractRisk) -> AbstractInverse:
        """Chooses, and inverts.

        Args:
            risk: The trained model.

        Returns:
            The chosen solver's inverse.
        """
        solver, reason = self.choose(risk)
        if not self._judges(risk) or not isinstance(solver, (Exact, CG)):
            return self._made(risk, solver, reason)
        assert isinstance(risk, Risk)
        found = solver._invert(risk)  # the model was checked when Auto was called
        if isinstance(solver, Exact) and risk.symmetric and (cause := _no_minimum(risk, found)):
            return self._made(risk, *self._stopped(risk, cause))
        return self._with_way_out(risk, _noted(found, solver, reason))

    def _made(self, risk: AbstractRisk, solver: AbstractSolver, reason: str) -> AbstractInverse:
        """The inverse with the reason, and with a way out where the curvature may be negative."""
        try:
            found = solver._invert(risk)
        except (SolveError, UnsupportedError) as error:
            if not isinstance(solver, Horizon) or solver.curvature is not None:
                raise
            first = str(error).partition(". ")[0]
            instead = replace(solver, curvature=Hessian())
            return self._made(risk, instead, f"{reason}, and its outputs cannot be used ({first})")
        return self._with_way_out(risk, _noted(found, solver, reason))

    def _with_way_out(self, risk: AbstractRisk, found: AbstractInverse) -> AbstractInverse:
        """The inverse, with another that takes over where it cannot answer."""
        judges = self._judges(risk) and risk.symmetric
        settings = getattr(found, "settings", None)
        bends = isinstance(settings, CG) and not settings.truncate and not isinstance(settings.curvature, GaussNewton)
        if not bends and not (judges and getattr(found, "singular", False)):
            return found

        def instead(cause: str) -> AbstractInverse:
            if not judges:
                return GMRES(self.damping or 0.0).invert(risk)
            return self._made(risk, *self._stopped(risk, cause))

        return FallbackInverse(found, risk, instead)


@singledispatch
def preferred(risk: AbstractRisk, damping: float | Relative) -> tuple[AbstractSolver, str]:
    """The solver that `Auto` takes for a risk at its minimum, and the reason as a clause.

    A package with a risk of its own registers what is right for it: `@preferred.register`.

    Args:
        risk: The trained model.
        damping: Passed on.

    Returns:
        A solver with this damping, and why.
    """
    if _small(risk):
        return Exact(damping), f"{risk.p} parameters and {risk.n} samples are few enough for the dense matrix"
    if not risk.symmetric:
        return GMRES(damping), "the field's Jacobian is not symmetric, and too large to write out"
    many = f"{risk.p} parameters are too many for the dense matrix"
    splits = isinstance(risk, Risk) and isinstance(risk.kind, OnOutputs)
    return (CG(damping, curvature=GaussNewton()) if splits else CG(damping)), many


def _small(risk: AbstractRisk) -> bool:
    return risk.p <= DENSE_PARAMETERS and risk.n * risk.p <= DENSE_WORK


def _no_minimum(risk: Risk, found: AbstractInverse) -> str:
    """The reason, as a clause, for which a dense curvature is that of no minimum; empty if it may be."""
    there = risk_of(found, risk)
    assert isinstance(there, Risk)
    smallest, left = found.smallest_eigenvalue, drift_left(there, found)
    negative = smallest is not None and smallest < -risk.precision
    if left <= (STILL if negative else DRIFTED):
        return ""
    moved = f"one more Newton step would move questions by {left:.2g} of their largest scores"
    return f"the smallest eigenvalue is {smallest:.2g}, and {moved}" if negative else moved


def _noted(inverse: AbstractInverse, solver: AbstractSolver, reason: str) -> AbstractInverse:
    note = f"Auto chose {type(solver).__name__}: {reason}."
    return replace(inverse, notes=tuple(dict.fromkeys([*inverse.notes, note])))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class FallbackInverse(AbstractInverse):
    """An inverse, and another from the first question on that it cannot answer.

    Attributes:
        first: The one for a minimum.
        risk: The trained model.
        instead: Makes the other, given the cause as a clause.
        taken: The other, once it was needed.
    """

    first: AbstractInverse
    risk: AbstractRisk
    instead: Callable[[str], AbstractInverse]
    taken: list[AbstractInverse] = field(default_factory=list)
    in_double = True

    @property
    def _now(self) -> AbstractInverse:
        return self.taken[0] if self.taken else self.first

    @property
    def approximation(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the one that answers."""
        return self._now.approximation

    @property
    def at_minimum(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True until one takes over that is not about a minimum."""
        return self._now.at_minimum

    def __getattr__(self, name: str):
        """The name is that of the first, as solutions name the other; damping and notes are of the one that answers."""
        if name in ("damping", "smallest_eigenvalue", "notes"):
            return getattr(self._now, name)
        if name in ("solver", "signature"):
            return getattr(self.first, name)
        raise AttributeError(name)

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Tries the first, as long as it had an answer."""
        notes: tuple[str, ...] = ()
        if not self.taken:
            try:
                return self.first.solve(vectors, transposed=transposed)
            except (NegativeCurvatureError, SingularCurvatureError) as error:
                cause = str(error).partition(": ")[0]
                self.taken.append(self.instead(cause[0].lower() + cause[1:] if cause.startswith("The") else cause))
                name = self.taken[0].solver.partition("(")[0]
                notes = (f"{cause}; {name} took over, which does not need it positive.",)
        other = self.taken[0]
        solution = other.solve(vectors.to(risk_of(other, self.risk).weights), transposed=transposed)
        return replace(solution, solver=solution.solver or other.solver, notes=(*notes, *solution.notes))
