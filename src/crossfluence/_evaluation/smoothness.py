"""A check that small changes of the data move the answer in proportion, as every first-order estimate assumes."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import Executor
from typing import Literal, overload

from .._require import AbstractTraining, require, require_question
from .._results.agreement import Agreement
from .._results.verdict import ROUGH
from .._types import Objective
from ..errors import RoughTrainingWarning
from .nudges import Nudges
from .suggestions import SMOOTH, Suggestions, suggestions


@overload
def smoothness(
    train: AbstractTraining,
    objective: Objective,
    *,
    drop: float = 0.01,
    groups: int = 16,
    nudge: float = 0.01,
    seed: int = 0,
    suggest: Literal[False] = False,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Agreement: ...
@overload
def smoothness(
    train: AbstractTraining,
    objective: Objective,
    *,
    drop: float = 0.01,
    groups: int = 16,
    nudge: float = 0.01,
    seed: int = 0,
    suggest: Literal[True],
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Suggestions: ...
def smoothness(
    train: AbstractTraining,
    objective: Objective,
    *,
    drop: float = 0.01,
    groups: int = 16,
    nudge: float = 0.01,
    seed: int = 0,
    suggest: bool = False,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Agreement | Suggestions:
    """Is training smooth enough for first-order answers? Sets a small change of the data beside a removal.

    Takes a hundredth of the weight of random groups, and then all of it. Where the answer moves in proportion, a
    hundred times the one effect is the other. How far they agree tells how well `replay`, the limit of small changes,
    can predict removals of this size. It needs no scores, only `2 groups + 1` trainings, which a recipe does together.

    Args:
        train: The training.
        objective: The question.
        drop: Share of the samples in each group, at least one sample.
        groups: Random groups, at least three.
        nudge: Share of the groups' weight that makes a small change; where effects drown in float32, raise it.
        seed: Of the groups.
        suggest: Whether to try changes of the recipe that may make training smooth, too: `eps_root`, a warm-up, half
            the learning rate, larger batches, each as many trainings again.
        executor: As in `leave_out`.
        store: As in `leave_out`.

    Returns:
        The effects of the small change, scaled up, as predictions, beside those of removal; with `suggest`, these and
        all changes, with the distance of each one's model from the user's in parameters, questions and loss.

    Raises:
        DataError: If there are fewer than three groups, or a share is not between 0 and 1.
        UnsupportedError: If it is neither a recipe nor a bank.

    Warns:
        RoughTrainingWarning: If the two correlate below 0.9; not with `suggest`, whose answer says it.

    Example:
        >>> import torch
        >>> from crossfluence import SGD, Recipe
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> loss = lambda model, batch: (model(batch) - batch.sum(1, keepdim=True).sin()).square().sum(1)
        >>> start = torch.nn.Linear(3, 1, dtype=torch.float64)
        >>> _ = torch.nn.init.zeros_(start.weight), torch.nn.init.zeros_(start.bias)
        >>> recipe = Recipe(start, loss, x, optimizer=SGD(0.05), epochs=100, l2=0.1)
        >>> smoothness(recipe, lambda model: model.weight.sum()).pearson > 0.95
        True

    References:
        After the metasmoothness of Engstrom et al., "Optimizing ML training with metagradient descent",
        arXiv:2503.13751.
    """
    require(
        train, AbstractTraining, "smoothness", "a crossfluence.Recipe or a Bank",
        "smoothness(crossfluence.Recipe(init, loss, data, optimizer=..., epochs=...), objective)",
    )  # fmt: skip
    require_question(objective, "smoothness")
    nudges = Nudges(drop, groups, nudge, seed)
    if suggest:
        return suggestions(train, objective, nudges, executor, store)
    found, _ = nudges.compared(train, objective, executor, store)
    if not found.pearson >= SMOOTH:
        warnings.warn(
            f"Training is rough: the effects of taking {nudge:g} of the weight of {groups} random groups correlate "
            f"with those of removing them at {found.pearson:.2f} only: derivatives will not predict removals. {ROUGH} "
            f"More l2 helps too, and float64 where effects are small.",
            RoughTrainingWarning,
            stacklevel=2,
        )
    return found
