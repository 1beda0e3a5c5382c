"""The course of a training, step by step: what a recipe runs forwards, and `replay` backwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from jaxtyping import Shaped
from torch import Tensor
from torch.func import grad

from .._data import Batches
from .._types import Batch, Params
from .optimizers import AbstractOptimizer, State

Field: TypeAlias = Callable[[Params, Params, Batch, Tensor], Params]
"""`(theta, frozen theta, batch, weights)` to the field of that batch."""


class Point(NamedTuple):
    """Where training is between two steps; all tensors may share leading dimensions, one for each training.

    Attributes:
        theta: The parameters.
        state: What the optimiser remembers.
        frozen: The parameters that a `FieldLoss` sees as frozen in the next step.
    """

    theta: Params
    state: State
    frozen: Params


@dataclass(frozen=True, eq=False)
class Course:
    """All steps of one training.

    Attributes:
        theta: Where training begins.
        total: `(theta, frozen theta, batch, weights)` to the weighted sum of the batch's losses.
        data: Where batches come from.
        rows: Samples of each step; `None` for all of them, in order.
        rates: What each step's learning rate is multiplied by.
        optimizer: How to step.
        l2: As in `Risk`.
        hold: Steps between two refreshes of the frozen parameters.
        whole: All samples as one batch, if a step takes them all.
    """

    theta: Params
    total: Callable[[Params, Params, Batch, Tensor], Tensor]
    data: Batches
    rows: tuple[Tensor | None, ...]
    rates: tuple[float, ...]
    optimizer: AbstractOptimizer
    l2: float
    hold: int
    whole: Batch | None

    def __len__(self) -> int:
        return len(self.rows)

    def start(self, theta: Params) -> Point:
        """The point before the first step."""
        return Point(theta, self.optimizer.start(theta), theta)

    def part(self, step: int, weights: Shaped[Tensor, "*r n"]) -> tuple[Batch, Shaped[Tensor, "*r b"]]:
        """The batch of a step, counted from 0, and the weights of its samples."""
        rows = self.rows[step]
        return (self.whole, weights) if rows is None else (self.data.take(rows), weights[..., rows])

    def field(self, theta: Params, frozen: Params, batch: Batch, weights: Shaped[Tensor, " b"]) -> Params:
        """The direction against which a step of one training moves."""
        part = grad(self.total)(theta, frozen, batch, weights)
        return {name: part[name] / len(weights) + self.l2 * theta[name] for name in theta}

    def advance(self, point: Point, step: int, batch: Batch, weights: Tensor, field: Field | None = None) -> Point:
        """One step.

        Args:
            point: Where training is.
            step: Counted from 0.
            batch: From `part`.
            weights: From `part`.
            field: For many trainings at once; default: that of one.

        Returns:
            Where training is afterwards.
        """
        gradient = (field or self.field)(point.theta, point.frozen, batch, weights)
        theta, state = self.optimizer.step(point.theta, gradient, point.state, step + 1, self.rates[step])
        return Point(theta, state, theta if (step + 1) % self.hold == 0 else point.frozen)
