"""Answers about a finished clustering: scores, predicted changes, and training again without some samples."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import amplify, influence, undo, unlearn
from ..._types import Objective
from ...clustering import margin
from ...errors import CrossfluenceError
from .result import Result

ANSWERS = 200  # that are kept, so that going back costs nothing
ACTIONS = ("remove", "undo", "amplify")
STEPS, RATE = 10, 1e-3  # of undo and amplify, if nothing else is asked for


class QuestionError(CrossfluenceError, ValueError):
    """A question or a choice of samples that this result does not have."""


@dataclass(frozen=True)
class Question:
    """The margin of a row between two clusters.

    Attributes:
        row: Which row.
        first: The cluster whose side is positive.
        second: The other.
    """

    row: int
    first: int
    second: int


@dataclass(frozen=True, eq=False)
class Answer:
    """Scores of one question.

    Attributes:
        question: Which.
        margin: In nats.
        probability: Of each cluster, for the row.
        scores: Shape `(n,)`, nats: what having each sample did to the margin.
    """

    question: Question
    margin: float
    probability: list[float]
    scores: Float[Tensor, " n"] = field(repr=False)


@dataclass(frozen=True)
class Tried:
    """The outcome of an action.

    Attributes:
        predicted: Change of the margin by the sum of scores, or by first order along the walk.
        newton: By one Newton step; None for walks.
        achieved: Found afterwards.
        said: Why a walk ended; empty for training again.
    """

    predicted: float
    newton: float | None
    achieved: float
    said: str = ""


class Engine:
    """One result, asked by several threads; what the library computes goes through it one after the other.

    Args:
        result: A finished clustering.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        self._found = result.found
        self._answers: OrderedDict[Question, Answer] = OrderedDict()
        self._lock = threading.Lock()
        with torch.no_grad():
            self.q = self._found.model(self._found.x)
            self.z = self._found.model.embed(self._found.x)
        self._rows = {str(label): row for row, label in enumerate(self._found.risk.labels)}

    @property
    def n(self) -> int:
        """Number of rows."""
        return self._found.risk.n

    @property
    def ids(self) -> Sequence[str]:
        """Labels of rows, as text."""
        return [str(label) for label in self._found.risk.labels]

    def row(self, label: str) -> int:
        """The row number of an id as it was typed.

        Args:
            label: The id.

        Returns:
            Its row number.

        Raises:
            QuestionError: If there is no such row.
        """
        if label.strip() not in self._rows and label not in self._rows:
            raise QuestionError(f"No {self.result.samples.noun} has the id {label.strip()!r}.")
        return self._rows[label if label in self._rows else label.strip()]

    def question(self, row: int, first: int | None = None, second: int | None = None) -> Question:
        """A question about a row; default: between the two clusters that it belongs to most.

        Args:
            row: Row number.
            first: Another first cluster.
            second: Another second one.

        Returns:
            The question.

        Raises:
            QuestionError: If there is no such row or cluster, or both are the same.
        """
        if not 0 <= row < self.n:
            raise QuestionError(f"There is no row number {row}; there are {self.n}.")
        order = self.q[row].argsort(descending=True).tolist()
        one = order[0] if first is None else first
        other = next(cluster for cluster in order if cluster != one) if second is None else second
        if one == other or not all(0 <= cluster < self.q.shape[1] for cluster in (one, other)):
            raise QuestionError(f"Clusters {one} and {other} must be two of 0 to {self.q.shape[1] - 1}.")
        return Question(row, one, other)

    def answer(self, question: Question) -> Answer:
        """Scores of all samples for a question, kept for the next time."""
        with self._lock:
            if question in self._answers:
                self._answers.move_to_end(question)
                return self._answers[question]
            scores = influence(self._found.risk, self._objective(question), self._found.inverse)
            value = self._value(question, self._found.model)
            answer = Answer(question, value, self.q[question.row].tolist(), scores.values[:, 0])
            self._answers[question] = answer
            if len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)
            return answer

    def summed(self, question: Question, chosen: Sequence[int]) -> float:
        """The change that removing samples makes by the sum of their scores, in nats."""
        return -float(self.answer(question).scores[self.checked(chosen)].sum())

    def newton(self, question: Question, chosen: Sequence[int]) -> float:
        """The change by one Newton step without the samples, in nats; see `unlearn`."""
        objective, rows = self._objective(question), self.checked(chosen)
        with self._lock:
            outcome = unlearn(self._found.risk, self._labels(rows), self._found.solver, watch=objective)
        return float(outcome.achieved)

    def remove(
        self, question: Question, chosen: Sequence[int], tell: Callable[[int, int], object] | None = None
    ) -> Tried:
        """Trains again without samples; answers to other questions go on meanwhile.

        Args:
            question: Whose margin is compared.
            chosen: Row numbers.
            tell: Is called after every step with the steps taken and their number; what it raises ends the training.

        Returns:
            Changes predicted and achieved.
        """
        rows = self.checked(chosen)
        predicted, newton = self.summed(question, rows), self.newton(question, rows)
        model = self._found.trained_again(rows, tell)
        return Tried(predicted, newton, self._value(question, model) - self.answer(question).margin)

    def walk(self, action: str, question: Question, chosen: Sequence[int], steps: int, lr: float) -> Tried:
        """Undoes or amplifies samples by steps on their loss, from the trained model.

        Args:
            action: "undo" or "amplify".
            question: Whose margin is compared.
            chosen: Row numbers.
            steps: How many.
            lr: Adam's learning rate.

        Returns:
            Changes predicted along the walk, and achieved.
        """
        verb = undo if action == "undo" else amplify
        rows = self.checked(chosen)
        with self._lock:
            outcome = verb(self._found.risk, self._labels(rows), steps=steps, lr=lr, watch=self._objective(question))
        assert outcome.predicted is not None
        return Tried(float(outcome.predicted), None, float(outcome.achieved), outcome.stopped)

    def checked(self, chosen: Sequence[int]) -> list[int]:
        """Row numbers, each once and in order.

        Args:
            chosen: As they came.

        Returns:
            Row numbers.

        Raises:
            QuestionError: If there are none, all, or unknown ones.
        """
        rows = sorted(set(chosen))
        if not rows:
            raise QuestionError("Choose at least one sample.")
        if not all(0 <= row < self.n for row in rows):
            raise QuestionError(f"Row numbers must be from 0 to {self.n - 1}.")
        if 2 * len(rows) > self.n:
            raise QuestionError(f"Got {len(rows)} of {self.n} samples; choose at most half of them.")
        return rows

    def _labels(self, rows: Sequence[int]) -> list[object]:
        labels = self._found.risk.labels
        return [labels[row] for row in rows]

    def _objective(self, question: Question) -> Objective:
        return margin(self._found.x[question.row], question.first, question.second)

    def _value(self, question: Question, model: nn.Module) -> float:
        with torch.no_grad():
            found = self._objective(question)(model)
        assert isinstance(found, Tensor)
        return float(found)
