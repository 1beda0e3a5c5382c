"""The library's choice of solver, and its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import ClassVar

from jaxtyping import Shaped
from torch import Tensor

from .._curvature.base import Relative, refuse_damping
from .._curvature.gauss_newton import GaussNewton
from .._losses import OnOutputs
from .._risk.base import AbstractRisk
from .._risk.double import DENSE_PARAMETERS, DENSE_WORK
from .._risk.risk import Risk
from ..errors import NegativeCurvatureError
from .base import AbstractInverse, AbstractSolver, Solution
from .cg import CG
from .cost import Work
from .exact import Exact
from .gmres import GMRES


@dataclass(frozen=True)
class Auto(AbstractSolver):
    """Chooses a solver by a plain rule; what it chose, and why, stands in `scores.report`.

    The solver that a risk with a structure of its own calls for (skip-gram: preconditioned `CG`); otherwise
    `Exact` if the model has at most 3,000 trained parameters and n times p is at most 20 million; else `GMRES` for
    a `FieldLoss`, `CG` with `GaussNewton` for an `OnOutputs` loss, and `CG` with the Hessian otherwise; if that meets
    negative curvature, `GMRES`.

    Attributes:
        damping: Passed on to the chosen solver.

    Example:
        >>> Auto()
        Auto(damping=0.0)
    """

    damping: float | Relative = 0.0

    def __post_init__(self) -> None:
        refuse_damping(self.damping)

    def invert(self, risk: AbstractRisk, *, checkpoint: str | os.PathLike[str] | None = None) -> AbstractInverse:
        """As every solver; the file of a checkpoint is that of the chosen solver."""
        if checkpoint is None:
            return super().invert(risk)
        solver, reason = self.choose(risk)
        found = solver.invert(risk, checkpoint=checkpoint)
        noted = self._noted(risk, solver, reason, found)
        if noted.notes != found.notes:
            noted.save(checkpoint)  # the file holds what was returned
        return noted

    def work(self, risk: AbstractRisk) -> Work:
        """That of the chosen solver."""
        return self.choose(risk)[0].work(risk)

    def _invert(self, risk: AbstractRisk) -> AbstractInverse:
        """Chooses, and inverts.

        Args:
            risk: The trained model.

        Returns:
            The chosen solver's inverse.
        """
        solver, reason = self.choose(risk)
        return self._noted(risk, solver, reason, solver._invert(risk))  # the model was checked when Auto was called

    def _noted(
        self, risk: AbstractRisk, solver: AbstractSolver, reason: str, inverse: AbstractInverse
    ) -> AbstractInverse:
        """The chosen solver's inverse with the reason, and with a way out where the curvature may be negative."""
        note = f"Auto chose {type(solver).__name__}: {reason}."
        noted = replace(inverse, notes=tuple(dict.fromkeys([*inverse.notes, note])))  # pyright: ignore[reportArgumentType]
        if not isinstance(solver, CG) or solver.truncate or isinstance(solver.curvature, GaussNewton):
            return noted
        return FallbackInverse(
            noted, risk, self.damping, noted.solver, noted.signature, noted.damping, notes=noted.notes
        )

    def choose(self, risk: AbstractRisk) -> tuple[AbstractSolver, str]:
        """The solver for a risk, and the reason as a clause.

        Args:
            risk: The trained model.

        Returns:
            A solver with this damping, and why.
        """
        return preferred(risk, self.damping)


@singledispatch
def preferred(risk: AbstractRisk, damping: float | Relative) -> tuple[AbstractSolver, str]:
    """The solver that `Auto` takes for a risk, and the reason as a clause.

    A package with a risk of its own registers what is right for it: `@preferred.register`.

    Args:
        risk: The trained model.
        damping: Passed on.

    Returns:
        A solver with this damping, and why.
    """
    if risk.p <= DENSE_PARAMETERS and risk.n * risk.p <= DENSE_WORK:
        return Exact(damping), f"{risk.p} parameters and {risk.n} samples are few enough for the dense matrix"
    if not risk.symmetric:
        return GMRES(damping), "the field's Jacobian is not symmetric, and too large to write out"
    many = f"{risk.p} parameters are too many for the dense matrix"
    splits = isinstance(risk, Risk) and isinstance(risk.kind, OnOutputs)
    return (CG(damping, curvature=GaussNewton()) if splits else CG(damping)), many


@dataclass(frozen=True, eq=False)
class FallbackInverse(AbstractInverse):
    """Conjugate gradients, and GMRES for a question that meets negative curvature."""

    first: AbstractInverse
    risk: AbstractRisk
    wanted_damping: float | Relative
    solver: str
    signature: str
    damping: float
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ()
    in_double: ClassVar[bool] = True

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Tries CG first."""
        try:
            return self.first.solve(vectors, transposed=transposed)
        except NegativeCurvatureError as error:
            instead = GMRES(self.wanted_damping)
            solution = instead.invert(self.risk).solve(vectors, transposed=transposed)
            note = f"{str(error).partition(': ')[0]}; GMRES took over, which does not need it positive."
            return replace(solution, solver=repr(instead), notes=(note,))
