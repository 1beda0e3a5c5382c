"""A verdict on scores from a recipe, by training a few times without groups of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._autodiff.functional import isolated
from .._results.verdict import Verdict, of_trainings
from .._risk.objectives import evaluate
from .._training.recipe import Recipe
from .._training.trajectory import Point, Trajectory
from .._types import Objective
from ..errors import CrossfluenceError
from .leave_out import answers
from .subsets import without_random

BETTER = "Type replay(recipe, objective), which follows every step, or ask leave_out."
SHARE = 0.01  # of the samples, in each group
UNTESTED = Verdict(
    "order",
    ("it was not tested by training again",),
    ("Leave out groups=0, or check with compare(scores, leave_out(...)) on a few groups.",),
)


def tried(
    recipe: Recipe,
    objective: Objective,
    scores: Float[Tensor, "n m"],
    values: Sequence[float],
    groups: int,
    advice: str = BETTER,
) -> Verdict:
    """A verdict on scores from a few trainings without groups of samples.

    The strongest samples that raise the questions and those that lower them are left out, and random groups of as many,
    in trainings that run together.

    Args:
        recipe: The training.
        objective: The questions.
        scores: What is tested.
        values: Of the questions, where the training with all samples ended.
        groups: How many groups, each a hundredth of the samples, at least one; 0 to train nothing.
        advice: What to type if training disagrees.

    Returns:
        By correlation and slope about zero, of all groups and questions, each question in its own largest effect.

    Raises:
        ValueError: If the number of groups is negative.
    """
    return _tested(lambda kept: answers(recipe, objective, kept)[1], "samples", scores, values, groups, advice)


def tried_windows(
    recipe: Recipe,
    objective: Objective,
    scores: Float[Tensor, "t m"],
    values: Sequence[float],
    groups: int,
    advice: str = BETTER,
) -> Verdict:
    """A verdict on scores of steps from a few trainings in which the samples of some steps weigh nothing there.

    Args:
        recipe: The training.
        objective: The questions.
        scores: Of its steps.
        values: Of the questions, where the training ended.
        groups: As in `tried`: the strongest steps of both signs, and random ones.
        advice: What to type if training disagrees.

    Returns:
        As `tried`.

    Raises:
        ValueError: If the number of groups is negative.
    """

    def moved(kept: Float[Tensor, "g t"]) -> Tensor:
        ends = (with_step_weights(recipe.course(), recipe.ones, row.tolist()) for row in kept)
        return torch.stack([evaluate(objective, recipe.holding(end.theta))[1] for end in ends])

    return _tested(moved, "steps", scores, values, groups, advice)


def _tested(
    retrained: Callable[[Float[Tensor, "g n"]], Tensor], units: Literal["samples", "steps"],
    scores: Float[Tensor, "n m"], values: Sequence[float], groups: int, advice: str,
) -> Verdict:  # fmt: skip
    """The verdict of trainings without groups; `retrained` gives the questions' values, `(groups, m)`."""
    if groups < 0:
        raise ValueError(f"Got groups={groups}; needed zero or more.")
    if not groups:
        return UNTESTED
    known = scores.detach().cpu().double()
    kept = _kept(known, groups)
    try:
        moved = retrained(kept)
    except CrossfluenceError as error:  # a training diverged
        return Verdict("unreliable", (f"a training without some {units} failed: {str(error).rstrip('.')}",))
    predicted = (1 - kept) @ known  # (groups, m)
    actual = torch.tensor(values, dtype=torch.float64) - moved
    size = predicted.abs().amax(0).clamp_min(torch.finfo(torch.float64).tiny)
    what = f"leaving out {groups} groups{'' if units == 'samples' else ' of steps'}"
    return of_trainings((predicted / size).flatten().tolist(), (actual / size).flatten().tolist(), what, advice)


def with_step_weights(course: Trajectory, ones: Tensor, factors: Sequence[float]) -> Point:
    """Where training ends if the weights of all samples are multiplied by a factor in each step."""
    point = course.start(course.theta)
    with isolated():
        for step, factor in enumerate(factors):
            batch, weights = course.part(step, ones)
            point = course.advance(point, step, batch, weights * factor)
    return point


def _kept(scores: Float[Tensor, "n m"], groups: int) -> Float[Tensor, "g n"]:
    """Weights without the strongest samples in both directions, and without random ones."""
    n = len(scores)
    kept = without_random(n, groups, SHARE if n > 1 else 0.5, seed=0)
    size = int(n - kept[0].sum())
    together = (scores / scores.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)).sum(1)
    for row, order in enumerate((together.argsort(descending=True), together.argsort())[:groups]):
        kept[row] = torch.ones(n, dtype=torch.float64).index_fill(0, order[:size], 0.0)
    return kept


def final_gradient(recipe: Recipe, model: nn.Module) -> float:
    """The norm of the risk's gradient where training ended; NaN where the loss at that model has no one value.

    Args:
        recipe: The training.
        model: What it ended with.

    Returns:
        Zero at a perfect minimum.
    """
    try:
        return float(recipe.risk(model).gradient.norm())
    except CrossfluenceError:  # a loss that draws random numbers
        return float("nan")
