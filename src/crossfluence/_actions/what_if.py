"""Samples replaced in a window of steps: the change predicted to first order beside the one that training gives."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from .._attribution.unrolled import Put, differentiate_training
from .._autodiff.functional import isolated
from .._data.batch import digest
from .._losses import as_loss
from .._require import require, require_question, require_recipe
from .._results.ids import numbered, row_of
from .._risk.objectives import evaluate
from .._training.recipe import Recipe
from .._training.state import walked
from .._training.trajectory import Point, Trajectory
from .._types import Batch, Id, Objective, Params
from ..errors import DataError, UnreliableWarning, UnsupportedError
from .outcome import Outcome

LINEAR = (0.75, 1.33)  # achieved over predicted: outside of it, a prediction's size is wrong
ROUNDED = 1e-5  # share of the question's value below which a change is rounding
LINE = "what_if(recipe, question, replace={0: (x, y)}, steps=(0, 10))"


class Mixed(NamedTuple):
    """A batch on its way to another one.

    Attributes:
        old: As training saw it.
        new: With samples replaced.
        share: Of the new one, for each sample.
    """

    old: Batch
    new: Batch
    share: Tensor


@overload
def what_if(
    recipe: Recipe,
    objective: Objective,
    *,
    replace: Mapping[Id, Any],
    steps: tuple[int, int],
    ids: Sequence[Id] | None = None,
    keep: int | None = None,
) -> Outcome: ...


@overload
def what_if(
    recipe: Recipe,
    objective: Objective,
    *,
    replace: Mapping[Id, Any],
    steps: Sequence[tuple[int, int]],
    ids: Sequence[Id] | None = None,
    keep: int | None = None,
) -> list[Outcome]: ...


def what_if(
    recipe: Recipe,
    objective: Objective,
    *,
    replace: Mapping[Id, Any],
    steps: tuple[int, int] | Sequence[tuple[int, int]],
    ids: Sequence[Id] | None = None,
    keep: int | None = None,
) -> Outcome | list[Outcome]:
    """Effect of replacing samples in some steps of a training, predicted to first order and by training again.

    Predicted: the derivative of the question as each replaced sample's loss gives way to that of its replacement,
    through all steps; several windows are predicted in one sweep. Achieved: training goes on from its state at the
    first step of the window. To first order is as far as it goes: where a replacement is too large for that, the two
    disagree, which is said; then `achieved` is the answer.

    Args:
        recipe: The training; its data is a tensor, or a tuple or mapping of tensors.
        objective: The question, or several.
        replace: For each id, the sample to put in its place: one row of each part of the data.
        steps: The first step of the window, counted from 0, and the step before which it ends; or a list of such, each
            a training of its own.
        ids: n labels, default 0 to n-1.
        keep: As in `replay`.

    Returns:
        The model of the training with the replacements; before, after and the predicted change. Of a list of windows,
        one for each.

    Raises:
        DataError: If a window lies outside of training, holds none of these samples, or a replacement has another form
            or equals what it replaces.
        IdError: If an id is unknown.
        UnsupportedError: If the loss couples samples or draws random numbers, or the data is no tensors.

    Warns:
        UnreliableWarning: If a predicted change differs from the achieved one by more than a third.

    Example:
        >>> from crossfluence import SGD, Recipe
        >>> x, y = torch.ones(4, 1), torch.tensor([[0.0], [0.0], [0.0], [2.0]])
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1) / 2
        >>> start = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(start.weight)
        >>> recipe = Recipe(start, loss, (x, y), optimizer=SGD(0.1), epochs=1, batch_size=1, shuffle=False)
        >>> found = what_if(recipe, lambda model: model.weight[0, 0], replace={3: (x[3], y[0])}, steps=(2, 4))
        >>> [round(value.item(), 3) for value in (found.before, found.after, found.predicted)]
        [0.2, 0.0, -0.2]
    """
    require_recipe(recipe, Recipe, "what_if")
    require_question(objective, "what_if")
    require(replace, Mapping, "what_if", "replacements by id", LINE)
    _refuse(recipe)
    rows = numbered(recipe.labels(ids))
    course = recipe.course()
    several = isinstance(steps, Sequence) and bool(steps) and not isinstance(steps[0], int)
    windows = [_window(each, len(course)) for each in (steps if several else [steps])]
    places = {row_of(label, rows): sample for label, sample in replace.items()}
    changed = dataclasses.replace(recipe, data=_replaced(recipe.data, places)).course()
    for start, stop in windows:
        _refuse_nothing(recipe, course, changed, range(start, stop), list(places))
    mixed = dataclasses.replace(course, total=mixing(course))
    inside = {step for start, stop in windows for step in range(start, stop)}

    def share(step: int, batch: Batch, weights: Tensor) -> tuple[Tensor, Put]:
        if step not in inside:
            return weights, lambda held: (batch, held)
        other, _ = changed.part(step, recipe.ones)
        return torch.zeros_like(weights), lambda part: (Mixed(batch, other, part), weights)

    found = differentiate_training(recipe, objective, share, keep, by_step=True, course=mixed, first=min(inside))
    outcomes = list[Outcome]()
    for (start, stop), model in zip(windows, _trained(recipe, course, changed, windows), strict=True):
        with isolated():
            names, after = evaluate(objective, model)
        predicted = found.effects[:, start:stop].sum(1).cpu().double()
        method = f"what_if({len(places)} samples, steps {start} to {stop})"
        outcomes.append(Outcome(model, names, found.values.cpu().double(), after, predicted, method=method))
    _warn(outcomes, windows)
    return outcomes if several else outcomes[0]


def _warn(outcomes: Sequence[Outcome], windows: Sequence[tuple[int, int]]) -> None:
    """Says where predictions are of another size than what training gave."""
    wrong = list[tuple[float, int, str]]()
    for place, (outcome, (start, stop)) in enumerate(zip(outcomes, windows, strict=True)):
        assert outcome.predicted is not None
        rounding = ROUNDED * torch.maximum(outcome.before.abs(), outcome.after.abs())
        parts = (part.tolist() for part in (outcome.predicted, outcome.achieved, rounding))
        for name, predicted, achieved, least in zip(outcome.objectives, *parts, strict=True):
            larger = max(abs(predicted), abs(achieved))
            ratio = achieved / predicted if predicted else math.inf
            if larger > least and not LINEAR[0] <= ratio <= LINEAR[1]:
                told = f"steps {start} to {stop}: {name}, predicted {predicted:+.3g}, achieved {achieved:+.3g}"
                wrong.append((abs(achieved - predicted) / larger, place, told))
    if wrong:
        count = len({place for _, place, _ in wrong})
        where = f"In {count} of {len(windows)} windows" if len(windows) > 1 else "In this window"
        warnings.warn(
            f"{where} the replacement is too large for a first-order prediction; {max(wrong)[2]}. Believe `achieved`: "
            "`predicted` holds for fewer or more similar samples, or fewer steps.",
            UnreliableWarning,
            stacklevel=3,
        )


def _trained(
    recipe: Recipe, course: Trajectory, changed: Trajectory, windows: Sequence[tuple[int, int]]
) -> Iterator[nn.Module]:
    """The model of each window's training: from the state at its first step, which is walked to once."""
    starts = dict[int, Point]()
    with isolated():
        reached, point = 0, course.start(course.theta)
        for start in sorted({start for start, _ in windows}):
            point = walked(course, recipe.ones, point, range(reached, start))
            starts[start], reached = point, start
    for start, stop in windows:
        with isolated():
            point = walked(changed, recipe.ones, starts[start], range(start, stop))
            model = recipe.holding(walked(course, recipe.ones, point, range(stop, len(course))).theta)
        yield model


