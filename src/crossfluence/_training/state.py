"""The state of a training between two steps: saved, read again, and gone on from to the bit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from jaxtyping import Shaped
from torch import Tensor

from .._storage.archive import fitting, read_tensors, write_tensors
from .._types import Params
from ..errors import DataError, StaleError
from .trajectory import Point, Trajectory

FORMAT = "crossfluence.state/1"
BETWEEN = "|"  # no parameter's name has one


@dataclass(frozen=True, eq=False)
class TrainingState:
    """The state of a training before a step.

    Attributes:
        step: Counted from 0.
        point: Parameters, what the optimiser remembers, and the parameters that a `FieldLoss` sees as frozen.
        content: Content hash of the recipe.

    Example:
        >>> import torch
        >>> from crossfluence import SGD, Recipe
        >>> loss = lambda model, batch: (model(batch) - 1).square().sum(1)
        >>> recipe = Recipe(torch.nn.Linear(1, 1), loss, torch.ones(4, 1), optimizer=SGD(0.1), epochs=5)
        >>> bool((recipe.resume(recipe.state(3)).weight == recipe.train().weight).all())
        True
    """

    step: int
    point: Point = field(repr=False)
    content: str = field(repr=False)

    def check(self, content: str) -> None:
        """Makes sure that it is a state of a recipe.

        Args:
            content: The recipe's hash.

        Raises:
            StaleError: If it is not.
        """
        if content != self.content:
            raise StaleError(
                f"This state is of another recipe (content hash {self.content[:8]}, here {content[:8]}). Type "
                f"recipe.state({self.step}) again."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically.

        Args:
            path: Where to.

        Raises:
            ResultFileError: If the folder cannot be written.
        """
        parts = {"theta": self.point.theta, "frozen": self.point.frozen}
        parts |= {f"state {name}": params for name, params in self.point.state.items()}
        tensors = {f"{part}{BETWEEN}{name}": one for part, params in parts.items() for name, one in params.items()}
        write_tensors(path, FORMAT, tensors, step=str(self.step), content=self.content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainingState:
        """Reads what `save` wrote.

        Args:
            path: A file written by `save`.

        Returns:
            An equal state, to the bit.

        Raises:
            ResultFileError: If the file is missing, damaged or of another format.
        """
        found = read_tensors(path, FORMAT)
        with fitting(path):
            parts: dict[str, Params] = {}
            for key, tensor in found.tensors.items():
                part, _, name = key.partition(BETWEEN)
                parts.setdefault(part, {})[name] = tensor
            state = {part.removeprefix("state "): parts[part] for part in parts if part.startswith("state ")}
            point = Point(parts["theta"], state, parts["frozen"])
            return cls(int(found.texts["step"]), point, found.texts["content"])


def walked(course: Trajectory, weights: Shaped[Tensor, " n"], point: Point, steps: Iterable[int]) -> Point:
    """The point after some steps.

    Args:
        course: Of the training.
        weights: Of the samples.
        point: Before the first of the steps.
        steps: Their numbers.

    Returns:
        The point after the last.
    """
    like = course.theta
    order = {name: point.theta[name] for name in like}  # of the course: a file holds names in another
    point = Point(order, {part: {name: params[name] for name in like} for part, params in point.state.items()},
                  {name: point.frozen[name] for name in like})  # fmt: skip
    for step in steps:
        point = course.advance(point, step, *course.part(step, weights))
    return point


def state_before(course: Trajectory, weights: Shaped[Tensor, " n"], step: int, content: str) -> TrainingState:
    """The state before a step.

    Args:
        course: Of the training.
        weights: Of the samples.
        step: Counted from 0.
        content: Content hash of the recipe.

    Returns:
        The state.

    Raises:
        DataError: If the training has fewer steps.
    """
    if not 0 <= step <= len(course):
        raise DataError(f"There is no state before step {step}; the training has {len(course)} steps, from 0.")
    return TrainingState(step, walked(course, weights, course.start(course.theta), range(step)), content)
