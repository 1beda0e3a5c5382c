"""Effects of actions through every step of a training: what `recommend` chooses by where there is no minimum."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._attribution.replay import replay
from .._attribution.unrolled import Put, differentiate_training
from .._autodiff.functional import isolated
from .._results.scores import Scores
from .._training.recipe import Recipe
from .._types import Batch, Objective
from ..errors import UnsupportedError
from .options import Labels, Options
from .what_if import Mixed, mixing

STEP = 0.1  # share of the way to the chosen actions at which training is run, on both sides


def refuse_by_replay(recipe: Recipe, kinds: Sequence[str], rounds: int) -> None:
    """Makes sure that actions are among those that a recipe has effects for.

    Args:
        recipe: The training.
        kinds: Names of actions.
        rounds: As asked for.

    Raises:
        UnsupportedError: If they are not.
    """
    if "add" in kinds:
        raise UnsupportedError(
            "A recipe has no step that sees the pool, so adding has no effect through its steps. Type "
            "actions=('remove', 'relabel', 'duplicate'), or recommend(recipe.risk(model), ...) at a minimum."
        )
    if rounds != 1:
        raise UnsupportedError(f"rounds={rounds} solves between rounds, which a recipe does not. Type rounds=1.")
    if "relabel" in kinds and (recipe.random or not isinstance(recipe.data, (Tensor, tuple, Mapping))):
        raise UnsupportedError(
            "To relabel by a recipe, its data must be tensors and its loss must draw no random numbers. Type "
            "actions=('remove', 'duplicate')."
        )


def together(asked: Sequence[Objective], names: Sequence[str]) -> Objective:
    """Several objectives of one value as one objective."""

    def question(model: nn.Module) -> dict[str, Tensor]:
        found = dict[str, Tensor]()
        for name, each in zip(names, asked, strict=False):
            answer = each(model)
            found[name] = (next(iter(answer.values())) if isinstance(answer, Mapping) else answer).reshape(())
        return found

    return question


def effects_by_replay(recipe: Recipe, asked: Objective, labels: Sequence[Labels]) -> tuple[Tensor, Scores]:
    """The effect of each row's weight, as `Options.effects` takes it.

    Args:
        recipe: The training.
        asked: What is lowered, and what is kept.
        labels: Functions of a batch.

    Returns:
        Effects of all samples, then of their versions with each label, `(rows, m)`; and the scores of `replay`.
    """
    scores = replay(recipe, asked)
    own = scores.values.double().cpu()
    parts = [own]
    for label in labels:
        course, other = recipe.course(), _relabelled(recipe, label).course()

        def share(step: int, batch: Batch, weights: Tensor, other: Any = other) -> tuple[Tensor, Put]:
            new, _ = other.part(step, recipe.ones)
            return torch.zeros_like(weights), lambda part: (Mixed(batch, new, part), weights)

        mixed = dataclasses.replace(course, total=mixing(course))
        parts.append(own + differentiate_training(recipe, asked, share, None, course=mixed).effects.T.double().cpu())
    return torch.cat(parts), scores


def moved_by_replay(
    recipe: Recipe, model: nn.Module, options: Options, chosen: Sequence[int], labels: Sequence[Labels]
) -> nn.Module:
    """The model with its parameters displaced to first order by chosen actions: from two trainings near by.

    Args:
        recipe: The training.
        model: Where it ended.
        options: All actions.
        chosen: Numbers of those taken.
        labels: Functions of a batch.

    Returns:
        A new model.
    """
    n, course = recipe.n, recipe.course()
    change, source = torch.zeros_like(recipe.ones), torch.zeros(n, dtype=torch.long)
    toward = torch.zeros_like(recipe.ones)
    for option in chosen:
        row, down, up = int(options.samples[option]), int(options.down[option]), int(options.up[option])
        if down >= 0 and up >= 0:
            source[row], toward[row] = up // n - 1, 1
        else:
            change[row] = 1 if up >= 0 else -1
    relabelled = [_relabelled(recipe, label).data for label in labels]
    other = dataclasses.replace(recipe, data=_picked(recipe.data, relabelled, source, toward)).course()
    mixed = dataclasses.replace(course, total=mixing(course))
    with isolated():
        ends = list[dict[str, Tensor]]()
        for sign in (1, -1):
            weights, shares = recipe.ones + sign * STEP * change, sign * STEP * toward
            point = course.start(course.theta)
            for step in range(len(course)):
                batch, held = course.part(step, weights)
                if labels:
                    rows = course.rows[step]
                    part = shares if rows is None else shares[rows]
                    batch = Mixed(batch, other.part(step, recipe.ones)[0], part)
                point = mixed.advance(point, step, batch, held)
            ends.append(point.theta)
        named = dict(model.named_parameters())
        theta = {
            name: named[name].detach() + (ends[0][name] - ends[1][name]) / (2 * STEP) for name in ends[0]
        }  # fmt: skip
        return recipe.holding(theta)


def _relabelled(recipe: Recipe, label: Labels) -> Recipe:
    """The recipe with other labels on all samples."""
    return dataclasses.replace(recipe, data=label(recipe.data))  # pyright: ignore[reportArgumentType]


def _picked(data: Any, versions: Sequence[Any], source: Int[Tensor, " n"], toward: Float[Tensor, " n"]) -> Any:
    """The data with the rows that are relabelled taken from the version chosen for each."""
    if isinstance(data, Tensor):
        held = data.clone()
        for number, version in enumerate(versions):
            rows = ((source == number) & (toward > 0)).nonzero()[:, 0]
            held[rows] = version[rows]
        return held
    if isinstance(data, Mapping):
        return {name: _picked(data[name], [one[name] for one in versions], source, toward) for name in data}
    if isinstance(data, tuple):
        return tuple(
            _picked(part, [one[place] for one in versions], source, toward) for place, part in enumerate(data)
        )  # fmt: skip
    return data
