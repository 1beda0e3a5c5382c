"""Limits of solves, and the words for one that stopped too early."""

from __future__ import annotations

import warnings

from torch import Tensor

from ..errors import NotConvergedWarning

ERROR_PER_RESIDUAL = 100  # how many times rtol a solution may be off: what a residual hides where curvatures differ
USELESS = 0.1  # share of the largest score from which on an error makes scores useless


def check_limits(rtol: float, max_steps: int) -> None:
    """Refuses settings with which a solve would end before it began, or could never be judged.

    Args:
        rtol: Share of the right-hand side at which it stops.
        max_steps: Steps at most.

    Raises:
        ValueError: If the share is not between 0 and 1, or there is no step.
    """
    if not 0 <= rtol <= 1:
        raise ValueError(f"Got rtol={rtol!r}; needed a share of the right-hand side between 0 and 1, such as 1e-5.")
    if max_steps < 1 or max_steps != int(max_steps):
        raise ValueError(f"Got max_steps={max_steps!r}; needed a whole number of at least 1.")


def error_allowed(rtol: float) -> float:
    """The error in the norm of the curvature at which a solve may stop, as a share of the solution."""
    return min(ERROR_PER_RESIDUAL * rtol, USELESS)


def warn_unconverged(solver: str, residuals: Tensor, errors: Tensor, rtol: float, steps: int) -> None:
    """Says that a solve did not get as far as was asked, and what helps.

    Args:
        solver: Its name.
        residuals: Shares of the right-hand sides that are left.
        errors: Shares by which the solutions may be off.
        rtol: What was asked for.
        steps: How many it took.
    """
    worst, error = float(residuals.max()), float(errors.max())
    if worst <= 10 * rtol and error <= 10 * error_allowed(rtol):  # rounding keeps both a little above the recursion's
        return
    start = (
        f"{solver} stopped after {steps} steps with a residual of {worst:.2g} of the right-hand side; asked for "
        f"rtol={rtol:g}. Scores may be off by {error:.2g} of the largest. "
    )
    if max(worst, error) > USELESS:
        advice = (
            "These scores cannot be used. Raise damping or max_steps, use curvature=GaussNewton() or "
            "preconditioner=EKFAC(damping), or put the model and the data in double precision: model.double()."
        )
    else:
        advice = f"Raise max_steps or damping, give a preconditioner, or accept it: rtol={worst:.1g}."
    warnings.warn(start + advice, NotConvergedWarning, stacklevel=3)


def warn_imprecise(errors: Tensor) -> None:
    """Says that a direct solve lost its figures to rounding.

    Args:
        errors: Shares by which the solutions may be off.
    """
    if len(errors) and float(errors.max()) > USELESS:
        warnings.warn(
            f"The curvature is so near to singular that rounding may move the scores by {float(errors.max()):.2g} of "
            f"the largest. These scores cannot be used. Put the model and the data in double precision, "
            f"model.double(), or give a damping, such as Relative(1e-3).",
            NotConvergedWarning,
            stacklevel=3,
        )
