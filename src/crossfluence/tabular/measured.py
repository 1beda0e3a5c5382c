"""Gap and accuracy on test rows, with intervals from drawing the rows again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .gaps import RATES, GroupGap

DRAWS = 2000
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """A number with a 95 % interval.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """A model on test rows.

    Attributes:
        gap: The hard gap, with the interval of drawing the rows again.
        accuracy: Share of labels that are predicted.
        rates: Of each group, by the name of the rate.
    """

    gap: Interval
    accuracy: float
    rates: dict[str, dict[str, float]]


def measured(gap: GroupGap, model: nn.Module, seed: int = 0) -> Measured:
    """The hard gap of a model with its interval, and its accuracy.

    Args:
        gap: With the test rows.
        model: A classifier.
        seed: Of the draws.

    Returns:
        Both.
    """
    chosen = _chosen(gap, model)
    cells = _cells(gap, [chosen])
    drawn = counted_gap(gap.metric, _drawn(cells, seed))
    low, high = np.quantile(drawn, QUANTILES)
    value = float(counted_gap(gap.metric, cells[None])[0])
    rates = {rate: {str(name): value for name, value in each.items()} for rate, each in gap.rates(model).items()}
    return Measured(Interval(value, float(low), float(high)), float((chosen == gap.y).double().mean()), rates)


def paired(gap: GroupGap, before: nn.Module, after: nn.Module, share: float = 1.0, seed: int = 0) -> Interval:
    """The gap of one model less a share of that of another, both on the same rows in each draw.

    Args:
        gap: With the test rows.
        before: One model.
        after: The other, whose gap comes first.
        share: Of the gap before.
        seed: Of the draws.

    Returns:
        The difference, with its interval.
    """
    cells = _cells(gap, [_chosen(gap, before), _chosen(gap, after)])  # (groups, labels, before, after)

    def difference(counts: np.ndarray) -> np.ndarray:
        first, second = counts.sum(4), counts.sum(3)
        return counted_gap(gap.metric, second) - share * counted_gap(gap.metric, first)

    low, high = np.quantile(difference(_drawn(cells, seed)), QUANTILES)
    return Interval(float(difference(cells[None])[0]), float(low), float(high))


def counted_gap(metric: str, counts: np.ndarray) -> np.ndarray:
    """Hard gaps from numbers of rows, `(draws, groups, labels, predictions)`: the mean over the metric's rates.

    Args:
        metric: One of `METRICS`.
        counts: Rows in each cell.

    Returns:
        One gap for each draw; 0 where a rate is undefined.
    """
    no, yes = counts[..., 0], counts[..., 1]  # (draws, groups, labels)
    parts = {
        "selection rate": (yes.sum(2), counts.sum((2, 3))),
        "true positive rate": (yes[..., 1], yes[..., 1] + no[..., 1]),
        "false positive rate": (yes[..., 0], yes[..., 0] + no[..., 0]),
        "false negative rate": (no[..., 1], yes[..., 1] + no[..., 1]),
        "false discovery rate": (yes[..., 0], yes.sum(2)),
    }
    gaps = [np.ptp(part / np.maximum(whole, 1), axis=1) for part, whole in (parts[rate] for rate in RATES[metric])]
    return np.mean(gaps, axis=0)


def _chosen(gap: GroupGap, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return (gap.decide(model, gap.x) > 0).long()


def _cells(gap: GroupGap, chosen: list[Tensor]) -> np.ndarray:
    """Number of rows of each group, label and prediction."""
    shape = (len(gap.names), 2, *[2] * len(chosen))
    place = np.ravel_multi_index([part.long().numpy() for part in (gap.groups, gap.y, *chosen)], shape)
    return np.bincount(place, minlength=int(np.prod(shape))).reshape(shape)


def _drawn(cells: np.ndarray, seed: int) -> np.ndarray:
    """Numbers of rows in each cell when as many rows are drawn again, with replacement."""
    generator, n = np.random.default_rng(seed), int(cells.sum())
    return generator.multinomial(n, cells.ravel() / n, size=DRAWS).reshape(DRAWS, *cells.shape)
