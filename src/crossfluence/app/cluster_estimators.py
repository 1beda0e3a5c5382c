"""k-means and Gaussian mixtures of scikit-learn, explained as deep clusterings are, with the same page."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Id, Objective
from ..clustering.explain import CheckSettings, Clustered, Explanation, explain_clustered
from ..errors import DataError, import_optional

if TYPE_CHECKING:
    from ..clustering.explain import First
    from .forecast import Forecast

METHODS = ("dec", "kmeans", "mixture")
FULL = 5  # rows for each number of a component, at least, for a mixture to have full covariances
STARTS, LONGEST, SETTLED = 10, 10_000, 1e-10


@dataclass(frozen=True)
class EstimatorSettings(CheckSettings):
    """Everything that decides a clustering by scikit-learn and its check.

    Attributes:
        method: "kmeans" or "mixture".
        covariances: Of a mixture, as in `covariance_type`.
    """

    method: str = "kmeans"
    covariances: str = ""


def estimator_settings(method: str, k: int, x: Tensor, **check: Any) -> EstimatorSettings:
    """The settings of a method for some rows.

    Args:
        method: "kmeans" or "mixture".
        k: Clusters.
        x: Features.
        check: As in `CheckSettings`.

    Returns:
        Full covariances where each component has rows enough for them, diagonal ones otherwise.
    """
    n, f = x.shape
    kind = "full" if n / k >= FULL * (f + f * (f + 1) // 2) else "diag"
    return EstimatorSettings(k, method=method, covariances=kind if method == "mixture" else "", **check)


def clustered(
    x: Float[Tensor, "n f"], settings: EstimatorSettings, ids: Sequence[Id] | None = None
) -> tuple[Clustered, Callable[[Tensor], nn.Module]]:
    r"""A clustering by scikit-learn, and how to fit it again.

    A margin of k-means is a difference of squared distances over twice the mean variance $\sigma^2$ within clusters,
    which is held: the log ratio of two densities of that variance, in nats as the margin of a mixture is.

    Args:
        x: Features of comparable size, double precision.
        settings: How.
        ids: n labels.

    Returns:
        The clustering, and a function from sample weights to a model.

    Raises:
        DataError: If a cluster is left with fewer than two rows.
    """
    from .. import Auto
    from ..tabular import margin, risk_of, training_of

    began = time.perf_counter()
    rows = x.numpy()
    fitted = _estimator(settings).fit(rows)
    risk = replace(risk_of(fitted, rows), ids=ids)
    model: Any = risk.model
    means, scale = (model.means, 1.0) if settings.method == "mixture" else (model.centres, _twice_variance(fitted, x))
    _refuse_small(fitted, rows)
    q = (model(x) / scale).softmax(1).detach()
    inverse = Auto().invert(risk)

    def question(row: int, first: int, second: int) -> Objective:
        asked = margin(x[row], first, second)
        return lambda trained: asked(trained) / scale

    found = Clustered(
        settings, risk, inverse, Auto(), q, x, means.detach(), question, time.perf_counter() - began
    )  # fmt: skip
    return found, training_of(fitted, rows)


def explain_estimator(
    x: Float[Tensor, "n f"],
    ids: Sequence[Id],
    settings: EstimatorSettings,
    rows: Sequence[int | None],
    tell: Callable[[First], object] | None = None,
) -> list[Explanation]:
    """Clusters rows, explains some and checks the explanations by fitting again.

    Args:
        x: Features of comparable size, double precision.
        ids: n labels.
        settings: How.
        rows: Those asked about; nothing for one between two clusters.
        tell: As for `explain`.

    Returns:
        One explanation for each.
    """
    found, again = clustered(x, settings, ids)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="sklearn")  # of a fit again that stops at its first step
        return [explain_clustered(found, ids, again, query=row, tell=tell) for row in rows]


def forecast_estimator(x: Float[Tensor, "n f"], settings: EstimatorSettings, questions: int) -> Forecast:
    """Estimates the time and memory of `explain_estimator` on this machine, by clustering once and fitting again once.

    Args:
        x: Features.
        settings: How.
        questions: Rows that are asked about.

    Returns:
        The time of a fit times their number.
    """
    from .forecast import LIBRARIES, Forecast

    found, again = clustered(x, settings)
    began = time.perf_counter()
    again(torch.ones(len(x), dtype=x.dtype))
    fits = min(settings.check, len(x)) + settings.draws + len(settings.sizes) + 2
    seconds = found.seconds + questions * fits * (time.perf_counter() - began)
    return Forecast(seconds, LIBRARIES + 8 * (found.risk.p**2 * 6 + 8 * x.numel()) / 2**30)


def _estimator(settings: EstimatorSettings) -> Any:
    if settings.method == "mixture":
        mixture = import_optional("sklearn.mixture", "--method mixture", "tabular").GaussianMixture
        return mixture(
            settings.k, covariance_type=settings.covariances, tol=SETTLED, max_iter=LONGEST, random_state=settings.seed
        )
    kmeans = import_optional("sklearn.cluster", "--method kmeans", "tabular").KMeans
    return kmeans(settings.k, n_init=STARTS, tol=0.0, max_iter=LONGEST, random_state=settings.seed)


def _twice_variance(fitted: Any, x: Tensor) -> float:
    """Twice the mean variance of a feature within its cluster."""
    return 2 * float(fitted.inertia_) / x.numel() or 1.0


def _refuse_small(fitted: Any, rows: Any) -> None:
    held = fitted.predict(rows).tolist()
    for cluster in range(len(getattr(fitted, "cluster_centers_", getattr(fitted, "means_", ())))):
        if held.count(cluster) < 2:
            raise DataError(
                f"Cluster {cluster} holds {held.count(cluster)} rows; needed at least 2, so that one can be left out. "
                f"Ask for fewer clusters with --k."
            )
