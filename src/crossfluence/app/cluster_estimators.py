"""k-means and Gaussian mixtures of scikit-learn, explained as deep clusterings are, with the same page."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn

from .._types import Id, Objective
from ..clustering.explain import Clustered, Explanation, explain_clustered
from ..errors import DataError
from .estimator_settings import EstimatorSettings, estimator_of

if TYPE_CHECKING:
    from ..clustering.explain import First


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
    fitted = estimator_of(settings).fit(rows)
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
