"""The course of a training, step by step: what a recipe runs forwards, and `replay` backwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.func import grad, vmap

from .._autodiff.functional import recorded_twice
from .._autodiff.trained import Hooks
from .._autodiff.ways import slope
from .._data.batches import Batches
from .._types import Batch, Params
from .optimizers import AbstractOptimizer, State

Field: TypeAlias = Callable[[int, Params, Params, Batch, Tensor], Params]
"""`(step, theta, frozen theta, batch, weights)` to the field of that batch."""


class Point(NamedTuple):
    """The state of training between two steps; all tensors may share leading dimensions, one for each training.

    Attributes:
        theta: The parameters.
        state: What the optimiser remembers.
        frozen: The parameters that a `FieldLoss` sees as frozen in the next step.
    """

    theta: Params
    state: State
    frozen: Params


@dataclass(frozen=True, eq=False)
class Trajectory:
    """All steps of one training.

    Attributes:
        theta: Where training begins.
        total: `(theta, frozen theta, batch, weights)` to the weighted sum of the batch's losses.
        data: Where batches come from.
        rows: Samples of each step; `None` for all of them, in order.
        rates: What each step's learning rate is multiplied by.
        optimizer: How to step.
        decays: The l2 coefficient of each parameter.
        hooks: What each parameter's gradient goes through before a step, as after `backward`.
        hold: Steps between two refreshes of the frozen parameters.
        whole: All samples as one batch, if a step takes them all.
        seeds: Of the random numbers that the loss draws in each step, the same for every training; `None` if it draws
            none.
        clipping: The largest norm of a whole gradient; longer ones are shortened to it.
    """

    theta: Params
    total: Callable[[Params, Params, Batch, Tensor], Tensor]
    data: Batches
    rows: tuple[Tensor | None, ...]
    rates: tuple[float, ...]
    optimizer: AbstractOptimizer
    decays: Mapping[str, float]
    hooks: Hooks
    hold: int
    whole: Batch | None
    seeds: tuple[int, ...] | None
    clipping: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def start(self, theta: Params) -> Point:
        """The point before the first step."""
        return Point(theta, self.optimizer.start(theta), theta)

    def part(self, step: int, weights: Shaped[Tensor, "*r n"]) -> tuple[Batch, Shaped[Tensor, "*r b"]]:
        """The batch of a step, counted from 0, and the weights of its samples."""
        rows = self.rows[step]
        return (self.whole, weights) if rows is None else (self.data.take(rows), weights[..., rows])

    def advance(
        self, point: Point, step: int, batch: Batch, weights: Shaped[Tensor, "*r b"], *, differentiable: bool = False
    ) -> Point:
        """One step, of one training or of many at once.

        Args:
            point: Where training is.
            step: Counted from 0.
            batch: From `part`.
            weights: From `part`.
            differentiable: Whether a graph of the step is recorded, of one training.

        Returns:
            Where training is afterwards.
        """
        gradient, _ = self.gradient(point, step, batch, weights, differentiable=differentiable)
        return self.stepped(point, step, gradient)

    def gradient(
        self, point: Point, step: int, batch: Batch, weights: Shaped[Tensor, "*r b"], *, differentiable: bool = False
    ) -> tuple[Params, Shaped[Tensor, "*r"]]:
        """The clipped gradient of a step, and the factor by which it was clipped; arguments as in `advance`."""
        if weights.ndim > 1:
            found = self._fields(step, point.theta, point.frozen, batch, weights)
        else:
            found = self._one_field(step, point.theta, point.frozen, batch, weights, differentiable)
        if self.clipping is None:
            return found, weights.new_ones(weights.shape[:-1])
        return _clipped(found, self.clipping, weights.ndim - 1)

    def stepped(self, point: Point, step: int, gradient: Params) -> Point:
        """The state of training after a step along a gradient."""
        theta, state = self.optimizer.step(point.theta, gradient, point.state, step + 1, self.rates[step])
        return Point(theta, state, theta if (step + 1) % self.hold == 0 else point.frozen)

    def _field(self, step: int, theta: Params, frozen: Params, batch: Batch, weights: Shaped[Tensor, " b"]) -> Params:
        """The direction against which a step of one training moves, as a function that can be vectorised."""
        with self._drawn(step):
            part = grad(self.total)(theta, frozen, batch, weights)
        return self._whole_field(part, theta, weights)

    def _one_field(
        self,
        step: int,
        theta: Params,
        frozen: Params,
        batch: Batch,
        weights: Shaped[Tensor, " b"],
        differentiable: bool = False,
    ) -> Params:
        """The same by plain autograd, which asks nothing of the loss that training does not."""

        def total(live: Params) -> Tensor:
            return self.total(live, frozen, batch, weights)

        if self.seeds is not None:  # attention draws otherwise here than in many trainings at once: go their way
            with contextlib.suppress(Exception), self._drawn(step), recorded_twice():
                return self._whole_field(grad(total)(theta), theta, weights)
        with self._drawn(step):
            part = slope(total, theta, differentiable=differentiable)
        return self._whole_field(part, theta, weights)

    def _whole_field(self, part: Params, theta: Params, weights: Shaped[Tensor, " b"]) -> Params:
        whole = {name: part[name] / len(weights) + self.decays[name] * theta[name] for name in theta}
        return {name: _hooked(whole[name], self.hooks.get(name, ())) for name in theta}

    @cached_property
    def _fields(self) -> Field:
        on_cpu = all(tensor.device.type == "cpu" for tensor in self.theta.values())
        possible = self.seeds is None or on_cpu  # fused dropout draws otherwise than vmap
        return _together(self._field, self._one_field, possible=possible)

    @contextlib.contextmanager
    def _drawn(self, step: int) -> Iterator[None]:
        """Random numbers inside depend on the step alone, and those outside on nothing that is drawn inside."""
        if self.seeds is None:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.seeds[step])
            yield


def _clipped(gradient: Params, norm: float, lead: int) -> tuple[Params, Shaped[Tensor, "*r"]]:
    """As `torch.nn.utils.clip_grad_norm_`, for each training of its own."""
    squares = [part.reshape(*part.shape[:lead], -1).square().sum(-1) for part in gradient.values()]
    total = torch.stack(squares).sum(0)
    tiny = torch.finfo(total.dtype).tiny  # the root of zero itself has no derivative
    factor = (norm / ((total + tiny).sqrt() + 1e-6)).clamp(max=1)
    spread = {name: factor.reshape(*factor.shape, *[1] * (part.ndim - lead)) for name, part in gradient.items()}
    return {name: spread[name] * part for name, part in gradient.items()}, factor


def _hooked(gradient: Tensor, hooks: Iterable[Callable[[Tensor], Tensor | None]]) -> Tensor:
    for hook in hooks:
        changed = hook(gradient)
        gradient = gradient if changed is None else changed
    return gradient


def _together(function: Field, one: Field, *, possible: bool) -> Field:
    """Many trainings at once: vectorised, or one by one where the user's code forbids it."""
    vectorised = vmap(function, in_dims=(None, 0, 0, None, 0), randomness="same")

    def call(step: int, theta: Params, frozen: Params, batch: Batch, weights: Tensor) -> Params:
        nonlocal possible
        if possible and len(weights) > 1:
            try:
                return vectorised(step, theta, frozen, batch, weights)
            except Exception:  # `.item()`, layers without storage, functions of the user's own: they go one by one
                possible = False
        each = [
            one(step, {k: v[row] for k, v in theta.items()}, {k: v[row] for k, v in frozen.items()}, batch, w)
            for row, w in enumerate(weights)
        ]
        return {name: torch.stack([part[name] for part in each]) for name in theta}

    return call
