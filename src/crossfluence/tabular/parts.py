"""Estimators that hold others, pipelines and searches, taken apart to the one that was fitted last."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ..errors import HeldFixedWarning, UnsupportedError, import_optional

CHOOSERS = {
    "LogisticRegressionCV": ("LogisticRegression", {"C": "C_", "l1_ratio": "l1_ratio_"}),
    "RidgeCV": ("Ridge", {"alpha": "alpha_"}),
    "RidgeClassifierCV": ("RidgeClassifier", {"alpha": "alpha_"}),
}  # estimators that choose their penalty by cross-validation: the plain one, and where its settings stand


def taken_apart(estimator: Any, *, warn: bool = True) -> tuple[list[Any], Any]:
    """The steps of a pipeline before the last, and the last; an estimator alone has none before.

    A search is taken for the best estimator it fitted, and `LogisticRegressionCV`, `RidgeCV` and `RidgeClassifierCV`
    for the plain estimator with the penalty they chose.

    Args:
        estimator: Fitted.
        warn: Whether to say what was learnt from the data and is held fixed.

    Returns:
        Transformers in order, and the final estimator, all known to be fitted.

    Raises:
        UnsupportedError: If it is no estimator, or not fitted.
    """
    before, last, fixed = _parts(estimator)
    if fixed and warn:
        what = "; ".join(fixed)
        warnings.warn(
            f"{what[0].upper()}{what[1:]} held fixed: scores are those of fitting {type(last).__name__} again on rows "
            f"transformed as now, with the same settings.",
            HeldFixedWarning,
            stacklevel=3,
        )
    return before, last


def _parts(estimator: Any) -> tuple[list[Any], Any, list[str]]:
    """Steps before, the last estimator, and clauses about what is held fixed."""
    sklearn = import_optional("sklearn", "A scikit-learn estimator as a risk", "tabular")
    if isinstance(estimator, type) or not isinstance(estimator, sklearn.base.BaseEstimator):
        came = f"the class {estimator.__name__}" if isinstance(estimator, type) else type(estimator).__name__
        raise UnsupportedError(
            f"Got {came}; needed a scikit-learn estimator. Type: risk_of(estimator.fit(X, y), X, y)."
        )
    from sklearn.model_selection._search import BaseSearchCV
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline):
        return _of_pipeline([step for _, step in estimator.steps if step not in (None, "passthrough")])
    if isinstance(estimator, BaseSearchCV):
        before, last, fixed = _parts(_best(estimator))
        return before, last, [*fixed, f"the settings that {type(estimator).__name__} chose are"]
    _refuse_unfitted(estimator)
    name = type(estimator).__name__
    if name not in CHOOSERS or not type(estimator).__module__.startswith("sklearn."):
        return [], estimator, []
    return [], _plain(estimator, *CHOOSERS[name]), [f"the penalty that {name} chose is"]


def _of_pipeline(steps: list[Any]) -> tuple[list[Any], Any, list[str]]:
    inner, last, fixed = _parts(steps[-1])
    before = [*steps[:-1], *inner]
    fitted = [type(step).__name__ for step in steps[:-1] if _learns(step)]
    said = [f"{', '.join(fitted)} {'was' if len(fitted) == 1 else 'were'} fitted on the data and"] if fitted else []
    return before, last, [*said, *fixed]


def _best(search: Any) -> Any:
    if getattr(search, "refit", True) is False:
        raise UnsupportedError(
            f"This {type(search).__name__} was run with refit=False and holds no fitted estimator. Fit the best one: "
            f"clone(search.estimator).set_params(**search.best_params_).fit(X, y)."
        )
    _refuse_unfitted(search)
    return search.best_estimator_


def _plain(chooser: Any, plain: str, settings: dict[str, str]) -> Any:
    """The estimator that the chooser fitted last, on all rows."""
    from sklearn import linear_model

    if getattr(chooser, "refit", True) is False:
        raise UnsupportedError(
            f"This {type(chooser).__name__} has the mean coefficients of its folds (refit=False), no minimum. "
            f"Fit it with refit=True."
        )
    made, held = getattr(linear_model, plain)(), chooser.get_params()
    made.set_params(**{name: value for name, value in held.items() if name in made.get_params()})
    vars(made).update({name: value for name, value in vars(chooser).items() if name not in held})
    for name, place in settings.items():
        values = [value for value in np.unique(np.ravel(getattr(chooser, place))) if value is not None]
        if len(values) > 1:
            raise UnsupportedError(
                f"This {type(chooser).__name__} chose {len(values)} values of {name}, one for each class or target; "
                f"needed one. Fit one for each."
            )
        if values:
            setattr(made, name, float(values[0]))
    return made


def _learns(step: Any) -> bool:
    """True if a transformer has learnt something from the rows."""
    from sklearn.utils import get_tags

    return bool(get_tags(step).requires_fit)


def _refuse_unfitted(estimator: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        raise UnsupportedError(f"This {type(estimator).__name__} is not fitted. Type: estimator.fit(X, y).") from error
