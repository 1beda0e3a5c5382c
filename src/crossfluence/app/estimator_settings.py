"""Settings of clusterings by scikit-learn, and their time; they need no PyTorch, so that a time is foretold at once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..clustering.settings import CheckSettings
from ..errors import import_optional
from .forecast import LIBRARIES, STARTED, Forecast, beside_others, seconds_of

METHODS = ("dec", "kmeans", "mixture")
FULL = 5  # rows for each number of a component, at least, for a mixture to have full covariances
STARTS, LONGEST, SETTLED = 10, 10_000, 1e-10
TRIED, AGAIN = 2_000, 0.3  # rows of a trial; a fit that starts where one ended, in such fits


@dataclass(frozen=True)
class EstimatorSettings(CheckSettings):
    """Everything that decides a clustering by scikit-learn and its check.

    Attributes:
        method: "kmeans" or "mixture".
        covariances: Of a mixture, as in `covariance_type`.
    """

    method: str = "kmeans"
    covariances: str = ""


def estimator_settings(method: str, k: int, n: int, columns: int, **check: Any) -> EstimatorSettings:
    """The settings of a method for some rows.

    Args:
        method: "kmeans" or "mixture".
        k: Clusters.
        n: Rows.
        columns: Columns.
        check: As in `CheckSettings`.

    Returns:
        Full covariances where each component has rows enough for them, diagonal ones otherwise.
    """
    kind = "full" if n / k >= FULL * (columns + columns * (columns + 1) // 2) else "diag"
    return EstimatorSettings(k, method=method, covariances=kind if method == "mixture" else "", **check)


def estimator_of(settings: EstimatorSettings) -> Any:
    """The estimator before it is fitted."""
    if settings.method == "mixture":
        mixture = import_optional("sklearn.mixture", "--method mixture", "tabular").GaussianMixture
        return mixture(
            settings.k, covariance_type=settings.covariances, tol=SETTLED, max_iter=LONGEST, random_state=settings.seed
        )
    kmeans = import_optional("sklearn.cluster", "--method kmeans", "tabular").KMeans
    return kmeans(settings.k, n_init=STARTS, tol=0.0, max_iter=LONGEST, random_state=settings.seed)


def forecast_estimator(n: int, columns: int, settings: EstimatorSettings, questions: int) -> Forecast:
    """Estimates the time and memory of explaining such a clustering on this machine, from a fit of random rows.

    Args:
        n: Rows.
        columns: Columns.
        settings: How.
        questions: Rows that are asked about.

    Returns:
        The time of a fit times their number.
    """
    m = min(n, TRIED)
    rows = np.random.default_rng(0).normal(size=(m, columns)) + 4 * (np.arange(m) % settings.k)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        once = seconds_of(lambda: estimator_of(settings).fit(rows)) * n / m
    fits = min(settings.check, n) + settings.draws + len(settings.sizes) + 2
    numbers = settings.k * (columns + (columns**2 if settings.covariances == "full" else columns))
    seconds = once * (1 + questions * fits * AGAIN) * beside_others(1)
    return Forecast(STARTED + seconds, LIBRARIES + 8 * (6 * numbers**2 + 8 * n * columns) / 2**30)
