"""A limit on how much worse some quantity may get while a model is changed step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .._risk.base import AbstractRisk
from .._risk.objectives import evaluate
from .._types import Id, Objective, Params
from ..errors import ObjectiveError


@dataclass(frozen=True, eq=False)
class Guard:
    """A measure that may rise by a share of what it was, and no more.

    Attributes:
        name: What is measured.
        measure: Its value at some parameters; `None` if nothing is guarded.
        before: Its value where the walk begins.
        tolerance: By what share of that it may rise.
    """

    name: str
    measure: Callable[[Params], float] | None
    before: float
    tolerance: float

    @classmethod
    def of(
        cls, risk: AbstractRisk, chosen: list[Id], walking: nn.Module, guard: Objective | None, tolerance: float
    ) -> Guard:
        """The user's own measure, else the loss of all other samples, else nothing.

        Args:
            risk: Where the walk begins.
            chosen: The samples whose loss is changed.
            walking: The model that is changed; a user's measure is asked of it.
            guard: The user's own.
            tolerance: Infinite for no guard.

        Returns:
            A guard, measured where the walk begins.

        Raises:
            ValueError: If the tolerance is negative.
        """
        if not tolerance >= 0:
            raise ValueError(f"Got tolerance={tolerance}; needed a share such as 0.01, or math.inf for no guard.")
        others = risk.without(chosen)
        value = None if guard is not None or tolerance == math.inf else others.value(risk.theta)
        if value is not None:
            return cls("the loss of all other samples", lambda theta: others.value(theta) or 0.0, value, tolerance)
        if guard is None or tolerance == math.inf:
            return cls("nothing", None, 0.0, math.inf)
        return cls("the guard", lambda _: _one_number(guard, walking), _one_number(guard, risk.model), tolerance)

    def refusal(self, theta: Params) -> str:
        """The reason not to go as far as these parameters; empty if there is none."""
        if self.measure is None:
            return ""
        now, limit = self.measure(theta), self.before + self.tolerance * abs(self.before)
        if now <= limit:
            return ""
        allowed = f"tolerance={self.tolerance:g} allows {limit:.5g}"
        return f"{self.name} would rise from {self.before:.5g} to {now:.5g}; {allowed}"


def _one_number(guard: Objective, model: nn.Module) -> float:
    names, values = evaluate(guard, model)
    if len(names) != 1:
        raise ObjectiveError(f"The guard has {len(names)} values, {names[:3]}; needed one number. Combine them.")
    return float(values)
