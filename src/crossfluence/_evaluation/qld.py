"""Effects of removing each question's strongest samples, beside random ones."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._require import AbstractTraining, require, require_answered, require_question, require_training
from .._results.agreement import RESAMPLES, Estimate
from .._results.scores import Scores
from .._types import Objective
from ..errors import DataError
from .leave_out import Training, answers
from .subsets import without_random


@dataclass(frozen=True, eq=False)
class QLD:
    """The query loss difference of some scores, or what one more step of training did.

    Attributes:
        value: Mean over the questions of their change when their strongest samples are removed (`tail_patch`: trained
            on once more), less the mean change when as many random ones are; counted so that positive is the promised
            direction. The 95 % interval is from resampling the questions; NaN for one question.
        by_objective: The same for each question.
        strongest: Shape `(m,)`: change of each question by its own strongest samples.
        random: Shape `(r, m)`: changes by random ones.
        size: How many samples these are.
        objectives: The m questions.
        method: How the scores came about.
    """

    value: Estimate
    by_objective: dict[str, float]
    strongest: Float[np.ndarray, " m"] = field(repr=False)
    random: Float[np.ndarray, "r m"] = field(repr=False)
    size: int
    objectives: tuple[str, ...] = field(repr=False)
    method: str = ""


def qld(
    scores: Scores,
    train: Training,
    objective: Objective,
    *,
    drop: float = 0.01,
    effect: Literal["lowers", "raises"] = "lowers",
    draws: int = 10,
    seed: int = 0,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
) -> QLD:
    """Trains again without the strongest samples of each question, and without random ones, and asks how far it moved.

    For losses of queries, `effect="lowers"` removes the samples that lower a loss most, so that it rises: the query
    loss difference. It says whether the strongest samples matter, where `lds` says how well all are ranked.

    Args:
        scores: Of all samples (or tokens, with a `train` that weighs these), in the order of the data.
        train: As in `leave_out`: a recipe, or a function from weights, one for each score, to a trained model.
        objective: The questions that the scores answer.
        drop: Share of the samples that is removed; at least one is.
        effect: Which samples are removed: those that lower a question (it should rise), or that raise it.
        draws: Random groups, the same for all questions.
        seed: Of the random groups.
        executor: As in `leave_out`.
        store: As in `leave_out`.

    Returns:
        The mean over questions with its interval, and each question's own.

    Raises:
        DataError: If the scores are not those of all samples, or a number means nothing.
        ObjectiveError: If the scores answer other questions.
        ValueError: If the effect is neither word.

    Example:
        >>> from crossfluence import SGD, Recipe, influence
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> loss = lambda model, batch: (model(batch) - batch.sum(1, keepdim=True).sin()).square().sum(1)
        >>> recipe = Recipe(torch.nn.Linear(3, 1).double(), loss, x, optimizer=SGD(0.1, 0.9), epochs=100, l2=0.1)
        >>> ask = lambda model: loss(model, x[:4] / 2)
        >>> scores = influence(recipe.risk(recipe.train()), ask)
        >>> found = qld(scores, recipe, ask, drop=0.05)
        >>> found.size, bool(found.value > 0)
        (3, True)

    References:
        The evaluation of bergson's board (EleutherAI), after Chang et al., "Scalable influence and fact tracing for
        large language model pretraining", ICLR 2025.
    """
    require(scores, Scores, "qld", "Scores", "qld(influence(...), recipe, objective)")
    require_training(train, "qld")
    require_question(objective, "qld")
    n = train.n if isinstance(train, AbstractTraining) else len(scores)
    groups, sign = strongest_and_random(scores, n, effect=effect, share=drop, draws=draws, seed=seed)
    weights = torch.ones(1 + len(groups), n, dtype=torch.float64)
    weights[1:] = weights[1:].scatter(1, groups, 0.0)
    names, found = answers(train, objective, weights, executor=executor, store=store)
    require_answered(scores.objectives, names)
    changes = found[1:] - found[0]
    return beside_random(changes, -sign, groups.shape[1], names, scores.method, seed)  # what lowers it, gone, raises


def strongest_and_random(
    scores: Scores, n: int, *, effect: Literal["lowers", "raises"], share: float, draws: int, seed: int
) -> tuple[Int[Tensor, "g s"], int]:
    """Random groups of samples, then the strongest samples of each question, as many in each.

    Args:
        scores: Of all samples.
        n: Samples of the training.
        effect: Which are strongest: those that lower a question, or that raise it.
        share: Of the samples in a group; at least one is.
        draws: Random groups.
        seed: Of the random groups.

    Returns:
        Rows of the samples, shape `(draws + m, s)`, and 1 for those that raise, -1 for those that lower.

    Raises:
        DataError: If the scores are not those of all samples, or a number means nothing.
        ValueError: If the effect is neither word.
    """
    if effect not in ("lowers", "raises"):
        raise ValueError(f"Got effect={effect!r}; needed 'lowers' or 'raises'.")
    if n != len(scores):
        raise DataError(f"Got {len(scores)} scores for a training set of {n}; needed one for each sample.")
    if draws < 1 or n < 2:
        raise DataError(f"Got draws={draws} and {n} scores; needed at least one draw, and two samples.")
    random = (without_random(n, draws, share, seed) == 0).nonzero()[:, 1].view(draws, -1)
    sign = -1 if effect == "lowers" else 1
    ranked = (sign * scores.values.detach().cpu().double()).argsort(dim=0, descending=True, stable=True)  # (n, m)
    return torch.cat([random, ranked[: random.shape[1]].T]), sign


def beside_random(changes: Tensor, sign: int, size: int, names: tuple[str, ...], method: str, seed: int) -> QLD:
    """Each question's change by its own samples, less the mean of those by random ones.

    Args:
        changes: Shape `(r + m, m)`: by random samples, then by those of each of the m questions.
        sign: Of the promised direction.
        size: Samples in each group.
        names: Of the questions.
        method: How the scores came about.
        seed: Of the interval.

    Returns:
        The mean over the questions with its interval.
    """
    draws = len(changes) - len(names)
    promised = sign * changes.double().numpy()
    own, others = np.diagonal(promised[draws:]).copy(), promised[:draws]
    each = own - others.mean(0)
    by_objective = dict(zip(names, each.tolist(), strict=True))
    return QLD(_mean(each, seed), by_objective, sign * own, sign * others, size, names, method)


def _mean(values: Float[np.ndarray, " m"], seed: int) -> Estimate:
    """A mean with its bootstrap interval."""
    if len(values) < 2:
        return Estimate(float(values.mean()), float("nan"), float("nan"))
    rows = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[rows].mean(1), [0.025, 0.975])
    return Estimate(float(values.mean()), low, high)
