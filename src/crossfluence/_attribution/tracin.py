"""Estimates from points along a training: the similarity of gradients, summed over the way."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import isolated
from .._autodiff.params import Layout, fingerprint
from .._evaluation.trials import final_gradient, tried
from .._kronecker.pairwise import pairwise_scores
from .._require import require_question, require_recipe
from .._results.scores import Scores, SolveReport
from .._results.verdict import announce, at_most_order
from .._risk.objectives import EachOf, evaluate
from .._risk.risk import Risk
from .._risk.sharper import sharper_questions
from .._training.optimizer_rule import weight_decay
from .._training.recipe import Recipe
from .._types import Id, Objective, Params


class Waypoint(NamedTuple):
    """A point that stands for a stretch of a training.

    Attributes:
        theta: The parameters there.
        scaling: What multiplies a lasting gradient in all steps of the stretch together, shape `(p,)`.
        decay: The exponent by which weight decay outside of the loss shrinks each parameter in it, shape `(p,)`.
    """

    theta: Params
    scaling: Shaped[Tensor, " p"]
    decay: Shaped[Tensor, " p"]


def tracin(
    recipe: Recipe,
    objective: Objective,
    *,
    checkpoints: int = 10,
    preconditioned: bool = False,
    ids: Sequence[Id] | None = None,
    groups: int = 3,
) -> Scores:
    r"""Influence of each training sample on each objective, estimated from points along the training.

    $$\text{scores}_i = -\sum_t \eta_t\,\nabla m(\theta_t)^\top P_t\,\partial g(\theta_t)/\partial w_i$$

    The sum over all steps is replaced by some of them, each standing for its stretch of the training with the sum of
    its learning rates. What a step does to the steps after it is left out; `replay` has it.

    Args:
        recipe: The training; it is run once.
        objective: The question.
        checkpoints: Points of the training, in the middles of stretches of equal length.
        preconditioned: Whether $P_t$ is what the optimiser makes of a gradient (Adam's division by its root mean
            square, the sum of momentum), instead of the identity.
        ids: n labels, default 0 to n-1.
        groups: As in `replay`: left out in trainings that run together, to test the answer; 0 for none.

    Returns:
        One score for each sample and objective, with the sign and unit of `influence`.

    Raises:
        ObjectiveError: If the objective does not depend on the parameters.
        DataError: If the ids are not n.
        UnsupportedError: If it is not a recipe, or no question.
        ValueError: If there are no checkpoints.

    Warns:
        UnreliableWarning: If the trainings without a group disagree with the answer.

    Example:
        >>> from crossfluence import SGD
        >>> x, y = torch.ones(2, 1), torch.tensor([[0.0], [2.0]])
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1) / 2
        >>> start = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(start.weight)
        >>> recipe = Recipe(start, loss, (x, y), optimizer=SGD(0.1), epochs=1)
        >>> tracin(recipe, lambda model: model.weight[0, 0]).values[:, 0]
        tensor([0.0000, 0.1000])

    References:
        Pruthi et al., "Estimating training data influence by tracing gradient descent", NeurIPS 2020; with Adam's
        preconditioning: Xia et al., "LESS: selecting influential data for targeted instruction tuning", ICML 2024.
    """
    require_recipe(recipe, Recipe, "tracin")
    require_question(objective, "tracin")
    if checkpoints < 1:
        raise ValueError(f"Got checkpoints={checkpoints}; needed at least 1.")
    started, labels = time.perf_counter(), recipe.labels(ids)
    parts, names = [], ()
    with isolated():
        points, end = waypoints(recipe, checkpoints, preconditioned=preconditioned)
        for theta, scaling, _ in points:
            risk = recipe.risk(recipe.holding(theta))
            names, derivatives = _products(risk, objective, scaling)
            parts.append(-derivatives)
    method = f"tracin(checkpoints={len(parts)}, preconditioned={preconditioned})"
    scores, model = torch.stack(parts).sum(0), recipe.holding(end)
    values = tuple(evaluate(objective, model)[1].tolist())
    verdict = at_most_order(
        tried(recipe, objective, scores, values, groups), "what a step does to the steps after it is left out"
    )
    report = SolveReport(
        method,
        values=values,
        gradient_norm=final_gradient(recipe, model),
        coverage=recipe.coverage,
        seconds=time.perf_counter() - started,
        fingerprint=fingerprint(model),
        verdict=str(verdict),
    )
    return Scores(scores, labels, names, method, report, verdict=announce(verdict))


def _products(
    risk: Risk, objective: Objective, scaling: Shaped[Tensor, " p"]
) -> tuple[tuple[str, ...], Shaped[Tensor, "n m"]]:
    """Names of questions, and each sample's gradient along their scaled gradients."""
    scale = risk.layout.split(scaling)
    if isinstance(objective, EachOf):
        even = bool((scaling == scaling[0]).all())
        pairs = pairwise_scores(risk, objective, None, risk.layout.split, None if even else scale)
        if pairs is not None:
            chunks = list(pairs.scores(None))
            found = torch.cat([chunk.derivatives for chunk in chunks], dim=1)
            return tuple(name for chunk in chunks for name in chunk.names), found * scaling[0] if even else found
    asked = list(sharper_questions(objective, risk, risk))
    directions = torch.cat([chunk.gradients for chunk in asked]) * scaling
    return tuple(name for chunk in asked for name in chunk.names), risk.derivatives_along(directions)


def waypoints(recipe: Recipe, count: int, *, preconditioned: bool) -> tuple[list[Waypoint], Params]:
    """Points in the middles of stretches of equal length, and where training ends.

    Args:
        recipe: The training; it is run once.
        count: Stretches, at most one for each step.
        preconditioned: Whether to multiply by what the optimiser makes of a gradient, too.

    Returns:
        The points in order, each standing for all steps of its stretch; and the trained parameters.
    """
    course, points = recipe.course(), []
    point, layout, length = course.start(course.theta), Layout.of(course.theta), math.ceil(len(course) / count)
    total, plain, theta, factors = 0.0, 0.0, point.theta, layout.flatten(point.theta)
    taken = weight_decay(course.optimizer, point.theta)
    decay = layout.flatten({name: torch.full_like(part, taken[name]) for name, part in point.theta.items()})
    for step in range(len(course)):
        batch, weights = course.part(step, recipe.ones)
        gradient, factor = course.gradient(point, step, batch, weights)
        after, last = course.stepped(point, step, gradient), min(step - step % length + length, len(course)) - 1
        rate = course.optimizer.lr * course.rates[step]
        total, plain = total + rate * float(factor), plain + rate
        if step % length == (last % length + 1) // 2:
            theta, factors = point.theta, torch.ones_like(factors)
            if preconditioned:
                factors = layout.flatten(course.optimizer.preconditioner(point.theta, after.state, step + 1))
        if step == last:
            points.append(Waypoint(theta, total * factors, plain * decay))
            total = plain = 0.0
        point = after
    return points, point.theta
