"""Answers about finished word vectors: scores of sentences, predicted changes, and training again without some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ... import influence
from ..._types import Objective
from ...words import WEAT, ExpectedTraining, Pairs, cluster_margin, weat
from ...words.explain_bias import unlearned
from ...words.explain_word import clustered, own_and_next
from ...words.word_sets import rows_of
from .base import AbstractEngine, QuestionError, Tried
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


class WordsEngine(AbstractEngine[WordsQuestion, WordsAnswerOf]):
    """Word vectors that are asked.

    Args:
        result: A finished answer about words.
    """

    noun = "sentence"

    def __init__(self, result: WordsResult) -> None:
        self.result = result
        settings = result.settings
        self._training = ExpectedTraining(
            Pairs(result.corpus, settings.sampling), settings.dimensions, prior=settings.prior, seed=settings.seed
        )
        self._skip_gram = self._training.risk(result.model)
        super().__init__(self._skip_gram)
        self._tests = {one.name: weat(one, result.corpus.index, least=settings.least) for one in result.lists}

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

    def _answered(self, question: WordsQuestion) -> WordsAnswerOf:
        objective = self._objective(question)
        scores = influence(self._risk, objective)
        return WordsAnswerOf(
            question, _number(objective(self.result.model)), self._said(question), scores.values[:, 0],
            self._marked(question),
        )  # fmt: skip

    def newton(self, question: WordsQuestion, chosen: Sequence[int]) -> float | None:
        """The change by one Newton step without the sentences; nothing where no step is possible."""
        rows, objective = self.checked(chosen), self._objective(question)
        with self._lock:
            outcome = unlearned(self._skip_gram, self._labels(rows), objective)
        return None if outcome is None else float(outcome.achieved)

    def remove(
        self, question: WordsQuestion, chosen: Sequence[int], tell: Callable[[int, int], object] | None = None
    ) -> Tried:
        """As for any result; how many steps it takes is not known."""
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

    @cached_property
    def _members(self) -> tuple[tuple[str, ...], ...]:
        most = max(2, min(self.result.clusters, len(self.result.corpus.words) // 4))
        return clustered(self.result.model, most, seed=self.result.settings.seed)

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
