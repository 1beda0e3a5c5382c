"""The exact first-order answer: derivatives through every step of a training, found by going through it backwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from .._autodiff.params import fingerprint
from .._evaluation.trials import final_gradient, tried, tried_windows
from .._require import require_question, require_recipe
from .._results.scores import Scores, SolveReport
from .._results.verdict import ROUGH, announce
from .._training.recipe import Recipe
from .._types import Batch, Id, Objective
from ..errors import DataError
from .unrolled import Put, differentiate_training

By: TypeAlias = Literal["sample", "step"]


def replay(
    recipe: Recipe,
    objective: Objective,
    *,
    ids: Sequence[Id] | None = None,
    keep: int | None = None,
    groups: int = 3,
    by: By = "sample",
) -> Scores:
    r"""Influence of each training sample on each objective, exact to first order, through every step of the training.

    $$\text{scores}_i = \partial\, m(\theta_T(w)) / \partial w_i \approx
    m(\text{trained on all}) - m(\text{trained without sample } i)$$

    Unlike `influence` it needs no minimum: whatever training did, early stopping, mini-batches in their order,
    momentum, a moving target, is in the derivative. It costs about four or five trainings for one objective; between
    the points that memory holds, training runs again. The three trainings that test the answer run together.

    Args:
        recipe: The training; it is run once to see where it ends.
        objective: The question, or several: all are answered in one sweep.
        ids: n labels, default 0 to n-1.
        keep: Points of the training that are kept at once, each as large as parameters and optimiser state; default
            as many as fit into 256 MiB, and at least twice the square root of the steps. With fewer, parts of the
            training run more often; with one for each step, none runs twice.
        groups: Left out in trainings that run together, to test the answer: `scores.verdict` is by how far they agree.
            0 for none. With `by="step"`, groups of steps.
        by: "sample", or "step": one score for each step, the effect of all that its samples did in it. Ids are the
            numbers of the steps, from 0; `sum_by({"last tenth": range(90, 100)})` adds up a window.

    Returns:
        One score for each sample (or step) and objective, with the sign and unit of `influence`. Both add up to the
        same.

    Raises:
        ObjectiveError: If the objective does not depend on the trained parameters.
        NonFiniteError: If training diverged, or a derivative is not finite.
        DataError: If the ids are not n.
        UnsupportedError: If it is not a recipe, or no question.
        ValueError: If fewer than two points may be kept, or `by` is neither word.

    Warns:
        UnreliableWarning: If training is so rough that the trainings without a group disagree.

    Example:
        >>> import torch
        >>> from crossfluence import SGD, Recipe
        >>> x, y = torch.ones(2, 1), torch.tensor([[0.0], [2.0]])
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1) / 2
        >>> start = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(start.weight)
        >>> one_step = Recipe(start, loss, (x, y), optimizer=SGD(0.1), epochs=1)
        >>> replay(one_step, lambda model: model.weight[0, 0]).values[:, 0]  # only the second sample pulled
        tensor([0.0000, 0.1000])

    References:
        Maclaurin, Duvenaud and Adams, "Gradient-based hyperparameter optimization through reversible learning", ICML
        2015; Ilyas and Engstrom, "MAGIC: near-optimal data attribution for deep learning", arXiv:2504.16430.
    """
    started = time.perf_counter()
    require_recipe(recipe, Recipe, "replay")
    require_question(objective, "replay")
    if by not in ("sample", "step"):
        raise ValueError(f"Got by={by!r}; needed 'sample' or 'step'.")
    if by == "step" and ids is not None:
        raise DataError("Got ids= with by='step', where the ids are the numbers of the steps. Leave ids= out.")

    def own(_: int, batch: Batch, weights: Tensor) -> tuple[Tensor, Put]:
        return weights, lambda w: (batch, w)

    found = differentiate_training(recipe, objective, own, keep, by_step=by == "step")
    labels = recipe.labels(ids) if by == "sample" else tuple(range(found.steps))
    effects = found.effects.T
    values = tuple(found.values.tolist())
    test = tried if by == "sample" else tried_windows
    verdict = test(recipe, objective, effects, values, groups, ROUGH)
    report = SolveReport(
        solver=f"replay of {found.steps} steps, {found.kept} points kept",
        values=values,
        gradient_norm=final_gradient(recipe, found.model),
        coverage=recipe.coverage,
        seconds=time.perf_counter() - started,
        fingerprint=fingerprint(found.model),
        notes=(f"Going backwards, derivatives by the parameters grew at most {found.growth:.3g}-fold.",),
        verdict=str(verdict),
    )
    return Scores(effects, labels, found.names, "replay", report, verdict=announce(verdict))
