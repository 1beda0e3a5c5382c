"""The linear datamodelling score, beside its ceiling: the agreement of one retraining with others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from .._require import AbstractTraining, described, require, require_answered, require_question, require_training
from .._results.agreement import Estimate, mean_rank_correlation
from .._results.scores import Scores
from .._types import Objective
from ..errors import DataError, UnsupportedError
from .leave_out import answers
from .subsets import without_random

Protocol: TypeAlias = Literal["half", "leave out"]


@dataclass(frozen=True, eq=False)
class LDS:
    """The linear datamodelling score of some scores.

    Attributes:
        score: Rank correlation between predicted and retrained answers over the subsets, averaged over the objectives;
            with an interval from resampling the subsets. In "half" also averaged over the seeds.
        ceiling: The same between two retrainings with different seeds, averaged over all pairs of seeds: how well
            training again predicts training again.
        across: The same scores beside trainings with other seeds than theirs: how well they speak of the data, and not
            of one training. Its ceiling is the same.
        protocol: "half" or "leave out".
        predicted: Shape `(r, m)`: sums of scores, as changes from training on all.
        actual: Shape `(r, m)`: what the retrained models answer.
        again: Shape `(r, m)`: what they answer when trained with another seed.
        answers: Shape `(s, r, m)`: what they answer in each round; `actual` and `again` are the first two. A round has
            one seed for all subsets, or in "half" the seeds in turn, each round beginning with the next.
        objectives: The m questions.
        method: How the scores came about.
    """

    score: Estimate
    ceiling: Estimate
    across: Estimate
    protocol: str
    predicted: Float[np.ndarray, "r m"] = field(repr=False)
    actual: Float[np.ndarray, "r m"] = field(repr=False)
    again: Float[np.ndarray, "r m"] = field(repr=False)
    answers: Float[np.ndarray, "s r m"] = field(repr=False)
    objectives: tuple[str, ...] = field(repr=False)
    method: str = ""


def lds(
    scores: Scores,
    train: AbstractTraining | Callable[[int], AbstractTraining],
    objective: Objective,
    *,
    protocol: Protocol = "leave out",
    drop: float | None = None,
    subsets: int = 50,
    seeds: int = 2,
    seed: int = 0,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
) -> LDS:
    """Trains again on random subsets and asks how well sums of scores rank the answers.

    Two protocols, whose figures must not be compared with each other. "leave out": one seed, 1 % of the samples are
    left out; the effect of the data alone, in the training that the scores belong to. "half": half of the samples are
    left out, the others count double, and each subset is trained with another seed than the next; noise of training
    included. More seeds change neither, on average: they narrow the ceiling, and in "half" the score.

    Args:
        scores: Of all n samples, in the order of the data.
        train: The training; or a function from a seed to a recipe, where more than the order of mini-batches depends
            on the seed, such as the initial weights. Seed 0 is the training that the scores belong to.
        objective: The question that the scores answer.
        protocol: "leave out" or "half".
        drop: Share of the samples that is left out; default 0.01 or 0.5.
        subsets: How many random subsets.
        seeds: Trainings of each subset with different seeds, at least two, so that there is a ceiling. All are used:
            in the ceiling every pair of them, in the score of "half" every seed for every subset.
        seed: Of the subsets.
        executor: As in `leave_out`.
        store: As in `leave_out`. A `Bank` keeps the models, for other questions.

    Returns:
        The score beside its ceiling. A full-batch recipe has no noise of its own and a ceiling of 1.

    Raises:
        DataError: If the scores are not those of all samples, or a number is too small.
        ObjectiveError: If the scores answer other questions.
        UnsupportedError: If the function of a seed returns no recipe; if there are no scores, or no question.
        ValueError: If the protocol is unknown.

    Example:
        >>> import torch
        >>> from crossfluence import SGD, Recipe, influence
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> loss = lambda model, batch: (model(batch) - batch.sum(1, keepdim=True).sin()).square().sum(1)
        >>> recipe = Recipe(torch.nn.Linear(3, 1).double(), loss, x, optimizer=SGD(0.1, 0.9), epochs=100, l2=0.1)
        >>> ask = lambda model: model.weight.sum()
        >>> found = lds(influence(recipe.risk(recipe.train()), ask), recipe, ask, subsets=20)
        >>> found.score > 0.95, found.ceiling
        (True, 1.000 [1.000, 1.000])

    References:
        Ilyas et al., "Datamodels: predicting predictions from training data", ICML 2022; Park et al., "TRAK:
        attributing model behavior at scale", ICML 2023.
    """
    require(scores, Scores, "lds", "Scores", "lds(influence(...), recipe, objective)")
    require_training(train, "lds")
    require_question(objective, "lds")
    if protocol not in ("half", "leave out"):
        raise ValueError(f"Got protocol={protocol!r}; needed 'leave out' or 'half'.")
    if subsets < 3 or seeds < 2:
        raise DataError(f"Got subsets={subsets} and seeds={seeds}; needed at least 3 subsets and 2 seeds.")
    trainings = [_seeded(train, number) for number in range(seeds)]
    n = trainings[0].n
    if len(scores) != n:
        raise DataError(f"Got {len(scores)} scores for a training set of {n}; needed one for each sample.")
    half = protocol == "half"
    weights = without_random(n, subsets, (0.5 if half else 0.01) if drop is None else drop, seed)
    if half:
        weights *= n / weights.sum(1, keepdim=True)  # the mean loss is that of the subset
    found = {one: answers(one, objective, weights, executor=executor, store=store) for one in dict.fromkeys(trainings)}
    names = found[trainings[0]][0]
    require_answered(scores.objectives, names)
    predicted = ((weights - 1) @ scores.values.detach().cpu().double()).numpy()
    values = np.stack([found[one][1].numpy() for one in trainings])
    rounds = np.stack([_dealt(values, first, mixed=half) for first in range(seeds)])
    score = _mean_over_pairs([(predicted, one) for one in (rounds if half else rounds[:1])])
    ceiling = _mean_over_pairs([(other, one) for one, other in combinations(rounds, 2)])
    across = _mean_over_pairs([(predicted, one) for one in values[1:]])
    return LDS(score, ceiling, across, protocol, predicted, rounds[0], rounds[1], rounds, names, scores.method)


def _mean_over_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
    """Rank correlation of all columns of all pairs of tables, averaged."""
    return mean_rank_correlation(*(np.concatenate(side, axis=1) for side in zip(*pairs, strict=True)))


def _seeded(train: AbstractTraining | Callable[[int], AbstractTraining], number: int) -> AbstractTraining:
    if isinstance(train, AbstractTraining):
        return train.with_seed(train.recipe.seed + number)
    made = train(number)
    if not isinstance(made, AbstractTraining):
        raise UnsupportedError(
            f"Got {described(made)} for seed {number}; lds needs a crossfluence.Recipe or Bank, or a function "
            f"from a seed to one."
        )
    return made


def _dealt(values: Float[np.ndarray, "s r m"], first: int, *, mixed: bool) -> Float[np.ndarray, "r m"]:
    """One answer for each subset: all of one seed, or of one seed after the other."""
    seeds, subsets = values.shape[:2]
    rows = np.arange(subsets)
    return values[(first + rows * mixed) % seeds, rows]
