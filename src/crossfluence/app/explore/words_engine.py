"""Answers about finished word vectors: scores of sentences, predicted changes, and training again without some."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ... import amplify, influence, undo
from ..._types import Objective
from ...words import WEAT, ExpectedTraining, Pairs, cluster_margin, weat
from ...words.explain_bias import unlearned
from ...words.explain_word import clustered, own_and_next
from ...words.word_sets import rows_of
from .engine import ANSWERS, QuestionError, Tried
from .words_result import WordsResult

TEST, WORD = "test", "word"


@dataclass(frozen=True)
class WordsQuestion:
    """An association test, or the cluster of a word.

    Attributes:
        kind: "test" or "word".
        name: Of the test, or the word as the corpus has it.
    """

    kind: str
    name: str


@dataclass(frozen=True, eq=False)
class WordsAnswerOf:
    """Scores of one question.

    Attributes:
        question: Which.
        value: Effect size, or margin in nats.
        said: What that is, in words.
        scores: Shape `(n,)`: what having each sentence did to it.
        marked: Words to mark in the texts, by kind.
    """

    question: WordsQuestion
    value: float
    said: str
    scores: Float[Tensor, " n"] = field(repr=False)
    marked: dict[str, list[str]] = field(repr=False)


class WordsEngine:
    """One result, asked by several threads; what the library computes goes through it one after the other.

    Args:
        result: A finished answer about words.
    """

    def __init__(self, result: WordsResult) -> None:
        self.result = result
        self._answers: OrderedDict[WordsQuestion, WordsAnswerOf] = OrderedDict()
        self._lock = threading.Lock()
        settings = result.settings
        self._training = ExpectedTraining(
            Pairs(result.corpus, settings.sampling), settings.dimensions, prior=settings.prior, seed=settings.seed
        )
        self._risk = self._training.risk(result.model)
        self._tests = {one.name: weat(one, result.corpus.index, least=settings.least) for one in result.lists}

    @property
    def n(self) -> int:
        """Number of sentences."""
        return self.result.corpus.n

    def question(self, kind: object, name: object) -> WordsQuestion:
        """A question as a page asks it.

        Args:
            kind: "test" or "word".
            name: Of the test; or a word, however it is written.

        Returns:
            The question.

        Raises:
            QuestionError: If there is no such test.
            WordError: If the corpus does not have the word.
        """
        if kind == TEST and name in self._tests:
            return WordsQuestion(TEST, str(name))
        if kind == WORD and isinstance(name, str) and name.strip():
            row = next(iter(rows_of([name.strip()], self.result.corpus.index).values()))
            return WordsQuestion(WORD, self.result.corpus.words[row])
        raise QuestionError(f"Needed one of the tests {', '.join(self._tests) or '(there are none)'}, or a word.")

    @property
    def first(self) -> WordsQuestion:
        """The question that the result was made for."""
        if self.result.word:
            return self.question(WORD, self.result.word)
        return WordsQuestion(TEST, next(iter(self._tests)))

    def answer(self, question: WordsQuestion) -> WordsAnswerOf:
        """Scores of all sentences for a question, kept for the next time."""
        with self._lock:
            if question in self._answers:
                self._answers.move_to_end(question)
                return self._answers[question]
            objective = self._objective(question)
            scores = influence(self._risk, objective)
            answer = WordsAnswerOf(
                question, _number(objective(self.result.model)), self._said(question), scores.values[:, 0],
                self._marked(question),
            )  # fmt: skip
            self._answers[question] = answer
            if len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)
            return answer

    def summed(self, question: WordsQuestion, chosen: Sequence[int]) -> float:
        """The change that removing sentences makes by the sum of their scores."""
        return -float(self.answer(question).scores[self.checked(chosen)].sum())

    def newton(self, question: WordsQuestion, chosen: Sequence[int]) -> float | None:
        """The change by one Newton step without the sentences; nothing where no step is possible."""
        rows, objective = self.checked(chosen), self._objective(question)
        with self._lock:
            outcome = unlearned(self._risk, self._labels(rows), objective)
        return None if outcome is None else float(outcome.achieved)

    def remove(
        self, question: WordsQuestion, chosen: Sequence[int], tell: Callable[[int, int], object] | None = None
    ) -> Tried:
        """Trains again without sentences; answers to other questions go on meanwhile.

        Args:
            question: Whose value is compared.
            chosen: Row numbers.
            tell: Is called after every step with the steps taken and 0; what it raises ends the training.

        Returns:
            Changes predicted and achieved.
        """
        rows = self.checked(chosen)
        predicted, newton, objective = (
            self.summed(question, rows),
            self.newton(question, rows),
            self._objective(question),
        )
        weights = torch.ones(self.n, dtype=torch.float64)
        weights[rows] = 0
        told = None if tell is None else lambda step: tell(step, 0)
        model, _ = self._training.starting_from(self.result.model).fit(weights, tell=told)
        achieved = _number(objective(model)) - self.answer(question).value
        said = ""
        if (test := self._tests.get(question.name)) and question.kind == TEST:
            p = test.p_value(model).value
            said = f"With its own spread the effect size is then {_number(test(model)):+.3f} (p = {p:.2g})."
        return Tried(predicted, newton, achieved, said)

    def walk(self, action: str, question: WordsQuestion, chosen: Sequence[int], steps: int, lr: float) -> Tried:
        """Undoes or amplifies sentences by steps on their loss, from the trained vectors.

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
            raise QuestionError("Choose at least one sentence.")
        if not all(0 <= row < self.n for row in rows):
            raise QuestionError(f"Row numbers must be from 0 to {self.n - 1}.")
        if 2 * len(rows) > self.n:
            raise QuestionError(f"Got {len(rows)} of {self.n} sentences; choose at most half of them.")
        return rows

    @cached_property
    def _members(self) -> tuple[tuple[str, ...], ...]:
        most = max(2, min(self.result.clusters, len(self.result.corpus.words) // 4))
        return clustered(self.result.model, most, seed=self.result.settings.seed)

    def _labels(self, rows: Sequence[int]) -> list[str]:
        return [self.result.corpus.ids[row] for row in rows]

    def _test(self, question: WordsQuestion) -> WEAT:
        return self._tests[question.name]

    def _objective(self, question: WordsQuestion) -> Objective:
        if question.kind == TEST:
            return self._test(question).held_at(self.result.model)
        first, second = own_and_next(self.result.model, question.name, self._members)
        return cluster_margin(question.name, self._members, first, second, self.result.corpus.index)

    def _said(self, question: WordsQuestion) -> str:
        if question.kind == TEST:
            p = self._test(question).p_value(self.result.model).value
            a, b, c, d = self._test(question).sets.categories
            return f"the effect size of {a} and {b} with {c} and {d}, from -2 to 2; p = {p:.2g}"
        first, second = own_and_next(self.result.model, question.name, self._members)
        own, other = (", ".join(self._members[number][:5]) for number in (first, second))
        return f"the margin in nats by which it belongs to the words {own}, ... more than to {other}, ..."

    def _marked(self, question: WordsQuestion) -> dict[str, list[str]]:
        if question.kind == WORD:
            first, second = own_and_next(self.result.model, question.name, self._members)
            kinds = {"first": list(self._members[first]), "second": list(self._members[second])}
            return {**kinds, "target": [question.name]}
        sets = self._test(question).sets
        lists = {"target": sets.X, "other": sets.Y, "attribute": sets.A, "counter": sets.B}
        return {kind: [word.lower() for word in words] for kind, words in lists.items()}


def _number(value: object) -> float:
    with torch.no_grad():
        return float(torch.as_tensor(value))
