"""Gaps between groups as objectives: soft for gradients, hard as reported."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DataError, ObjectiveError

Aggregate: TypeAlias = Literal["worst", "mean"]

SOFTNESS, SHRINKING = 0.3, -0.2
"""Temperature per standard deviation of the logits, and the power of the number of rows by which it falls."""

RATES: dict[str, tuple[str, ...]] = {
    "statistical-parity": ("selection rate",),
    "equal-opportunity": ("true positive rate",),
    "equalised-odds": ("true positive rate", "false positive rate"),
    "fpr": ("false positive rate",),
    "fnr": ("false negative rate",),
    "fdr": ("false discovery rate",),
}
METRICS = tuple(RATES)
"""Names of the metrics."""


def decision(model: nn.Module, x: Tensor) -> Tensor:
    """The log odds `(b,)` of a model with one output for each row."""
    found = model(x)
    if found.ndim == 2 and found.shape[1] == 1:
        return found[:, 0]
    if found.ndim == 1:
        return found
    raise ObjectiveError(
        f"The model returned shape {tuple(found.shape)} for {len(x)} rows; a gap needs one decision value for each. "
        f"Type group_gap(..., decide=lambda model, x: model(x)[:, 1] - model(x)[:, 0])."
    )


@dataclass(frozen=True, eq=False)
class GroupGap:
    """The root mean square of a metric's gaps between groups, through the sigmoid; made by `group_gap`.

    Attributes:
        metric: One of `METRICS`.
        x: Features, `(n, f)`.
        y: Labels, 1 for the favourable class, `(n,)`.
        groups: Number of each row's group, `(n,)`.
        names: Of the groups.
        temperature: Of the sigmoid, in units of the decision value.
        decide: `(model, x) -> (n,)` decision values; above zero is the favourable class.
    """

    metric: str
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    groups: Tensor = field(repr=False)
    names: tuple[Hashable, ...]
    temperature: float
    decide: Callable[[nn.Module, Tensor], Tensor] = field(default=decision, repr=False)

    def __call__(self, model: nn.Module) -> Tensor:
        """The soft gap, a scalar: 0 where all groups are treated alike."""
        soft = torch.sigmoid(self.decide(model, self.x) / self.temperature)
        rates = group_rates(self.metric, soft, self.y, self.groups, self.names)
        pairs = list(combinations(range(len(self.names)), 2))
        first, second = (rates[:, [pair[place] for pair in pairs]] for place in (0, 1))
        return torch.linalg.vector_norm(first - second) / (first.numel()) ** 0.5

    def rates(self, model: nn.Module) -> dict[str, dict[Hashable, float]]:
        """The metric's hard rates of each group."""
        found = group_rates(self.metric, self._hard(model), self.y, self.groups, self.names).tolist()
        named = [dict(zip(self.names, row, strict=True)) for row in found]
        return dict(zip(RATES[self.metric], named, strict=True))

    def hard(self, model: nn.Module, aggregate: Aggregate = "mean") -> float:
        """The gap of the predictions themselves: the largest difference between groups.

        Args:
            model: A classifier.
            aggregate: Of metrics with two rates, their gaps' mean or the worst of them.

        Returns:
            A number in [0, 1].
        """
        return hard_gap(self.metric, self.y, self._hard(model), self.groups, self.names, aggregate)

    def _hard(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return (self.decide(model, self.x) > 0).to(self.x.dtype)

    def at(self, model: nn.Module) -> GroupGap:
        """The same gap with the temperature that suits a model's decision values; see `group_gap`."""
        with torch.no_grad():
            return replace(self, temperature=_temperature(self.decide(model, self.x), self))


def group_gap(
    metric: str,
    x: Tensor,
    y: Sequence[float] | np.ndarray | Tensor,
    groups: Sequence[Hashable] | np.ndarray,
    *,
    at: nn.Module | None = None,
    temperature: float | None = None,
    decide: Callable[[nn.Module, Tensor], Tensor] = decision,
) -> GroupGap:
    r"""The gap between groups as an objective: how differently a classifier with two classes treats them.

    Soft, so that it has a gradient: each prediction counts as $\sigma(f/\tau)$. The hard gap, as fairlearn computes it,
    is `.hard(model)`. Positive scores widen the gap.

    Args:
        metric: "statistical-parity" (selection rates), "equal-opportunity" (true positive rates), "equalised-odds"
            (true and false positive rates), "fpr", "fnr" or "fdr" (false discoveries among those selected).
        x: Features `(n, f)`, as the model takes them.
        y: Labels `(n,)`, 1 for the favourable class and 0 for the other.
        groups: The group of each row.
        at: A trained model from which the temperature is taken: .3 times the mean over the metric's cells (such as
            the positives of one group) of the standard deviation of the decision values times rows^-.2.
        temperature: The number itself; without either it is 1.
        decide: `(model, x) -> (n,)`, where a model gives something else than one decision value for each row.

    Returns:
        An objective, a difference of rates.

    Raises:
        ObjectiveError: If the metric is unknown, there are not two groups, or a rate is undefined in one.
        DataError: If lengths differ, labels are not 0 and 1, or a group is missing.

    Example:
        >>> x = torch.tensor([[1.0], [1.0], [-1.0], [1.0]])
        >>> gap = group_gap("equal-opportunity", x, [1, 1, 1, 1], ["a", "a", "b", "b"])
        >>> gap.hard(nn.Identity())
        0.5
    """
    if metric not in RATES:
        raise ObjectiveError(f"There is no metric {metric!r}; there are {', '.join(METRICS)}.")
    labels = torch.as_tensor(np.asarray(y), dtype=x.dtype)
    held = np.asarray(groups, dtype=object)
    if not len(x) == len(labels) == len(held) or labels.ndim != 1 or held.ndim != 1:
        raise DataError(f"Got {len(x)} rows, {len(labels)} labels, {len(held)} groups; needed one of each.")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise DataError(f"Labels must be 0 and 1; got {sorted(set(labels.tolist()))[:5]}.")
    missing = [row for row, name in enumerate(list(held)) if name is None or name != name]
    if missing:
        raise DataError(f"Row {missing[0]} has no group ({len(missing)} such rows). Name it, or leave these rows out.")
    names = tuple(sorted(set(held), key=str))
    if len(names) < 2:
        raise ObjectiveError(f"All {len(x)} rows are of one group, {held[0]!r}; a gap needs at least two.")
    place = {name: number for number, name in enumerate(names)}
    codes = torch.tensor([place[name] for name in list(held)])
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ObjectiveError(f"Got temperature={temperature}; needed a positive number, such as 0.2.")
    made = GroupGap(metric, x, labels, codes, names, temperature or 1.0, decide)
    _refuse_undefined(made)
    return made.at(at) if at is not None and temperature is None else made


def group_rates(metric: str, chosen: Tensor, y: Tensor, groups: Tensor, names: Sequence[Hashable]) -> Tensor:
    """The rates of a metric in each group.

    Args:
        metric: One of `METRICS`.
        chosen: By how much each row is given the favourable class, in [0, 1].
        y: Labels, 0 or 1.
        groups: Number of each row's group.
        names: Of the groups.

    Returns:
        Shape `(rates, groups)`.
    """
    return torch.stack([_rate(rate, chosen, y, groups, len(names)) for rate in RATES[metric]])


def _rate(rate: str, chosen: Tensor, y: Tensor, groups: Tensor, count: int) -> Tensor:
    part, whole = {
        "selection rate": (chosen, torch.ones_like(y)),
        "true positive rate": (chosen * y, y),
        "false positive rate": (chosen * (1 - y), 1 - y),
        "false negative rate": ((1 - chosen) * y, y),
        "false discovery rate": (chosen * (1 - y), chosen),
    }[rate]
    sums = [chosen.new_zeros(count).index_add(0, groups, values) for values in (part, whole.to(chosen))]
    return sums[0] / sums[1]


def hard_gap(
    metric: str, y: Tensor, chosen: Tensor, groups: Tensor, names: Sequence[Hashable], aggregate: Aggregate = "mean"
) -> float:
    """The largest difference between groups, of predictions 0 and 1; as fairlearn's `between_groups`.

    Args:
        metric: One of `METRICS`.
        y: Labels, 0 or 1.
        chosen: Predictions, 0 or 1.
        groups: Number of each row's group.
        names: Of the groups.
        aggregate: Of metrics with two rates.

    Returns:
        A number in [0, 1].

    Raises:
        ObjectiveError: If a rate is undefined: no row of a group is given the favourable class.
    """
    rates = group_rates(metric, chosen, y, groups, names)
    if not bool(rates.isfinite().all()):
        place = int((~rates.isfinite()).any(0).nonzero()[0])
        raise ObjectiveError(
            f"The {RATES[metric][0]} of group {names[place]!r} is undefined: no row of it is given the favourable "
            f"class."
        )
    gaps = rates.amax(1) - rates.amin(1)
    return float(gaps.max() if aggregate == "worst" else gaps.mean())


def _cells(gap: GroupGap) -> list[Tensor]:
    """The rows over which each rate of each group is taken."""
    of = {"true positive rate": [1], "false negative rate": [1], "false positive rate": [0]}
    return [
        (gap.groups == group) & torch.isin(gap.y, torch.tensor(of.get(rate, [0, 1]), dtype=gap.y.dtype))
        for rate in RATES[gap.metric]
        for group in range(len(gap.names))
    ]


def _refuse_undefined(gap: GroupGap) -> None:
    kinds = {"true positive rate": "positives", "false negative rate": "positives", "false positive rate": "negatives"}
    for number, cell in enumerate(_cells(gap)):
        if not bool(cell.any()):
            rate, name = RATES[gap.metric][number // len(gap.names)], gap.names[number % len(gap.names)]
            raise ObjectiveError(
                f"The {rate} of group {name!r} is undefined: it has no {kinds.get(rate, 'rows')}. Leave the group out, "
                f"join it with another, or ask for another metric."
            )


def _temperature(decided: Tensor, gap: GroupGap) -> float:
    spreads = [float(decided[cell].std(correction=0)) * int(cell.sum()) ** SHRINKING for cell in _cells(gap)]
    found = SOFTNESS * sum(spreads) / len(spreads)
    if not found > 0:
        raise ObjectiveError("All decision values are the same, so the model separates nothing. Give temperature=1.0.")
    return found
