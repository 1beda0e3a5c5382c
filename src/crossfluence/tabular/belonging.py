"""A check that a fitted estimator belongs to the rows that it is asked about."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from .. import Risk
from ..errors import DataError

LEFT = 0.005
"""Of the rows' mean gradient, that a fit which ended may leave: it left at most .0018 on five small tables of
scikit-learn, raw and standardised, and half of their rows, or all in units a tenth larger, left .006 to .9."""

LOOKED_AT, ROUNDING = 4_096, 1e-8


def refuse_others(estimator: Any, risk: Risk, x: Tensor, y: Any, sample_weight: Any) -> None:
    """Refuses rows that the estimator was not fitted on, as far as what it keeps can tell.

    Clusterings keep the value of what they minimised, which must be the same on these rows. A linear model that ended
    has no gradient left on its own. One that stopped at `max_iter`, and networks, have one: nothing is said of them.

    Args:
        estimator: Fitted; the last step of a pipeline.
        risk: Made of it and the rows.
        x: The rows, as the estimator takes them.
        y: Their labels.
        sample_weight: As given to `fit`.

    Raises:
        DataError: If they cannot be its own.
    """
    if hasattr(estimator, "inertia_"):
        own, here = float(estimator.inertia_), -float(estimator.score(x.numpy(), sample_weight=sample_weight))
        _refuse(abs(own - here) > 1e-4 * max(abs(own), ROUNDING), f"inertia_ is {own:.6g}, on these rows {here:.6g}")
    elif hasattr(estimator, "lower_bound_"):
        own, here = float(estimator.lower_bound_), float(estimator.score(x.numpy()))
        other = estimator.converged_ and abs(own - here) > max(10 * estimator.tol, 1e-4 * abs(own))
        _refuse(other, f"lower_bound_ is {own:.6g}, on these rows the mean log likelihood is {here:.6g}")
    elif not hasattr(estimator, "coefs_") and _ended(estimator):
        length, own = float(risk.gradient.norm()), _mean_length(risk)
        rounding = ROUNDING * (1 + float(x.norm(dim=1).mean())) * _scale(y)  # all that is left of a perfect fit
        allowed = LEFT * max(1.0, float(getattr(estimator, "tol", None) or 0.0) / 1e-4)
        share = 100 * length / max(own, rounding)
        _refuse(share > 100 * allowed, f"a fit that ended leaves no gradient, and {share:.2g} % of theirs is left")


def _refuse(other: bool, why: str) -> None:
    if other:
        raise DataError(
            f"The estimator was not fitted on these rows as they are: {why}. Give the rows and labels that it was "
            f"fitted on, before any later preprocessing, and sample_weight= if fit had one."
        )


def _ended(estimator: Any) -> bool:
    """False if the solver stopped at its most steps."""
    steps, most = getattr(estimator, "n_iter_", None), getattr(estimator, "max_iter", None)
    return steps is None or most is None or int(np.max(steps)) < most


def _mean_length(risk: Risk) -> float:
    """That of the rows' gradients; of some thousand, where there are more."""
    total, count = 0.0, 0
    for rows in risk.sample_gradients():
        total, count = total + risk.n * float(rows.norm(dim=1).sum()), count + len(rows)
        if count >= LOOKED_AT:
            break
    return total / count


def _scale(y: Any) -> float:
    values = np.asarray(y)
    return float(np.abs(values).mean()) or 1.0 if values.dtype.kind in "fiu" else 1.0
