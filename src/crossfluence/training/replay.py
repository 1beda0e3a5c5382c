"""The exact first-order answer: derivatives through every step of a training, found by going through it backwards."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.func import vjp, vmap
from tqdm.auto import tqdm

from .._errors import NonFiniteError
from .._functional import VECTORS_AT_ONCE, undisturbed
from .._objective import Questions, questions
from .._params import Layout, fingerprint
from .._scores import Scores, SolveReport
from .._types import Id, Objective, Params
from .course import Course, Point
from .recipe import Recipe

MEMORY = 2**28  # bytes for points of the training, unless the square root of the steps needs more


def replay(recipe: Recipe, objective: Objective, *, ids: Sequence[Id] | None = None, keep: int | None = None) -> Scores:
    r"""What each training sample did to each objective, exact to first order: through every step of the training.

    $$\text{scores}_i = \partial\, m(\theta_T(w)) / \partial w_i \approx
    m(\text{trained on all}) - m(\text{trained without sample } i)$$

    Unlike `influence` it needs no minimum: whatever training did, early stopping, mini-batches in their order,
    momentum, a moving target, is in the derivative. It costs about four or five trainings for one objective; between
    the points that memory holds, training runs again.

    Args:
        recipe: The training; it is run once to see where it ends.
        objective: The question, or several: all are answered in one sweep.
        ids: n labels, default 0 to n-1.
        keep: Points of the training that are kept at once, each as large as parameters and optimiser state; default
            as many as fit into 256 MiB, and at least twice the square root of the steps. With fewer, parts of the
            training run more often; with one for each step, none runs twice.

    Returns:
        One score for each sample and objective, with the sign and unit of `influence`.

    Raises:
        ObjectiveError: If the objective does not depend on the trained parameters.
        NonFiniteError: If training diverged, or a derivative is not finite.
        DataError: If the ids are not n.
        TypeError: If it is not a recipe.
        ValueError: If fewer than two points may be kept.

    Example:
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
    if not isinstance(recipe, Recipe):
        raise TypeError(f"Got {type(recipe).__name__}; replay needs a crossfluence.Recipe, whose every step it knows.")
    if keep is not None and keep < 2:
        raise ValueError(f"Got keep={keep}; needed at least 2 points, or None for as many as fit.")
    labels = recipe.labels(ids)
    with undisturbed():
        course = recipe.course()
        point = course.start(course.theta)
        run = _Run(course, recipe.ones, _room(course, point) if keep is None else keep)
        starts = run.starts(range(len(course)), run.keep)
        points = run.kept(point, starts)
        end = run.forwards(points[-1], range(starts[-1], len(course)))
        model = recipe.holding(end.theta)
        asked = list(questions(objective, model, end.theta))
        values, growth = _swept(run, run.backwards(points, starts, len(course)), _cotangent(end, asked))
    if not values.isfinite().all():
        raise NonFiniteError(
            "A derivative through the training is NaN or infinite. Lower the learning rate, or look for a division by "
            "zero or a square root at zero in the loss."
        )
    report = SolveReport(
        solver=f"replay of {len(course)} steps, {run.keep} points kept",
        values=tuple(value for chunk in asked for value in chunk.values.tolist()),
        coverage=recipe.coverage,
        seconds=time.perf_counter() - started,
        fingerprint=fingerprint(model),
        notes=(f"Going backwards, derivatives by the parameters grew at most {growth:.3g}-fold.",),
    )
    return Scores(values, labels, tuple(name for chunk in asked for name in chunk.names), "replay", report)


def _room(course: Course, point: Point) -> int:
    """How many points to keep: as many as fit, and never so few that training would run more than twice."""
    tensors = [tensor for params in (point.theta, *point.state.values()) for tensor in params.values()]
    fit = MEMORY // sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return min(len(course), max(fit, 2 * math.ceil(len(course) ** 0.5)))


@dataclass(frozen=True, eq=False)
class _Run:
    """A course with its sample weights, of which at most `keep` points are held at once."""

    course: Course
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


def _cotangent(end: Point, asked: list[Questions]) -> Point:
    """What the objectives depend on at the end: the parameters alone; one leading dimension for the objectives."""
    gradients = torch.cat([chunk.gradients for chunk in asked])

    def nothing(params: Params) -> Params:
        return {name: tensor.new_zeros(len(gradients), *tensor.shape) for name, tensor in params.items()}

    state = {name: nothing(params) for name, params in end.state.items()}
    return Point(Layout.of(end.theta).unflatten(gradients), state, nothing(end.theta))


def _swept(run: _Run, backwards: Iterator[tuple[int, Point]], cotangent: Point) -> tuple[Shaped[Tensor, "n m"], float]:
    """Derivatives by the weights, and how much those by the parameters grew on the way."""
    layout = Layout.of(cotangent.theta)
    first = largest = float(layout.flatten(cotangent.theta).norm())
    m = len(next(iter(cotangent.theta.values())))
    effects = run.weights.new_zeros(m, len(run.weights))
    for step, point in tqdm(backwards, total=len(run.course), desc="replay", unit="step", disable=None, leave=False):
        batch, weights = run.course.part(step, run.weights)
        pull = vjp(lambda at, w, step=step, batch=batch: run.course.advance(at, step, batch, w), point, weights)[1]
        cotangent, effect = vmap(pull, chunk_size=VECTORS_AT_ONCE)(cotangent)
        largest = max(largest, float(layout.flatten(cotangent.theta).norm()))
        rows = run.course.rows[step]
        effects[:, slice(None) if rows is None else rows] += effect
    return effects.T, largest / first
