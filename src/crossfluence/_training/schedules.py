"""Learning-rate schedules: from the share of training that is done to a multiplier of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Schedule: TypeAlias = Callable[[float], float]
"""From progress in [0, 1) to a multiplier of the learning rate."""


def constant(progress: float) -> float:
    """The full learning rate throughout."""
    return 1.0


def linear(progress: float) -> float:
    """From the full learning rate to zero along a straight line.

    Args:
        progress: Share of the steps that are done.

    Returns:
        A multiplier of the learning rate.

    Example:
        >>> linear(0.25)
        0.75
    """
    return 1 - progress


def cosine(progress: float) -> float:
    """From the full learning rate to zero along half a cosine.

    Args:
        progress: Share of the steps that are done.

    Returns:
        A multiplier of the learning rate.

    Example:
        >>> [round(cosine(t), 3) for t in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmUp:
    """A straight line up to the full learning rate, then another schedule over the rest of training.

    Attributes:
        share: Of training that the line takes, between 0 and 1.
        then: What follows; it sees its own progress from 0 to 1.

    Example:
        >>> rate = WarmUp(0.2)
        >>> [round(rate(t), 3) for t in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    share: float
    then: Schedule = cosine

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"Got share={self.share}; needed a share of training between 0 and 1, such as 0.1.")

    def __call__(self, progress: float) -> float:
        """A multiplier of the learning rate."""
        return progress / self.share if progress < self.share else self.then((progress - self.share) / (1 - self.share))


@dataclass(frozen=True)
class StepDecay:
    """The full learning rate, multiplied by a factor at each of some moments.

    Attributes:
        at: Shares of training, each between 0 and 1.
        factor: What the rate is multiplied by at each.

    Example:
        >>> rate = StepDecay((0.5, 0.75), factor=0.5)
        >>> [rate(t) for t in (0.0, 0.5, 0.8)]
        [1.0, 0.5, 0.25]
    """

    at: tuple[float, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        if not self.at or not all(0 < moment < 1 for moment in self.at):
            raise ValueError(f"Got at={self.at}; needed shares of training between 0 and 1, such as (0.5, 0.75).")

    def __call__(self, progress: float) -> float:
        """A multiplier of the learning rate."""
        return self.factor ** sum(progress >= moment for moment in self.at)
