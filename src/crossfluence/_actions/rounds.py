"""Choosing actions in rounds: what is best by first-order effects, then Newton steps, and back if they disagree."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._autodiff.copies import copied
from .._autodiff.params import fingerprint, put
from .._risk.base import AbstractRisk
from .._risk.objectives import evaluate
from .._risk.risk import Risk
from .._risk.sharper import sharper_questions
from .._solvers.base import AbstractInverse, AbstractSolver, inverse_of
from .._types import Objective, Params
from ..errors import UnsupportedError
from .options import Options

NAMES = ("question", "keep")
LEAST_SHARE = 0.3  # of the predicted fall, below which a round is undone
QUARTER, TRIES = 4, 3  # by how much a round shrinks when it is undone, and how often
REACHED = 0.05  # share of the question's first distance to its end that counts as having reached it
LONGEST = 2  # rounds taken at most, per round asked for


@dataclass(frozen=True)
class Round:
    """One round of a choice.

    Attributes:
        actions: How many were chosen.
        predicted: Change of the question, by the sum of first-order effects.
        found: Change by Newton steps; NaN where there was a single round and none was taken.
        undone: Whether it was taken back.
    """

    actions: int
    predicted: float
    found: float
    undone: bool = False


@dataclass(frozen=True, eq=False)
class Choice:
    """Options chosen, and how.

    Attributes:
        chosen: Numbers of options, in the order in which they were chosen.
        rounds: What each round did.
        stopped: Why it ended, as a sentence.
    """

    chosen: tuple[int, ...]
    rounds: tuple[Round, ...]
    stopped: str


@dataclass(frozen=True, eq=False)
class Chooser:
    """All that decides a choice.

    Attributes:
        options: To choose from.
        solver: How to solve with the curvature.
        question: To lower.
        keep: Must not rise; nothing to ask the question alone.
        price: Units of the question for a unit of `keep`.
        until: Value of the question at which it is done.
        budget: Actions at most.
        allowed: Which options may be chosen.
    """

    options: Options
    solver: AbstractSolver
    question: Objective
    keep: Objective | None
    price: float
    until: float
    budget: int
    allowed: Bool[Tensor, " o"] = field(repr=False)

    @property
    def asked(self) -> tuple[Objective, ...]:
        """The question, and what is kept."""
        return tuple(each for each in (self.question, self.keep) if each is not None)

    def effects(self, risk: AbstractRisk, inverse: AbstractInverse) -> Float[Tensor, "o m"]:
        """First-order changes of the question, and of what is kept, by an inverse at a point beside the risk's."""
        chunks = (chunk for each in self.asked for chunk in sharper_questions(each, risk, risk))
        directions = torch.cat([inverse.solve(chunk.gradients).vectors for chunk in chunks])
        return self.options.effects(-risk.derivatives_along(directions.to(risk.weights)).double())

    def pick(
        self, effects: Float[Tensor, "o m"], free: Bool[Tensor, " o"], size: int, distance: float
    ) -> tuple[list[int], float]:
        """The best options of one round, no sample twice, as far as they are predicted to reach the end.

        Args:
            effects: Of each option.
            free: Which are left.
            size: How many at most.
            distance: From the question's value to its end.

        Returns:
            Numbers of options, best first, and the change that they are predicted to make.
        """
        total = effects[:, 0] + (self.price * effects[:, 1] if effects.shape[1] > 1 else 0)
        good = free & (total < 0) & (effects[:, 0] < 0)
        numbers = good.nonzero()[:, 0]
        ordered = numbers[total[numbers].argsort(stable=True)].tolist()
        taken, used, reached = list[int](), set[int](), 0.0
        for option in ordered:
            sample, change = int(self.options.samples[option]), float(effects[option, 0])
            if sample in used:
                continue
            if len(taken) == size or (taken and reached + change < -distance):
                break
            taken.append(option)
            used.add(sample)
            reached += change
        return taken, reached

    def in_one(self, effects: Float[Tensor, "o m"], value: float) -> Choice:
        """A choice by the first effects alone."""
        taken, predicted = self.pick(effects, self.allowed, self.budget, value - self.until)
        return Choice(tuple(taken), (Round(len(taken), predicted, float("nan")),), self._why(len(taken)))

    def in_rounds(self, effects: Float[Tensor, "o m"], value: float, rounds: int, inverse: AbstractInverse) -> Choice:
        """A choice in which every round begins where two Newton steps of the last one ended.

        Args:
            effects: Of each option at the trained model.
            value: Of the question there.
            rounds: Parts of the budget.
            inverse: Of the curvature there.

        Returns:
            The choice, without rounds that were undone.
        """
        risk, first = _numeric(self.options.risk), value - self.until
        theta, size, failures = dict(risk.theta), -(-self.budget // rounds), 0
        chosen, found, free = list[int](), list[Round](), self.allowed.clone()
        while True:
            taken, predicted = self.pick(effects, free, min(size, self.budget - len(chosen)), value - self.until)
            if not taken:
                return Choice(tuple(chosen), tuple(found), self._why(len(chosen)))
            weights = self.options.weights([*chosen, *taken])
            tried, after, there = self._refitted(risk, theta, weights, inverse)
            undone = value - after < LEAST_SHARE * -predicted
            found.append(Round(len(taken), predicted, after - value, undone))
            if undone:
                size, failures = size // QUARTER, failures + 1
            else:
                theta, value, inverse = tried, after, there
                chosen.extend(taken)
                free &= ~torch.isin(self.options.samples, self.options.samples[taken])
            if why := self._end(len(chosen), len(found), rounds, value, first, size, failures):
                return Choice(tuple(chosen), tuple(found), why)
            if not undone:
                effects = self.effects(_at(risk, theta), inverse)

    def _refitted(
        self, risk: Risk, theta: Params, weights: Tensor, inverse: AbstractInverse
    ) -> tuple[Params, float, AbstractInverse]:
        """The end of training with other weights, the question there, and the inverse of the last Newton step.

        The first step takes the inverse from before the round, whose curvature differs by the round's few rows.

        Args:
            risk: Of all rows, at the trained model.
            theta: Where the round begins.
            weights: At its end.
            inverse: Of the curvature where it begins.

        Returns:
            Parameters, value and inverse.
        """
        base = risk.gradient
        first = _stepped(_at(risk, theta)._reweighted(weights), inverse, base)
        here = _at(risk, first)._reweighted(weights)
        there = inverse_of(self.solver, here)
        second = _stepped(here, there, base)
        return second, value_of(self.question, _at(risk, second)), there

    def _end(self, chosen: int, taken: int, rounds: int, value: float, first: float, size: int, failures: int) -> str:
        if value - self.until <= REACHED * first:
            return "The question reached its end."
        if chosen >= self.budget:
            return self._why(chosen)
        if size < 1 or failures == TRIES:
            return f"The last round reached less than {LEAST_SHARE:.0%} of its prediction; undone in all: {failures}."
        return f"{taken} rounds were taken." if taken >= LONGEST * rounds else ""

    def _why(self, chosen: int) -> str:
        if chosen >= self.budget:
            return f"The budget of {self.budget} was used."
        return "No other action was predicted to lower the question at its price, or it reached its end."


def newton(risk: AbstractRisk, solver: AbstractSolver, base: Tensor) -> Params:
    """One Newton step from where a risk stands to where its field is what was left of training.

    Args:
        risk: With the new weights.
        solver: How to solve with its curvature.
        base: The field that was left at the end of training.

    Returns:
        Parameters.
    """
    return _stepped(risk, inverse_of(solver, risk), base)


def _stepped(risk: AbstractRisk, inverse: AbstractInverse, base: Tensor) -> Params:
    step = inverse.solve((risk.gradient - base).unsqueeze(0), transposed=False).vectors[0]
    return risk.layout.unflatten(risk.layout.flatten(risk.theta) - step)


def value_of(objective: Objective, risk: AbstractRisk) -> float:
    """An objective of one value at the model of a risk."""
    return float(evaluate(objective, risk.model)[1][0])


def _numeric(risk: AbstractRisk) -> Risk:
    if isinstance(risk, Risk):
        return risk
    raise UnsupportedError(f"rounds= above 1 needs a Risk; got a {type(risk).__name__}. Type rounds=1.")


def _at(risk: Risk, theta: Params) -> Risk:
    """The same risk at other parameters, with a model of its own."""
    model = copied(risk.model)
    put(theta, model)
    named = dict(model.named_parameters())
    made = risk.rebuilt(model, risk.kind, {name: named[name].detach() for name in risk.theta}, risk.weights)
    return made._changed(fingerprint=fingerprint(model))
