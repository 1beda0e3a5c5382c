"""Fitted scikit-learn estimators as risks: the same parameters, the same loss, the same penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import Batches, Risk, batches
from .belonging import refuse_others
from .carried import builder_of
from .parts import taken_apart
from .rows import Codes, features, weights_of


def risk_of(estimator: Any, X: Any, y: Any = None, sample_weight: Any = None) -> Risk:
    """A fitted scikit-learn estimator as a risk: its parameters, loss and penalty, in double precision.

    `LogisticRegression` (two classes or more, l2 or no penalty), `LinearRegression`, `Ridge`, `RidgeClassifier`,
    `LinearSVC` with squared hinge, `PoissonRegressor`, `GammaRegressor`, `TweedieRegressor`, `MLPClassifier`,
    `MLPRegressor`, `KMeans` and `GaussianMixture`, also at the end of a `Pipeline`, whose steps before are applied to
    `X` and held fixed, and inside `GridSearchCV` and its like, whose choice is held fixed, as are the penalties of
    `LogisticRegressionCV`, `RidgeCV` and `RidgeClassifierCV`. Scores are then those of leaving rows out and fitting
    again. `class_weight="balanced"` couples the samples and is carried over as such.

    Args:
        estimator: Fitted.
        X: The rows it was fitted on, in order.
        y: Their labels; nothing for clusterings.
        sample_weight: As given to `fit`.

    Returns:
        A risk whose batches are `(features, labels, sample weights)`; labels of classes are numbers of
        `estimator.classes_`. The model's outputs are decision values before any link: the log odds, the linear
        predictor, for clusterings minus squared distances or log densities.

    Raises:
        UnsupportedError: If the estimator cannot be carried over: an l1 penalty, trees, kernels.
        DataError: If the rows are not what it was fitted on, as far as the estimator's own values can tell: half of
            them, another order of the labels, another unit. A network, and a fit that stopped early, cannot tell.

    Warns:
        HeldFixedWarning: If steps of a pipeline, or settings, were chosen by the data: fitting again would move them.

    Example:
        >>> from sklearn.linear_model import Ridge
        >>> X, y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 5.0]
        >>> risk = risk_of(Ridge(alpha=0.1).fit(X, y), X, y)
        >>> risk.n, risk.p, risk.gradient.abs().max().item() < 1e-12
        (3, 2, True)
    """
    before, last = taken_apart(estimator)
    codes = Codes.of(last)
    carried = builder_of(last)(last, codes)
    x = features(before, last, X)
    data = _batches(last, codes, x, y, sample_weight)
    if carried.whole:
        data = batches(*data.source, size=len(x))
    risk = Risk(carried.model, carried.loss, data, l2=carried.l2(len(x)))
    refuse_others(last, risk, x, y, sample_weight)
    return risk


def model_of(estimator: Any) -> nn.Module:
    """The parameters of a fitted estimator as a module, without the data.

    Args:
        estimator: As for `risk_of`.

    Returns:
        A module in double precision; of a pipeline, of its last step.

    Raises:
        UnsupportedError: If the estimator cannot be carried over.

    Example:
        >>> from sklearn.cluster import KMeans
        >>> import torch
        >>> two = model_of(KMeans(2, n_init=1, random_state=0).fit([[0.0], [0.0], [4.0]]))
        >>> sorted(two.centres.flatten().tolist())
        [0.0, 4.0]
    """
    _, last = taken_apart(estimator, warn=False)
    return builder_of(last)(last, Codes.of(last)).model


def inputs_of(estimator: Any, X: Any) -> Tensor:
    """Rows as the carried model takes them: after the pipeline's steps, in double precision.

    Args:
        estimator: As for `risk_of`.
        X: Rows as the estimator takes them.

    Returns:
        Shape `(n, f)`.

    Raises:
        DataError: If they are no finite numbers, or have other columns.

    Example:
        >>> from sklearn.linear_model import Ridge
        >>> inputs_of(Ridge().fit([[0.0], [1.0]], [0.0, 1.0]), [[3]])
        tensor([[3.]], dtype=torch.float64)
    """
    before, last = taken_apart(estimator, warn=False)
    return features(before, last, X)


def batches_of(estimator: Any, X: Any, y: Any = None, sample_weight: Any = None) -> Batches:
    """Batches like those of `risk_of`, of other rows: candidates, a pool, a held-out set.

    Args:
        estimator: As for `risk_of`.
        X: Rows as the estimator takes them.
        y: Their labels.
        sample_weight: One for each, if the estimator was fitted with them.

    Returns:
        Batches of features, labels and sample weights.

    Raises:
        DataError: If rows, labels and weights do not fit one another or the estimator.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> fitted = LogisticRegression().fit([[0.0], [1.0]], ["no", "yes"])
        >>> next(iter(batches_of(fitted, [[2.0]], ["yes"])))[1]
        tensor([1])
    """
    before, last = taken_apart(estimator, warn=False)
    return _batches(last, Codes.of(last), features(before, last, X), y, sample_weight)


def _batches(last: Any, codes: Codes, x: Tensor, y: Any, sample_weight: Any) -> Batches:
    return batches(x, codes.numbers(y, x), weights_of(last, sample_weight, len(x)))
