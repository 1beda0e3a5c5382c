"""Fitting a scikit-learn estimator again with other sample weights: a training function for `leave_out`."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DataError, import_optional
from .carried import builder_of
from .estimators import batches_of
from .labels import Rows
from .parts import taken_apart
from .rows import Codes

FITS, SETTLED = 30, 1e-13  # fits of a network, one after the other, and by how much the last one may lower its loss


@dataclass(frozen=True, eq=False)
class Refit:
    """A function from sample weights to a fitted model; made by `training_of`.

    Attributes:
        estimator: Fitted, no pipeline.
        rows: Features, labels and sample weights of all rows.
    """

    estimator: Any
    rows: Rows = field(repr=False)

    def __call__(self, weights: Tensor, data: Iterable[Rows] | None = None) -> nn.Module:
        """Fits again and carries the parameters over.

        Args:
            weights: Shape `(n,)`; 0 for a row that is left out.
            data: Other rows in the form of a risk's batches, one weight for each; default: those it was made with.

        Returns:
            A module like the risk's.

        Raises:
            DataError: If weights and rows do not fit, or a class is left without rows.
        """
        x, y, own = self.rows if data is None else tuple(map(torch.cat, zip(*data, strict=True)))
        if len(weights) != len(x):
            raise DataError(f"Got {len(weights)} weights for {len(x)} rows; needed one for each.")
        kept = weights > 0
        labels = Codes.of(self.estimator).labels(y[kept])
        fitted = _fitted(_fresh(self.estimator), x[kept].numpy(), labels, (own * weights)[kept].numpy())
        _refuse_lost_classes(self.estimator, fitted)
        return builder_of(fitted)(fitted, Codes.of(fitted)).model


def training_of(estimator: Any, X: Any, y: Any = None, sample_weight: Any = None) -> Refit:
    """Fits scikit-learn's estimator again with other sample weights: the ground truth for the scores of `risk_of`.

    Convex estimators start afresh; networks and clusterings start where the fitted one ended, so that they come back to
    the same solution. The steps of a pipeline before the last are held fixed.

    Args:
        estimator: As for `risk_of`.
        X: The rows it was fitted on.
        y: Their labels.
        sample_weight: As given to `fit`.

    Returns:
        A training function: weights `(n,)` to a module.

    Raises:
        UnsupportedError: If the estimator cannot be carried over.
        DataError: If the rows are not what it was fitted on.

    Example:
        >>> from sklearn.linear_model import Ridge
        >>> from crossfluence import leave_out
        >>> X, y = [[1.0], [1.0], [1.0]], [0.0, 0.0, 3.0]
        >>> train = training_of(Ridge(alpha=0.0, fit_intercept=False).fit(X, y), X, y)
        >>> leave_out(train, lambda model: model.weight[0, 0], [2], n=3).values.item()
        1.0
    """
    _, last = taken_apart(estimator, warn=False)
    builder_of(last)(last, Codes.of(last))  # what cannot be carried over is refused before anything is fitted
    held = batches_of(estimator, X, y, sample_weight)
    return Refit(copy.deepcopy(last), tuple(held.source))  # pyright: ignore[reportArgumentType]


def _fresh(estimator: Any) -> Any:
    """A copy that `fit` begins as it should."""
    clone = import_optional("sklearn.base", "Fitting again", "tabular").clone

    name = type(estimator).__name__
    if name.startswith("MLP"):
        return copy.deepcopy(estimator).set_params(warm_start=True)
    if name == "KMeans":
        return clone(estimator).set_params(init=np.array(estimator.cluster_centers_), n_init=1)
    if name == "GaussianMixture":
        start = {"weights_init": estimator.weights_, "means_init": estimator.means_}
        return clone(estimator).set_params(**start, precisions_init=estimator.precisions_, n_init=1)
    return clone(estimator)


def _fitted(fresh: Any, x: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Any:
    name = type(fresh).__name__
    if name == "GaussianMixture":
        return fresh.fit(np.repeat(x, _whole(weights), axis=0))
    given = {} if (weights == 1).all() else {"sample_weight": weights}
    if name == "KMeans":
        return fresh.fit(x, **given)
    fitted = fresh.fit(x, labels, **given)
    if name.startswith("MLP") and fitted.solver == "lbfgs":
        _settle(fitted, x, labels, given)
    return fitted


def _settle(network: Any, x: np.ndarray, labels: np.ndarray, given: dict[str, np.ndarray]) -> None:
    """Goes on from where L-BFGS gave up, which is where its loss fell by 1e-9 in a step, not where it ended."""
    for _ in range(FITS):
        before = network.loss_
        network.fit(x, labels, **given)
        if not network.loss_ < before * (1 - SETTLED):
            return


def _whole(weights: np.ndarray) -> np.ndarray:
    if (weights != np.round(weights)).any():
        raise DataError("A GaussianMixture is fitted without sample weights; needed whole numbers, such as 0, 1 and 2.")
    return weights.astype(int)


def _refuse_lost_classes(before: Any, after: Any) -> None:
    held, left = (set(np.ravel(getattr(each, "classes_", [])).tolist()) for each in (before, after))
    lost = held - left
    if lost:
        raise DataError(f"Without these rows no row of the class {min(lost, key=str)!r} is left. Leave some in.")
