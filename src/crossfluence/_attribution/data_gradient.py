"""Derivatives of a training's end by the training data themselves: every pixel, feature and label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._require import require_question, require_recipe
from .._training.recipe import Recipe
from .._types import Batch, Objective
from ..errors import DataError
from .unrolled import Put, differentiate_training


def data_gradient(
    recipe: Recipe, objective: Objective, *, part: int | str = 0, keep: int | None = None
) -> dict[str, Tensor]:
    r"""Derivatives of each objective by every number of the training data, exact, through every step.

    $$\partial\, m(\theta_T(x)) / \partial x_i$$

    has the shape of the sample: an image for an image, a row for one-hot labels. Positive means that a larger number
    there, in the whole training, would have raised m. It is `replay` with the data in the place of the weights, at
    the same cost; the answers to all questions together are held, each as large as that part of the data.

    Args:
        recipe: The training; it is run once to see where it ends.
        objective: The question, or several: all are answered in one sweep.
        part: Which tensor of a batch: its place in a tuple, or its key. It must hold floats: give labels as one-hot
            or soft targets, which `cross_entropy` takes too.
        keep: As in `replay`.

    Returns:
        For each objective by name a tensor of the shape of that part of the data, `(n, ...)`, in units of the
        objective for one unit of the data.

    Raises:
        DataError: If there is no such part, or it holds integers.
        ObjectiveError: If the objective does not depend on the trained parameters.
        NonFiniteError: If training diverged, or a derivative is not finite.
        UnsupportedError: If it is not a recipe, or no question.
        ValueError: If fewer than two points may be kept.

    Example:
        >>> import torch
        >>> from crossfluence import SGD
        >>> x, y = torch.ones(2, 1), torch.tensor([[0.0], [2.0]])
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1) / 2
        >>> start = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(start.weight)
        >>> one_step = Recipe(start, loss, (x, y), optimizer=SGD(0.1), epochs=1)  # the weight becomes 0.1 mean(x y)
        >>> data_gradient(one_step, lambda model: {"weight": model.weight[0, 0]}, part=1)
        {'weight': tensor([[0.0500],
                [0.0500]])}

    References:
        Maclaurin, Duvenaud and Adams, "Gradient-based hyperparameter optimization through reversible learning", ICML
        2015, who learn training images this way.
    """
    require_recipe(recipe, Recipe, "data_gradient")
    require_question(objective, "data_gradient")

    def chosen(_: int, batch: Batch, weights: Tensor) -> tuple[Tensor, Put]:
        parts = _parts(batch)
        if part not in parts:
            raise DataError(f"Got part={part!r} of batches with the parts {list(parts)}; needed one of them.")
        return _floats(parts[part], part), lambda value: (_with(batch, part, value), weights)

    found = differentiate_training(recipe, objective, chosen, keep)
    return dict(zip(found.names, found.effects, strict=True))


def _parts(batch: Batch) -> dict[Any, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    return dict(enumerate(batch if isinstance(batch, (tuple, list)) else [batch]))


def _with(batch: Batch, part: Any, value: Tensor) -> Batch:
    """The batch with another tensor in one place."""
    if isinstance(batch, Mapping):
        return {**batch, part: value}
    if isinstance(batch, (tuple, list)):
        return (*batch[:part], value, *batch[part + 1 :])
    return value


def _floats(values: Any, part: int | str) -> Tensor:
    if not isinstance(values, Tensor):
        raise DataError(
            f"Part {part!r} of a batch is a {type(values).__name__}; needed a tensor. Give the recipe tensors, or a "
            f"dataset whose samples are tensors or tuples or dicts of them."
        )
    if not values.is_floating_point():
        raise DataError(
            f"Part {part!r} of the data holds {values.dtype}, which has no derivative; needed floats. Give labels as "
            f"one_hot(y, classes).double(): cross_entropy takes them as soft targets. Other parts: part=0, 1, ..."
        )
    return values
