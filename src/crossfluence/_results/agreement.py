"""Predicted effects beside those that retraining found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .._require import require
from ..errors import import_optional
from .noise import reliability
from .scores import Scores

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RESAMPLES = 2000
LEVEL = 0.95


class Estimate(float):
    """A number with its interval; use it as a plain float.

    Attributes:
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.

    Example:
        >>> r = Estimate(0.9, 0.8, 0.95)
        >>> r > 0.85, r
        (True, 0.900 [0.800, 0.950])
    """

    low: float
    high: float

    def __new__(cls, value: float, low: float, high: float) -> Estimate:
        made = super().__new__(cls, value)
        made.low, made.high = float(low), float(high)
        return made

    def __reduce__(self) -> tuple[type, tuple[float, float, float]]:
        return Estimate, (float(self), self.low, self.high)

    def __repr__(self) -> str:
        return f"{float(self):.3f} [{self.low:.3f}, {self.high:.3f}]"

    __str__ = __repr__


@dataclass(frozen=True, eq=False)
class Agreement:
    """Agreement of predicted effects with achieved ones; each figure with a 95 % bootstrap interval.

    Attributes:
        pearson: Linear correlation over all samples and objectives.
        spearman: Rank correlation.
        slope: Achieved per predicted (least squares with an intercept): 1 means that the sizes are right,
            less that predictions overshoot. Has no meaning for gradient similarity, which has no unit.
        pearson_by_objective: One correlation for each objective.
        predicted: Shape `(n, m)`.
        actual: Shape `(n, m)`.
        ids: The n samples or groups compared.
        objectives: The m questions.
        method: How the predictions came about.
        ceiling: The highest correlation that any prediction can have with effects that carry errors (`leave_out` over
            several seeds): the root of the share of their variance that is no noise. `None` where they carry none.
    """

    pearson: Estimate
    spearman: Estimate
    slope: Estimate
    pearson_by_objective: dict[str, float]
    predicted: Float[np.ndarray, "n m"] = field(repr=False)
    actual: Float[np.ndarray, "n m"] = field(repr=False)
    ids: tuple = field(repr=False)
    objectives: tuple[str, ...] = field(repr=False)
    method: str = ""
    ceiling: float | None = None

    def plot(self) -> Figure:
        """Predicted against retrained, with the line on which they are equal.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: If plotly is not installed.
        """
        go = import_optional("plotly.graph_objects", "Agreement.plot", "plot")
        dots = [
            go.Scatter(
                x=self.predicted[:, column], y=self.actual[:, column], mode="markers", name=name,
                text=[str(label) for label in self.ids], hovertemplate="%{text}: %{x:.4g} → %{y:.4g}",
            )
            for column, name in enumerate(self.objectives)
        ]  # fmt: skip
        ends = [
            float(min(self.predicted.min(), self.actual.min())),
            float(max(self.predicted.max(), self.actual.max())),
        ]
        line = go.Scatter(x=ends, y=ends, mode="lines", name="equal", line={"dash": "dot", "color": "#888888"})
        layout = go.Layout(
            title=f"Predicted against retrained: Pearson {self.pearson}, slope {self.slope}",
            xaxis_title="predicted effect", yaxis_title="effect found by retraining", template="plotly_white",
        )  # fmt: skip
        return go.Figure([*dots, line], layout)


def compare(predicted: Scores, actual: Scores) -> Agreement:
    """Sets predictions beside the truth found by retraining.

    Args:
        predicted: From `influence`; may hold more ids than were retrained. Sum groups first (`Scores.sum_by`).
        actual: From `leave_out`; its ids and objectives are the ones compared. Errors that either carries lower the
            correlation; those of `actual` also give its `ceiling`.

    Returns:
        Pearson, Spearman and slope over all pairs, with intervals from resampling the ids.

    Raises:
        IdError: If `actual` holds an id or an objective that was not predicted.
        ValueError: If there are fewer than three ids.

    Example:
        >>> import torch
        >>> truth = Scores(torch.tensor([[1.0], [2.0], [3.0], [5.0]]), (0, 1, 2, 3), ("m",), "retraining")
        >>> guess = Scores(truth.values / 2, truth.ids, truth.objectives, "by hand")
        >>> compare(guess, truth).slope
        2.000 [2.000, 2.000]
    """
    for name, scores in (("predicted", predicted), ("actual", actual)):
        require(scores, Scores, f"compare({name}=)", "Scores", "compare(influence(...), leave_out(...))")
    if len(actual) < 3:
        raise ValueError(f"Got {len(actual)} retrained ids; needed at least 3 to speak of agreement.")
    chosen = predicted.select(actual.ids)
    columns = [chosen._column(name) for name in actual.objectives]
    x = chosen.values[:, columns].detach().cpu().double().numpy()
    y = actual.values.detach().cpu().double().numpy()
    return Agreement(
        *_with_intervals(x, y),
        pearson_by_objective={
            name: _pearson(x[:, [column]], y[:, [column]]) for column, name in enumerate(actual.objectives)
        },
        predicted=x,
        actual=y,
        ids=actual.ids,
        objectives=actual.objectives,
        method=predicted.method,
        ceiling=None if actual.errors is None else reliability(actual.values.flatten(), actual.errors.flatten()) ** 0.5,
    )


def mean_rank_correlation(x: Float[np.ndarray, "n m"], y: Float[np.ndarray, "n m"]) -> Estimate:
    """The rank correlation of each column, averaged over the columns.

    Args:
        x: Predictions.
        y: What was found.

    Returns:
        With an interval from resampling the rows; columns without variation are left out.
    """
    ranked = [(_ranks(x[:, [column]]), _ranks(y[:, [column]])) for column in range(x.shape[1])]

    def statistic(counts: np.ndarray) -> np.ndarray:
        found = np.stack([_correlation(_moments(u, v, counts)) for u, v in ranked])
        defined = np.isfinite(found)
        return _ratio(np.where(defined, found, 0).sum(0), defined.sum(0).astype(float))

    return _estimate(statistic, len(x))


def _with_intervals(x: np.ndarray, y: np.ndarray) -> list[Estimate]:
    ranked = _ranks(x), _ranks(y)
    statistics = ((_correlation, (x, y)), (_correlation, ranked), (_regression, (x, y)))
    return [_estimate(lambda counts, f=f, u=u, v=v: f(_moments(u, v, counts)), len(x)) for f, (u, v) in statistics]


def _estimate(statistic: Callable[[np.ndarray], np.ndarray], n: int) -> Estimate:
    """A statistic of rows, which counts how often each of r samples holds each row, `(r, n)`, with its interval."""
    resampled = statistic(np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES))
    defined = resampled[np.isfinite(resampled)]  # a resample of one id alone has no correlation
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(defined) else (np.nan, np.nan)
    return Estimate(statistic(np.ones((1, n)))[0], low, high)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float(_correlation(_moments(x, y, np.ones((1, len(x)))))[0])


def _moments(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Variances and covariance `(3, r)` of all pairs when row i of `x` and `y` is drawn `counts[:, i]` times."""
    x, y = x - x.mean(), y - y.mean()  # shifted first: moments of large means would cancel
    sums = np.stack([x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)])  # (5, n)
    mean_x, mean_y, xx, yy, xy = sums @ counts.T / (counts.sum(1) * x.shape[1])
    return np.stack([xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y])


def _correlation(moments: np.ndarray) -> np.ndarray:
    return _ratio(moments[2], np.sqrt(np.clip(moments[0], 0, None) * np.clip(moments[1], 0, None)))


def _regression(moments: np.ndarray) -> np.ndarray:
    return _ratio(moments[2], moments[0])


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    highest = counts.cumsum()
    return (highest - (counts - 1) / 2)[inverse.reshape(values.shape)]  # ties share their mean rank
