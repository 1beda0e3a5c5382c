"""One sweep through a training, last step first: derivatives of its end by anything that each step sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from tqdm.auto import tqdm

from .._autodiff.functional import isolated, recorded_twice
from .._autodiff.params import Layout
from .._autodiff.ways import pulled_rows
from .._risk.objectives import Queries, questions
from .._risk.sharper import sharper
from .._training.recipe import Recipe
from .._training.trajectory import Point, Trajectory
from .._types import Batch, Objective, Params
from ..errors import NonFiniteError

MEMORY = 2**28  # bytes for points of the training, unless the square root of the steps needs more

Put: TypeAlias = Callable[[Tensor], tuple[Batch, Tensor]]
"""From what is differentiated to the batch and the weights that hold it."""

Variable: TypeAlias = Callable[[int, Batch, Tensor], tuple[Tensor, Put]]
"""From number, batch and weights of a step to what is differentiated, shape `(b, ...)`, and how to put it there."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """The result of a backward pass through training.

    Attributes:
        model: Where training ended.
        names: m labels of the objectives.
        values: Of the objectives, shape `(m,)`.
        effects: Their derivatives by every sample's variable, added up over the steps, shape `(m, n, ...)`; or by the
            variables of each step's samples, added up over these, shape `(m, steps, ...)`.
        steps: Of the training.
        kept: Points of it that were held at once.
        growth: The largest norm of the derivatives by the parameters, over that at the end.
    """

    model: nn.Module
    names: tuple[str, ...]
    values: Shaped[Tensor, " m"]
    effects: Shaped[Tensor, "m n *each"]
    steps: int
    kept: int
    growth: float


def differentiate_training(
    recipe: Recipe,
    objective: Objective,
    variable: Variable,
    keep: int | None,
    *,
    by_step: bool = False,
    course: Trajectory | None = None,
    first: int = 0,
) -> Sweep:
    """Trains once, and goes back through every step.

    Args:
        recipe: The training.
        objective: One question or several, answered together.
        variable: What to differentiate by.
        keep: Points of the training that are held at once, or as many as fit.
        by_step: Whether effects are added up over the samples of each step, in place of the steps of each sample.
        course: The steps, if they are others than the recipe's.
        first: The step at which to stop going back.

    Returns:
        Derivatives, and where training ended.

    Raises:
        NonFiniteError: If training diverged, or a derivative is not finite.
        UnsupportedError: If the model cannot be differentiated twice.
        ValueError: If fewer than two points may be kept.
    """
    if keep is not None and keep < 2:
        raise ValueError(f"Got keep={keep}; needed at least 2 points, or None for as many as fit.")
    with isolated():
        recipe.refuse_once_differentiable()
        course = recipe.course() if course is None else course
        like, _ = variable(0, *course.part(0, recipe.ones))  # first of all: it may refuse the data
        point = course.start(course.theta)
        run = _Run(course, recipe.ones, _room(course, point) if keep is None else keep)
        starts = run.starts(range(len(course)), run.keep)
        points = run.kept(point, starts)
        end = run.forwards(points[-1], range(starts[-1], len(course)))
        model = recipe.holding(end.theta)
        asked = list(questions(sharper(objective, model, end.theta), model, end.theta))
        cotangent = _cotangent(end, asked)
        count = len(course) if by_step else recipe.n
        effects = like.new_zeros(sum(len(chunk.names) for chunk in asked), count, *like.shape[1:])
        back = takewhile(lambda reached: reached[0] >= first, run.backwards(points, starts, len(course)))
        growth = _add_up(effects, run, back, cotangent, variable, by_step)
    if not effects.isfinite().all():
        raise NonFiniteError(
            "A derivative through the training is NaN or infinite. Lower the learning rate, or look for a division by "
            "zero or a square root at zero in the loss."
        )
    names = tuple(name for chunk in asked for name in chunk.names)
    values = torch.cat([chunk.values for chunk in asked])
    return Sweep(model, names, values, effects, len(course), run.keep, growth)


def _room(course: Trajectory, point: Point) -> int:
    """Number of points to keep: as many as fit, and never so few that training would run more than twice."""
    tensors = [tensor for params in (point.theta, *point.state.values()) for tensor in params.values()]
    fit = MEMORY // sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return min(len(course), max(fit, 2 * math.ceil(len(course) ** 0.5)))


@dataclass(frozen=True, eq=False)
class _Run:
    """A course with its sample weights, of which at most `keep` points are held at once."""

    course: Trajectory
    weights: Shaped[Tensor, " n"]
    keep: int

    def starts(self, steps: range, free: int) -> range:
        """Steps before which a point is kept: all of them if there is room, else some, with room left in between."""
        stride = 1 if len(steps) <= free else math.ceil(len(steps) / max(2, free // 2))
        return range(steps.start, steps.stop, stride)

    def forwards(self, point: Point, steps: range) -> Point:
        """The point after some steps."""
        for step in steps:
            point = self.course.advance(point, step, *self.course.part(step, self.weights))
        return point

    def kept(self, point: Point, starts: range) -> list[Point]:
        """The points before some steps, of which the first is given."""
        points = [point]
        for start in starts[:-1]:
            points.append(self.forwards(points[-1], range(start, start + starts.step)))
        return points

    def backwards(self, points: list[Point], starts: range, stop: int) -> Iterator[tuple[int, Point]]:
        """Every step with the point before it, last first; `points` is used up, and what was not kept runs again."""
        while points:
            point, first = points.pop(), starts[len(points)]
            if starts.step == 1:
                yield first, point
            else:
                inner = self.starts(range(first, stop), self.keep - len(points))
                yield from self.backwards(self.kept(point, inner), inner, stop)
            stop = first


def _cotangent(end: Point, asked: list[Queries]) -> Point:
    """Derivatives of the objectives by the state at the end: by the parameters alone, one row for each objective."""
    gradients = torch.cat([chunk.gradients for chunk in asked])

    def nothing(params: Params) -> Params:
        return {name: tensor.new_zeros(len(gradients), *tensor.shape) for name, tensor in params.items()}

    state = {name: nothing(params) for name, params in end.state.items()}
    return Point(Layout.of(end.theta).unflatten(gradients), state, nothing(end.theta))


def _add_up(
    effects: Shaped[Tensor, "m n *each"],
    run: _Run,
    backwards: Iterator[tuple[int, Point]],
    cotangent: Point,
    variable: Variable,
    by_step: bool,
) -> float:
    """Adds every step's derivatives to the effects; returns how much those by the parameters grew on the way."""
    layout = Layout.of(cotangent.theta)
    first = largest = float(layout.flatten(cotangent.theta).norm())
    for step, point in tqdm(backwards, total=len(run.course), desc="replay", unit="step", disable=None, leave=False):
        value, put = variable(step, *run.course.part(step, run.weights))
        cotangent, effect = _pulled(run.course, step, point, value, put, cotangent)
        largest = max(largest, float(layout.flatten(cotangent.theta).norm()))
        rows = run.course.rows[step]
        if by_step:
            effects[:, step] = effect.sum(1)
        elif rows is None:
            effects += effect
        else:
            effects.index_add_(1, rows.to(effects.device), effect)  # a sample may stand in a step twice
    return largest / first


def _pulled(
    course: Trajectory, step: int, point: Point, value: Tensor, put: Put, cotangent: Point
) -> tuple[Point, Shaped[Tensor, "m b *each"]]:
    """Cotangents of the point after a step to those of the point before it, and of what is differentiated in it."""
    parts, form = tree_flatten(point)
    with recorded_twice():
        inputs = [part.detach().requires_grad_() for part in (*parts, value)]
        before = tree_unflatten(inputs[:-1], form)
        after = course.advance(before, step, *put(inputs[-1]), differentiable=True)
        *found, effect = pulled_rows(tree_leaves(after), inputs, tree_leaves(cotangent))
    return tree_unflatten(found, form), effect
