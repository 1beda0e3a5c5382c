"""The predicted and the achieved effect of an action."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._risk.base import AbstractRisk
from .._risk.objectives import evaluate, questions
from .._types import Objective


@dataclass(frozen=True, eq=False)
class Outcome:
    """A new model, with what was predicted and what happened.

    Attributes:
        model: The new model; the user's own is untouched.
        objectives: m labels; empty if nothing was watched.
        before: Shape `(m,)`, the objectives at the trained model.
        after: Shape `(m,)`, the objectives at the new model.
        predicted: Shape `(m,)`, the change that was predicted; `None` where no prediction was asked for.
        history: Shape `(steps + 1, m)`, the objectives after each step, for actions that take steps.
        method: The action.
        stopped: Where and why the steps ended, or the choice of actions.
        linear: Shape `(m,)`, the sum of first-order effects, where `predicted` is of one Newton step.
        random: Shape `(r, m)`, changes by as many actions on random samples.
        noise: Shape `(m,)`, the standard error of the change over seeds.
    """

    model: nn.Module = field(repr=False)
    objectives: tuple[str, ...]
    before: Float[Tensor, " m"]
    after: Float[Tensor, " m"]
    predicted: Float[Tensor, " m"] | None = None
    history: Float[Tensor, "t m"] | None = field(default=None, repr=False)
    method: str = ""
    stopped: str = ""
    linear: Float[Tensor, " m"] | None = None
    random: Float[Tensor, "r m"] | None = field(default=None, repr=False)
    noise: Float[Tensor, " m"] | None = None

    @property
    def steps(self) -> int:
        """Number of steps taken and kept."""
        return 0 if self.history is None else len(self.history) - 1

    @property
    def achieved(self) -> Float[Tensor, " m"]:
        """The change that happened, in units of the objectives."""
        return self.after - self.before


def watched(watch: Objective | None, model: nn.Module) -> tuple[tuple[str, ...], Tensor]:
    """Names and values of what is watched, or of nothing."""
    return ((), torch.zeros(0, dtype=torch.float64)) if watch is None else evaluate(watch, model)


def first_order(risk: AbstractRisk, watch: Objective | None, moved: Tensor) -> Tensor | None:
    """The change of what is watched, predicted from its gradient for a step `(p,)` away from the trained parameters."""
    if watch is None:
        return None
    return torch.cat([chunk.gradients @ moved for chunk in questions(watch, risk.model, risk.theta)]).cpu().double()
