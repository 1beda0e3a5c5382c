"""Removal curves: what happens when more and more of the strongest samples go, beside as many random ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from .._require import listed, require
from .._results.agreement import LEVEL, Estimate
from .._results.scores import Scores
from .._types import Id, Objective
from ..errors import DataError, import_optional
from .leave_out import Training, leave_out

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """Effects of groups of growing size, with the sign of scores: m(trained on all) - m(trained without the group).

    Attributes:
        sizes: Samples removed together.
        achieved: Effect of the strongest, by training again.
        predicted: Sum of their scores.
        random: Mean effect of as many random samples, with the range that holds 95 % of the draws.
        objective: The question.
        effect: "raises" or "lowers": which end of the scores was removed.
    """

    sizes: tuple[int, ...]
    achieved: tuple[float, ...]
    predicted: tuple[float, ...]
    random: tuple[Estimate, ...] = field(repr=False)
    objective: str
    effect: str

    def plot(self) -> Figure:
        """The three curves over the number of samples removed.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: If plotly is not installed.
        """
        go = import_optional("plotly.graph_objects", "RemovalCurve.plot", "plot")
        middle = np.array(self.random)
        spread = {
            "type": "data",
            "array": np.array([one.high for one in self.random]) - middle,
            "arrayminus": middle - np.array([one.low for one in self.random]),
        }
        curves = [
            go.Scatter(x=self.sizes, y=self.achieved, name="strongest, retrained"),
            go.Scatter(x=self.sizes, y=self.predicted, name="strongest, predicted", line={"dash": "dot"}),
            go.Scatter(x=self.sizes, y=middle, name="random, retrained", error_y=spread),
        ]
        layout = go.Layout(
            xaxis_title="samples removed", yaxis_title=f"their effect on {self.objective}", template="plotly_white"
        )
        return go.Figure(curves, layout)


def removal_curve(
    scores: Scores,
    train: Training,
    objective: Objective,
    sizes: Sequence[int],
    *,
    effect: Literal["raises", "lowers"] = "raises",
    draws: int = 10,
    seed: int = 0,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
) -> RemovalCurve:
    """Trains again without the k strongest samples, and without k random ones, for each k.

    Args:
        scores: Of all samples, for one question.
        train: As in `leave_out`.
        objective: The same question.
        sizes: The numbers k.
        effect: Whether the samples go that raised the objective most, or that lowered it most.
        draws: Random groups of each size.
        seed: Of the random groups.
        executor: As in `leave_out`.
        store: As in `leave_out`.

    Returns:
        The effects of all groups.

    Raises:
        DataError: If a size is not between 1 and the number of samples with that effect, or stands twice; if there is
            no draw, or several questions.
        UnsupportedError: If there are no scores, no training or no question.

    Example:
        >>> from crossfluence import SGD, Recipe, influence
        >>> x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> loss = lambda model, batch: (model(torch.ones_like(batch)) - batch).square().sum(1)
        >>> recipe = Recipe(torch.nn.Linear(1, 1).double(), loss, x, optimizer=SGD(0.1), epochs=100)
        >>> ask = lambda model: model(torch.ones(1, 1, dtype=torch.float64)).sum()
        >>> scores = influence(recipe.risk(recipe.train()), ask)
        >>> curve = removal_curve(scores, recipe, ask, [3, 6])
        >>> [top > high for top, high in zip(curve.achieved, [one.high for one in curve.random])]
        [True, True]
    """
    require(scores, Scores, "removal_curve", "Scores", "removal_curve(influence(...), train, objective, sizes)")
    if len(scores.objectives) != 1:
        raise DataError(f"Got scores of {len(scores.objectives)} questions; a removal curve follows one.")
    ranked = [label for label, _ in scores.top(len(scores), effect=effect)]
    sizes = listed(sizes, "sizes=")
    if not sizes or not all(isinstance(size, Integral) and 1 <= size <= len(ranked) for size in sizes):
        raise DataError(f"Got sizes={sizes}; needed 1 to {len(ranked)}, the number of samples with this effect.")
    if len(set(sizes)) != len(sizes) or draws < 1:
        raise DataError(f"Got sizes={sizes} and draws={draws}; needed each size once, and at least one draw of each.")
    strongest: dict[Id, list[Id]] = {("strongest", size): ranked[:size] for size in sizes}
    generator = torch.Generator().manual_seed(seed)
    random: dict[Id, list[Id]] = {
        ("random", size, draw): [scores.ids[row] for row in torch.randperm(len(scores), generator=generator)[:size]]
        for size in sizes
        for draw in range(draws)
    }
    truth = leave_out(
        train, objective, strongest | random, n=len(scores), ids=scores.ids, executor=executor, store=store
    )
    by_size = truth.select(random).values.reshape(len(sizes), draws)
    return RemovalCurve(
        tuple(sizes),
        tuple(truth.select(strongest).values[:, 0].tolist()),
        tuple(scores.sum_by(strongest).values[:, 0].tolist()),
        tuple(_spread(effects.numpy()) for effects in by_size),
        scores.objectives[0],
        effect,
    )


def _spread(effects: np.ndarray) -> Estimate:
    return Estimate(effects.mean(), *np.quantile(effects, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
