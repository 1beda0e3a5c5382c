"""Whether a small change of the data moves the answer in proportion, as every first-order estimate assumes."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import Executor

import torch

from .._compare import Agreement, compare
from .._errors import DataError, RoughTrainingWarning
from .._scores import Scores
from .._types import Objective
from .bank import Bank
from .draws import without_random
from .recipe import Recipe
from .retrain import answers

SMOOTH = 0.9  # correlation between twice the effect of half a removal and that of the whole


def smoothness(
    train: Recipe | Bank,
    objective: Objective,
    *,
    drop: float = 0.01,
    groups: int = 16,
    seed: int = 0,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Agreement:
    """Is training smooth enough for first-order answers? Removes random groups by half and wholly, and compares.

    Where the answer moves in proportion to the weights, twice the effect of half a removal is the effect of the whole.
    How far the two agree bounds how well `replay`, or any first-order score, can predict removals of this size. It
    needs no scores, only `2 groups + 1` trainings, which a recipe does together.

    Args:
        train: The training.
        objective: The question.
        drop: Share of the samples in each group, at least one sample.
        groups: Random groups, at least three.
        seed: Of the groups.
        executor: As in `leave_out`.
        store: As in `leave_out`.

    Returns:
        Twice the effects of half removals as predictions, beside the effects of whole ones.

    Raises:
        DataError: If there are fewer than three groups, or the share is not between 0 and 1.

    Warns:
        RoughTrainingWarning: If the two correlate below 0.9.

    Example:
        >>> from crossfluence import SGD
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> loss = lambda model, batch: (model(batch) - batch.sum(1, keepdim=True).sin()).square().sum(1)
        >>> recipe = Recipe(torch.nn.Linear(3, 1).double(), loss, x, optimizer=SGD(0.1, 0.9), epochs=30, l2=0.1)
        >>> smoothness(recipe, lambda model: model.weight.sum()).pearson > 0.95
        True

    References:
        After the metasmoothness of Engstrom et al., "Optimizing ML training with metagradient descent",
        arXiv:2503.13751.
    """
    if groups < 3:
        raise DataError(f"Got groups={groups}; needed at least 3 to speak of agreement.")
    without = without_random(train.n, groups, drop, seed)
    weights = torch.cat([torch.ones_like(without[:1]), (1 + without) / 2, without])
    names, values = answers(train, objective, weights, executor=executor, store=store)
    ids = tuple(range(groups))
    half, whole = (Scores(values[:1] - part, ids, names, "half removals") for part in values[1:].split(groups))
    found = compare(Scores(2 * half.values, ids, names, half.method), whole)
    if not found.pearson >= SMOOTH:
        warnings.warn(
            f"Training is rough: twice the effect of half-removing {groups} random groups correlates with that of "
            f"removing them at {found.pearson:.2f} only, so no first-order estimate will predict such removals. Lower "
            f"the learning rate or let it warm up, take larger batches, smooth activations (GELU, tanh) instead of "
            f"ReLU, a larger eps or eps_root in Adam, more l2, or float64 where effects are small; or ask leave_out.",
            RoughTrainingWarning,
            stacklevel=2,
        )
    return found