def mixing(course: Trajectory) -> Any:
    """The weighted sum of losses, of a batch that may be on its way to another one."""

    def total(theta: Params, frozen: Params, batch: Batch, weights: Tensor) -> Tensor:
        if not isinstance(batch, Mixed):
            return course.total(theta, frozen, batch, weights)
        old = course.total(theta, frozen, batch.old, weights * (1 - batch.share))
        return old + course.total(theta, frozen, batch.new, weights * batch.share)

    return total


def _refuse(recipe: Recipe) -> None:
    if not as_loss(recipe.loss).per_sample or recipe.random:
        raise UnsupportedError(
            "what_if needs a loss of each sample that draws no random numbers, so that one can give way to another."
        )
    if not isinstance(recipe.data, (Tensor, tuple, Mapping)):
        raise UnsupportedError("what_if needs a recipe whose data is tensors, to put rows in their place.")


def _window(steps: Any, count: int) -> tuple[int, int]:
    if not (isinstance(steps, tuple) and len(steps) == 2 and all(isinstance(one, int) for one in steps)):
        raise DataError(f"Got steps={steps!r}; needed the first step and the one after the last, such as (0, 10).")
    start, stop = steps
    if not 0 <= start < stop <= count:
        raise DataError(f"The window {steps} lies outside of training, which has {count} steps: needed 0 to {count}.")
    return start, stop


def _replaced(data: Any, places: Mapping[int, Any]) -> Any:
    """The data with some rows replaced."""
    if not places:
        raise DataError("Got nothing to replace; needed at least one sample by its id.")
    if isinstance(data, Tensor):
        return _with_rows(data, {row: _whole(sample) for row, sample in places.items()})
    names = list(data) if isinstance(data, Mapping) else list(range(len(data)))
    parts = {}
    for name in names:
        rows = {row: _part(sample, name, len(names)) for row, sample in places.items()}
        parts[name] = _with_rows(data[name], rows)
    return parts if isinstance(data, Mapping) else tuple(parts.values())


def _whole(sample: Any) -> Any:
    return sample[0] if isinstance(sample, tuple) and len(sample) == 1 else sample


def _part(sample: Any, name: Any, count: int) -> Any:
    fits = name in sample if isinstance(sample, Mapping) else isinstance(sample, (tuple, list)) and len(sample) == count
    if not fits:
        raise DataError(f"A replacement has no part {name!r}; needed one row of each of the {count} parts of the data.")
    return sample[name]


def _with_rows(column: Tensor, rows: Mapping[int, Any]) -> Tensor:
    made = column.clone()
    for row, value in rows.items():
        fresh = torch.as_tensor(value)
        if fresh.shape != column[row].shape:
            came, needed = tuple(fresh.shape), tuple(column[row].shape)
            raise DataError(f"A replacement has shape {came}; the data has {needed} in its place.")
        made[row] = fresh.to(column)
    return made


def _refuse_nothing(recipe: Recipe, course: Trajectory, changed: Trajectory, window: range, places: list[int]) -> None:
    """Makes sure that the window holds at least one of the samples, and that something is new in it."""
    seen, new = set[int](), False
    for step in window:
        rows = course.rows[step]
        here = set(range(recipe.n) if rows is None else rows.tolist())
        seen |= here
        if not new and here & set(places):
            new = digest(course.part(step, recipe.ones)[0]) != digest(changed.part(step, recipe.ones)[0])
    if not seen & set(places):
        raise DataError(f"None of the {len(places)} samples is trained on in steps {window.start} to {window.stop}.")
    if not new:
        raise DataError(
            f"In steps {window.start} to {window.stop} every replacement equals what it replaces; needed other samples."
        )
