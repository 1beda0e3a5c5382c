"""Optimisers as pure functions: parameters, gradients and state in; parameters and state out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .._autodiff.trained import Decay, decays, held
from .._types import Params

State: TypeAlias = dict[str, Params]


class AbstractOptimizer(ABC):
    """A first-order method; leading dimensions of the tensors are separate trainings."""

    lr: float

    @abstractmethod
    def start(self, theta: Params) -> State:
        """The state before the first step."""

    @abstractmethod
    def step(self, theta: Params, gradient: Params, state: State, count: int, scale: float) -> tuple[Params, State]:
        """One step, the `count`-th from 1, with the learning rate times `scale`."""

    @abstractmethod
    def preconditioner(self, theta: Params, state: State, count: int) -> Params:
        """The factor, beside the learning rate, on a lasting change of the gradient after `count` steps."""


@dataclass(frozen=True)
class SGD(AbstractOptimizer):
    """Gradient descent with heavy-ball momentum, as `torch.optim.SGD`.

    Attributes:
        lr: Learning rate.
        momentum: Share of the last step that is kept.

    Example:
        >>> sgd = SGD(0.5)
        >>> theta, _ = sgd.step({"w": torch.ones(1)}, {"w": torch.ones(1)}, {}, 1, 1.0)
        >>> theta["w"]
        tensor([0.5000])
    """

    lr: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        check_rate(self.lr)

    def start(self, theta: Params) -> State:
        """Zero velocity."""
        return {"velocity": {name: torch.zeros_like(tensor) for name, tensor in theta.items()}} if self.momentum else {}

    def step(self, theta: Params, gradient: Params, state: State, count: int, scale: float) -> tuple[Params, State]:
        """Moves against the gradient, or the velocity."""
        if self.momentum:
            velocity = state["velocity"]
            gradient = {name: self.momentum * velocity[name] + gradient[name] for name in theta}
            state = {"velocity": gradient}
        return {name: theta[name] - self.lr * scale * gradient[name] for name in theta}, state

    def preconditioner(self, theta: Params, state: State, count: int) -> Params:
        """The sum over all steps that still feel a gradient."""
        return {name: torch.full_like(tensor, 1 / (1 - self.momentum)) for name, tensor in theta.items()}


@dataclass(frozen=True)
class Adam(AbstractOptimizer):
    """Adam, as `torch.optim.Adam`.

    Attributes:
        lr: Learning rate.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the root of the second.
        eps_root: Added under the root. Above zero it makes training a smooth function of the data also where a
            gradient is near zero, which `replay` needs: 1e-6 with a `WarmUp` in float32, 1e-8 for small models in
            float64. PyTorch has none.

    Example:
        >>> adam = Adam(0.1)
        >>> start = {"w": torch.ones(1)}
        >>> theta, _ = adam.step(start, {"w": torch.full((1,), 5.0)}, adam.start(start), 1, 1.0)
        >>> theta["w"]
        tensor([0.9000])

    References:
        Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 0.0

    def __post_init__(self) -> None:
        check_rate(self.lr)

    def start(self, theta: Params) -> State:
        """Zero means."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in theta.items()}
        return {"mean": zeros, "square": zeros}

    def step(self, theta: Params, gradient: Params, state: State, count: int, scale: float) -> tuple[Params, State]:
        """Moves along the mean gradient over its root mean square, corrected for the zero start."""
        first, second = self.betas
        mean = {name: first * state["mean"][name] + (1 - first) * gradient[name] for name in theta}
        square = {name: second * state["square"][name] + (1 - second) * gradient[name] ** 2 for name in theta}
        rate, correction = self.lr * scale / (1 - first**count), 1 - second**count
        moved = {
            name: theta[name] - rate * mean[name] / (self._root(square[name], correction) + self.eps) for name in theta
        }
        return moved, {"mean": mean, "square": square}

    def preconditioner(self, theta: Params, state: State, count: int) -> Params:
        """One over the root mean square of each gradient."""
        correction = 1 - self.betas[1] ** count
        return {name: 1 / (self._root(state["square"][name], correction) + self.eps) for name in theta}

    def _root(self, square: Tensor, correction: float) -> Tensor:
        least = max(self.eps_root, torch.finfo(square.dtype).tiny)  # the root of zero itself has no derivative
        return (square / correction + least).sqrt()


@dataclass(frozen=True)
class AdamW(AbstractOptimizer):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

    The decay is a part of the steps, not of what is minimised: the field of `Recipe.risk` does not hold it.

    Attributes:
        lr: Learning rate.
        betas: As in `Adam`.
        eps: As in `Adam`.
        eps_root: As in `Adam`.
        weight_decay: Every step first takes this share of the parameters away, times its learning rate. Or
            `{glob: share}` over parameter names; parameters that no glob names keep theirs.

    Example:
        >>> adamw = AdamW(0.1, weight_decay=0.5)
        >>> start = {"w": torch.ones(1)}
        >>> theta, _ = adamw.step(start, {"w": torch.full((1,), 5.0)}, adamw.start(start), 1, 1.0)
        >>> theta["w"]
        tensor([0.8500])

    References:
        Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 0.0
    weight_decay: Decay = 1e-2

    def __post_init__(self) -> None:
        check_rate(self.lr)
        object.__setattr__(self, "weight_decay", held(self.weight_decay))

    @property
    def _adam(self) -> Adam:
        return Adam(self.lr, self.betas, self.eps, self.eps_root)

    def start(self, theta: Params) -> State:
        """Zero means."""
        return self._adam.start(theta)

    def step(self, theta: Params, gradient: Params, state: State, count: int, scale: float) -> tuple[Params, State]:
        """Shrinks the parameters, then steps as Adam does."""
        taken = self.taken(theta)
        kept = {name: (1 - self.lr * scale * taken[name]) * tensor for name, tensor in theta.items()}
        return self._adam.step(kept, gradient, state, count, scale)

    def taken(self, theta: Params) -> dict[str, float]:
        """The decay of each parameter."""
        return decays(self.weight_decay, {name: [name] for name in theta}, "weight_decay")

    def preconditioner(self, theta: Params, state: State, count: int) -> Params:
        """As in `Adam`."""
        return self._adam.preconditioner(theta, state, count)


def check_rate(lr: float) -> None:
    """Refuses a learning rate that is not positive.

    Args:
        lr: The learning rate.

    Raises:
        ValueError: If it is zero, negative or no number.
    """
    if not lr > 0:
        raise ValueError(f"Got lr={lr}; needed a positive learning rate.")
