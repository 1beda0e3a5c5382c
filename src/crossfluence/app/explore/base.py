"""Answers about any finished result: scores that are kept, predicted changes, and steps from the trained model."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from ... import amplify, undo
from ..._types import Objective
from ...errors import CrossfluenceError
from ...extend import AbstractRisk

ANSWERS = 200  # that are kept, so that going back costs nothing
ACTIONS = ("remove", "undo", "amplify")
STEPS, RATE = 10, 1e-3  # of undo and amplify, if nothing else is asked for


class QuestionError(CrossfluenceError, ValueError):
    """A question or a choice of samples that this result does not have."""


class Scored(Protocol):
    """An answer of any kind."""

    @property
    def scores(self) -> Tensor:
        """Shape `(n,)`: what having each sample did."""
        ...


QuestionT = TypeVar("QuestionT", bound=Hashable)
AnswerT = TypeVar("AnswerT", bound=Scored)


@dataclass(frozen=True)
class Tried:
    """The outcome of an action.

    Attributes:
        predicted: Change of the value by the sum of scores, or by first order along the walk.
        newton: By one Newton step; None for walks, and where no step is possible.
        achieved: Found afterwards.
        said: Why a walk ended; of training again, what else there is to say.
    """

    predicted: float
    newton: float | None
    achieved: float
    said: str = ""


class AbstractEngine(ABC, Generic[QuestionT, AnswerT]):
    """One result, asked by several threads; what the library computes goes through it one after the other.

    Args:
        risk: What was trained, and where it ended.
    """

    noun: ClassVar[str]  # for one of what was trained on

    def __init__(self, risk: AbstractRisk) -> None:
        self._risk = risk
        self._answers: OrderedDict[QuestionT, AnswerT] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def n(self) -> int:
        """Number of rows."""
        return self._risk.n

    @abstractmethod
    def _answered(self, question: QuestionT) -> AnswerT:
        """A new answer."""

    @abstractmethod
    def _objective(self, question: QuestionT) -> Objective:
        """A function of the model."""

    @abstractmethod
    def newton(self, question: QuestionT, chosen: Sequence[int]) -> float | None:
        """The change by one Newton step without some rows; nothing where no step is possible."""

    @abstractmethod
    def remove(
        self, question: QuestionT, chosen: Sequence[int], tell: Callable[[int, int], object] | None = None
    ) -> Tried:
        """Trains again without some rows; answers to other questions go on meanwhile.

        Args:
            question: Whose value is compared.
            chosen: Row numbers.
            tell: Is called after every step with the steps taken and their number, 0 where it is not known; what it
                raises ends the training.

        Returns:
            Changes predicted and achieved.
        """

    def answer(self, question: QuestionT) -> AnswerT:
        """Scores of all rows for a question, kept for the next time."""
        with self._lock:
            if question in self._answers:
                self._answers.move_to_end(question)
                return self._answers[question]
            answer = self._answers[question] = self._answered(question)
            if len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)
            return answer

    def summed(self, question: QuestionT, chosen: Sequence[int]) -> float:
        """The change that removing rows makes by the sum of their scores."""
        return -float(self.answer(question).scores[self.checked(chosen)].sum())

    def walk(self, action: str, question: QuestionT, chosen: Sequence[int], steps: int, lr: float) -> Tried:
        """Undoes or amplifies rows by steps on their loss, from the trained model.

        Args:
            action: "undo" or "amplify".
            question: Whose value is compared.
            chosen: Row numbers.
            steps: How many.
            lr: Adam's learning rate.

        Returns:
            Changes predicted along the walk, and achieved.
        """
        verb = undo if action == "undo" else amplify
        rows, objective = self.checked(chosen), self._objective(question)
        with self._lock:
            outcome = verb(self._risk, self._labels(rows), steps=steps, lr=lr, watch=objective)
        assert outcome.predicted is not None
        return Tried(float(outcome.predicted), None, float(outcome.achieved), outcome.stopped)

    def checked(self, chosen: Sequence[int]) -> list[int]:
        """Row numbers, each once and in order.

        Args:
            chosen: As they came.

        Returns:
            Row numbers.

        Raises:
            QuestionError: If there are none, more than half, or unknown ones.
        """
        rows = sorted(set(chosen))
        if not rows:
            raise QuestionError(f"Choose at least one {self.noun}.")
        if not all(0 <= row < self.n for row in rows):
            raise QuestionError(f"Row numbers must be from 0 to {self.n - 1}.")
        if 2 * len(rows) > self.n:
            raise QuestionError(f"Got {len(rows)} of {self.n} {self.noun}s; choose at most half of them.")
        return rows

    def _labels(self, rows: Sequence[int]) -> list[Hashable]:
        labels = self._risk.labels
        return [labels[row] for row in rows]
