"""Groups of training texts that are removed together, predicted and checked by training again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from crossfluence import Recipe, Scores, batches, leave_out
from crossfluence.extend import Id

from .bag_of_words import words_of
from .questions import Question
from .settings import RANDOM

SHOWN = 3  # words of a group that are named
LOSS = "loss of held-out tokens"


@dataclass(frozen=True)
class Removal:
    """Texts removed together; values of the question.

    Attributes:
        name: Which.
        count: Of the texts.
        by_scores: Whether the scores chose them, rather than chance or words.
        predicted: Change by the sum of scores.
        achieved: Change by training again.
        perplexity: Of held-out texts, after training again.
    """

    name: str
    count: int
    by_scores: bool
    predicted: float
    achieved: float
    perplexity: float


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Texts that no training sees.

    Attributes:
        data: Their tokens.
        loss: Of a model and a batch, `(b,)`.
        tokens: Of all texts, those that the loss counts.
        size: Texts in a batch.
    """

    data: dict[str, Tensor]
    loss: Callable[[nn.Module, object], Tensor]
    tokens: int
    size: int

    @torch.no_grad()
    def loss_of(self, model: nn.Module) -> Tensor:
        """Mean loss of a token, in nats."""
        parts = [self.loss(model, batch).double().sum() for batch in batches(self.data, size=self.size)]
        return torch.stack(parts).sum() / self.tokens

    def perplexity(self, model: nn.Module) -> float:
        """Of a token; of a masked model, of the hidden ones (pseudo-perplexity)."""
        return math.exp(float(self.loss_of(model)))


def keyword_counts(question: Question, texts: Sequence[str]) -> tuple[list[str], list[str], list[int]]:
    """The words in which the texts of a question differ, and how often each training text has them.

    Args:
        question: With pairs of texts.
        texts: To count in.

    Returns:
        Words of the first texts, most frequent first; words of the second; and of each training text the number of the
        former less that of the latter.

    Example:
        >>> pair = (("the nurse said he", "the nurse said she"),)
        >>> keyword_counts(Question("he", lambda model: model(1), 1, pair), ["he knew he won", "she won", "it won"])
        (['he'], ['she'], [2, -1, 0])
    """
    total: Counter[str] = Counter()
    for one, other in question.pairs:
        total.update(Counter(words_of(one)))
        total.subtract(Counter(words_of(other)))
    often = [(word, count) for word, count in sorted(total.items(), key=lambda each: -abs(each[1])) if word.isalnum()]
    first, second = ([word for word, count in often if sign * count > 0] for sign in (1, -1))
    sign = dict.fromkeys(first, 1) | dict.fromkeys(second, -1)
    return first, second, [sum(sign.get(word, 0) for word in words_of(text)) for text in texts]


def groups_of(
    scores: Scores, questions: Mapping[str, Question], texts: Sequence[str], size: int, seed: int
) -> dict[str, dict[str, tuple[bool, list[Id]]]]:
    """For each question the strongest texts of both signs, those with most of its words, and random ones.

    Args:
        scores: Of the texts that were trained on.
        questions: By name.
        texts: Of these, in the order of the scores.
        size: Texts in a group.
        seed: Of random groups, which all questions share.

    Returns:
        Of each question, named groups: whether the scores chose them, and ids.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, tuple[bool, list[Id]]] = {
        f"{size} random, {k + 1}": (False, _labels(scores, torch.randperm(len(scores), generator=generator)[:size]))
        for k in range(RANDOM)
    }
    found = {}
    for name, question in questions.items():
        groups: dict[str, tuple[bool, list[Id]]] = {}
        for effect in ("raises", "lowers"):
            if top := [label for label, _ in scores.top(size, name, effect=effect)]:
                groups[f"{len(top)} that {effect[:-1]} it most"] = True, top
        first, second, counts = keyword_counts(question, texts)
        for words, values in ((first, torch.tensor(counts)), (second, -torch.tensor(counts))):
            rows = values.argsort(descending=True, stable=True)[:size]
            if len(rows := rows[values[rows] > 0]):
                groups[f"{len(rows)} with most of the words {', '.join(words[:SHOWN])}"] = False, _labels(scores, rows)
        found[name] = groups | drawn
    return found


def _labels(scores: Scores, rows: Tensor) -> list[Id]:
    return [scores.ids[row] for row in rows.tolist()]


def removed(
    recipe: Recipe,
    questions: Mapping[str, Question],
    scores: Scores,
    groups: Mapping[str, Mapping[str, tuple[bool, list[Id]]]],
    held_out: HeldOut,
    trained: nn.Module,
    store: Path | None,
) -> dict[str, tuple[Removal, ...]]:
    """Trains again without each group.

    Args:
        recipe: The training.
        questions: By name.
        scores: Of the texts.
        groups: From `groups_of`.
        held_out: Texts for the perplexity.
        trained: The model trained on all texts.
        store: Keeps finished trainings: a stopped run goes on.

    Returns:
        Of each question, its groups.
    """
    members = {frozenset(ids): ids for some in groups.values() for _, ids in some.values()}
    keys = {some: str(place) for place, some in enumerate(members)}
    drop = {keys[some]: ids for some, ids in members.items()}

    def ask(model: nn.Module) -> dict[str, Tensor]:
        return {name: question(model) for name, question in questions.items()} | {LOSS: held_out.loss_of(model)}

    predicted, achieved = scores.sum_by(drop), leave_out(recipe, ask, drop, ids=scores.ids, store=store)
    before, rows = float(held_out.loss_of(trained)), {name: row for row, name in enumerate(drop)}

    def removal(question: str, name: str, by_scores: bool, ids: list[Id]) -> Removal:
        row, column = rows[keys[frozenset(ids)]], scores.objectives.index(question)
        loss = before - float(achieved.values[row, achieved.objectives.index(LOSS)])
        return Removal(
            name, len(ids), by_scores, -float(predicted.values[row, column]),
            -float(achieved.values[row, achieved.objectives.index(question)]), math.exp(loss),
        )  # fmt: skip

    return {
        question: tuple(removal(question, name, by_scores, ids) for name, (by_scores, ids) in some.items())
        for question, some in groups.items()
    }
