"""A recommendation carried out: training again with the actions taken, beside as many at random."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._autodiff.functional import isolated
from .._evaluation.leave_out import trained_models
from .._require import AbstractTraining, require_training, takes
from .._risk.objectives import evaluate
from .._training.recipe import Recipe
from .._types import Batch
from ..errors import DataError, UnsupportedError
from .options import Joined, scaled
from .outcome import Outcome
from .rounds import NAMES, Choice, Chooser


@dataclass(frozen=True, eq=False)
class Chosen:
    """Options that were chosen.

    Attributes:
        chooser: What they were chosen from.
        choice: Their numbers.
    """

    chooser: Chooser
    choice: Choice


def carry_out(found: Chosen, train: Any, seeds: int, against_random: int) -> Outcome:
    """Trains with all samples as they were, with the chosen actions taken, and with as many at random.

    Args:
        found: Numbers of options, and what they are.
        train: How to train.
        seeds: Orders of the data.
        against_random: Random choices.

    Returns:
        The model of the first seed, and changes as means over seeds.

    Raises:
        DataError: If there is nothing to carry out, or the numbers are not positive.
        UnsupportedError: If this training cannot relabel or add.
    """
    if not found.choice.chosen:
        raise DataError(f"There is nothing to carry out: no action was chosen. {found.choice.stopped}")
    if seeds < 1 or against_random < 0:
        raise DataError(f"Got seeds={seeds}, against_random={against_random}; needed at least one seed.")
    if seeds > 1 and not isinstance(train, AbstractTraining):
        raise UnsupportedError(f"seeds={seeds} needs a crossfluence.Recipe; a training function has no seed.")
    _refuse_other_rows(found, train)
    before, after, first = list[Tensor](), list[Tensor](), None
    for seed in range(seeds):
        whole, changed = _models(found, train, [(), found.choice.chosen], seed)
        before.append(_values(found, whole))
        after.append(_values(found, changed))
        first = first or changed
    drawn = _random(found, against_random)
    beside = [_values(found, model) - before[0] for model in _models(found, train, drawn, 0)]
    changes = torch.stack(after) - torch.stack(before)
    assert first is not None
    return Outcome(
        first, NAMES[: len(found.chooser.asked)], torch.stack(before).mean(0), torch.stack(after).mean(0), None, None,
        f"recommend({len(found.choice.chosen)} actions)", found.choice.stopped,
        random=torch.stack(beside) if beside else None, noise=_noise(changes),
    )  # fmt: skip


def _noise(changes: Float[Tensor, "s m"]) -> Float[Tensor, " m"] | None:
    """The standard error of the mean over seeds."""
    return None if len(changes) < 2 else changes.std(0) / len(changes) ** 0.5


def _values(found: Chosen, model: nn.Module) -> Float[Tensor, " m"]:
    return torch.stack([evaluate(each, model)[1][0] for each in found.chooser.asked])


def _random(found: Chosen, draws: int) -> list[tuple[int, ...]]:
    """As many options of each kind, of random samples, none twice."""
    generator = torch.Generator().manual_seed(0)
    names = [label[0] for label in found.chooser.options.ids]
    wanted = [names[number] for number in found.choice.chosen]
    kinds = {kind: torch.tensor([name == kind for name in names]) & found.chooser.allowed for kind in set(wanted)}
    return [_draw(found, kinds, wanted, generator) for _ in range(draws)]


def _draw(found: Chosen, kinds: Mapping[Any, Tensor], wanted: list[Any], generator: torch.Generator) -> tuple[int, ...]:
    taken, used = list[int](), set[int]()
    for kind in sorted(kinds):
        numbers = kinds[kind].nonzero()[:, 0]
        shuffled = iter(numbers[torch.randperm(len(numbers), generator=generator)].tolist())
        for _ in range(wanted.count(kind)):
            option = next(one for one in shuffled if int(found.chooser.options.samples[one]) not in used)
            used.add(int(found.chooser.options.samples[option]))
            taken.append(option)
    return tuple(taken)


def _refuse_other_rows(found: Chosen, train: Any) -> None:
    """Makes sure that the training can do what is asked of it."""
    require_training(train, "carry_out") if not takes(train, 2) else None
    if isinstance(train, AbstractTraining):
        if train.n != found.chooser.options.n:
            raise DataError(f"The recipe has {train.n} samples, the recommendation is about {found.chooser.options.n}.")
    elif _needs_rows(found) and not takes(train, 2):
        raise UnsupportedError(
            "To relabel or add, a training function needs a second argument: train(weights, batches), one weight for "
            "each row of all batches. Or pass a crossfluence.Recipe."
        )


def _needs_rows(found: Chosen) -> bool:
    return any(found.chooser.options.ids[number][0] in {"relabel", "add"} for number in found.choice.chosen)


def _models(found: Chosen, train: Any, choices: list[tuple[int, ...]], seed: int) -> Iterator[nn.Module]:
    """One model for each choice of options."""
    with torch.random.fork_rng(), torch.enable_grad():
        if isinstance(train, AbstractTraining):
            yield from _by_recipe(found, train.with_seed(seed) if seed else train, choices)
            return
        if not choices:
            return
        weights = torch.stack([found.chooser.options.weights(chosen) for chosen in choices])
        if _needs_rows(found):
            data = found.chooser.options.risk.data  # pyright: ignore[reportAttributeAccessIssue]
            yield from trained_models(lambda row: train(row, data), weights)
        else:
            yield from trained_models(train, weights[:, : found.chooser.options.n])


def _by_recipe(found: Chosen, train: AbstractTraining, choices: list[tuple[int, ...]]) -> Iterator[nn.Module]:
    if not _needs_rows(found):
        weights = [found.chooser.options.weights(chosen)[: found.chooser.options.n] for chosen in choices]
        if weights:
            yield from train.retrain(torch.stack(weights))
        return
    for chosen in choices:
        assert isinstance(train.recipe, Recipe)
        recipe, weights = _edited(found, train.recipe, chosen)
        yield recipe.train(weights)


def _edited(found: Chosen, recipe: Recipe, chosen: tuple[int, ...]) -> tuple[Recipe, Tensor]:
    """The recipe with rows relabelled in place and added at the end; their number divides the l2 term as before."""
    joined = found.chooser.options.risk.data  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(joined, Joined)
    source = recipe.data if isinstance(recipe.data, (Tensor, tuple, Mapping)) else None
    if source is None:
        raise UnsupportedError("To relabel or add, carry_out needs a recipe whose data is tensors; got a dataset.")
    parts, rows, weights = _columns(source), _all_rows(joined), found.chooser.options.weights(chosen)
    held = [part.clone() for part in parts]
    kept, added = weights[: found.chooser.options.n].clone(), list[int]()
    for row in (weights[found.chooser.options.n :] > 0).nonzero()[:, 0].tolist():
        place = row + found.chooser.options.n
        if place >= found.chooser.options.n * (1 + len(joined.labels)):
            added.append(place)
            continue
        for column, fresh in zip(held, rows, strict=True):
            column[row % found.chooser.options.n] = fresh[place]
        kept[row % found.chooser.options.n] = 1
    held = [torch.cat([column, fresh[added]]) for column, fresh in zip(held, rows, strict=True)]
    share = found.chooser.options.n / len(held[0])
    data = held[0] if isinstance(source, Tensor) else tuple(held) if isinstance(source, tuple) else dict(
        zip(source, held, strict=True)
    )  # fmt: skip
    return replace(recipe, data=data, l2=scaled(recipe.l2, share)), torch.cat([kept, kept.new_ones(len(added))])


def _columns(source: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]) -> list[Tensor]:
    if isinstance(source, Tensor):
        return [source]
    return list(source.values() if isinstance(source, Mapping) else source)


def _all_rows(joined: Iterable[Batch]) -> list[Tensor]:
    """Every column of all batches."""
    with isolated():
        return [torch.cat(column) for column in zip(*(_columns(batch) for batch in joined), strict=True)]
