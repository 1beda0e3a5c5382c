"""Answers about a finished clustering: scores, predicted changes, and training again without some samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import influence, unlearn
from ..._types import Objective
from ...clustering import margin
from .base import AbstractEngine, QuestionError, Tried
from .result import Result


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


class Engine(AbstractEngine[Question, Answer]):
    """A clustering that is asked.

    Args:
        result: A finished clustering.
    """

    noun = "sample"

    def __init__(self, result: Result) -> None:
        super().__init__(result.found.risk)
        self.result = result
        self._found = result.found
        with torch.no_grad():
            self.q = self._found.model(self._found.x)
            self.z = self._found.model.embed(self._found.x)
        self._rows = {str(label): row for row, label in enumerate(self._risk.labels)}

    @property
    def ids(self) -> Sequence[str]:
        """Labels of rows, as text."""
        return [str(label) for label in self._risk.labels]

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

    def _answered(self, question: Question) -> Answer:
        scores = influence(self._risk, self._objective(question), self._found.inverse)
        value = self._value(question, self._found.model)
        return Answer(question, value, self.q[question.row].tolist(), scores.values[:, 0])

    def newton(self, question: Question, chosen: Sequence[int]) -> float:
        """The change by one Newton step without the samples, in nats; see `unlearn`."""
        objective, rows = self._objective(question), self.checked(chosen)
        with self._lock:
            outcome = unlearn(self._risk, self._labels(rows), self._found.solver, watch=objective)
        return float(outcome.achieved)

    def remove(
        self, question: Question, chosen: Sequence[int], tell: Callable[[int, int], object] | None = None
    ) -> Tried:
        """As for any result; a margin is compared."""
        rows = self.checked(chosen)
        predicted, newton = self.summed(question, rows), self.newton(question, rows)
        model = self._found.trained_again(rows, tell)
        return Tried(predicted, newton, self._value(question, model) - self.answer(question).margin)

    def _objective(self, question: Question) -> Objective:
        return margin(self._found.x[question.row], question.first, question.second)

    def _value(self, question: Question, model: nn.Module) -> float:
        with torch.no_grad():
            found = self._objective(question)(model)
        assert isinstance(found, Tensor)
        return float(found)
