"""What can be done about a bias of word embeddings: every action on one trained model, what it did and what it cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossfluence._actions.outcome import Outcome
from crossfluence._actions.steps import TOLERANCE, amplify, undo
from crossfluence._attribution.influence import influence
from crossfluence._default.auto import Auto
from crossfluence._results.scores import Scores
from crossfluence._risk.objectives import evaluate
from crossfluence._types import Id
from crossfluence.errors import CorpusError
from crossfluence.words.association import WEAT
from crossfluence.words.explain_bias import together, unlearned
from crossfluence.words.skipgram import (
    ExpectedTraining,
    SampledTraining,
    SkipGram,
    SkipGramRisk,
    WordBlocks,
    hard_debiased,
)
from crossfluence.words.word_sets import word_sets

from .neutrality import BIASED, NEUTRAL, Mix

REMOVE, UNLEARN, UNDO, AMPLIFY, BOTH = "remove", "unlearn", "undo", "amplify", "undo and amplify"
NOTHING, HARD, NEUTRALISE, RANDOM = "nothing", "hard debiasing", "neutralise", "random"
WALKS = (UNDO, AMPLIFY, BOTH)
LR, GUARDED_LR = 1e-2, 2e-3  # the paper's; one with which the guard is met after some tens of steps
PRIOR = 5.0  # of the l2 term, as in `ExpectedTraining`
GENDER_TESTS = ("career", "career-terms", "math", "science")


@dataclass(frozen=True)
class Case:
    """One action on one choice of sentences.

    Attributes:
        action: `remove` and so on.
        of: The test whose strongest sentences are meant: those that raise it most, and to amplify those that lower it
            most; or "random" ones; empty where the action needs no sentences.
        size: How many sentences, of each kind.
        steps: Of undo and amplify, at most.
        guarded: Whether their guard is on; off, they are the paper's.
        debiased: Whether hard debiasing comes first; after training again it comes last, since training forgets it.
    """

    action: str
    of: str = ""
    size: int = 0
    steps: int = 0
    guarded: bool = False
    debiased: bool = False


def cases(tests: Sequence[str], sizes: Sequence[int], steps: Sequence[int], *, hard: bool) -> Iterator[Case]:
    """Everything that is tried on one model, in order.

    Args:
        tests: Their names.
        sizes: How many sentences.
        steps: Of undo and amplify as in the paper; of random sentences only the most.
        hard: Whether hard debiasing can be tried.

    Yields:
        What to do.
    """
    yield from (Case(NOTHING), Case(NEUTRALISE))
    longest = max(steps)
    for size, of in itertools.product(sizes, (*tests, RANDOM)):
        yield from (Case(action, of, size) for action in (REMOVE, UNLEARN))
        for action in WALKS:
            yield from (Case(action, of, size, many) for many in (steps if of != RANDOM else [longest]))
            yield Case(action, of, size, longest, guarded=True)
    if not hard:
        return
    yield Case(HARD)
    for of in tests:
        if of in GENDER_TESTS:  # the direction that is taken out is that of gender
            yield from (Case(action, of, max(sizes), debiased=True) for action in (REMOVE, UNLEARN))
            yield from (Case(action, of, max(sizes), longest, guarded=True, debiased=True) for action in WALKS)


@dataclass(frozen=True, eq=False)
class Start:
    """A model to act on, and what every sentence did to each test there, in effect-size units."""

    model: SkipGram
    risk: SkipGramRisk
    scores: Scores


@dataclass(frozen=True, eq=False)
class Acted:
    """What became of a model.

    Attributes:
        model: The new one; nothing if there was no step that lowers the loss.
        predicted: Effect size of each test, as it was foreseen; NaN where nobody can say.
        steps: How many were taken and kept.
        stopped: Where and why they ended.
    """

    model: SkipGram | None
    predicted: Float[Tensor, " m"]
    steps: int = 0
    stopped: str = ""


class Tested(NamedTuple):
    """Effect size and p-value of one test."""

    effect: float
    p: float


@dataclass(frozen=True, eq=False)
class Bench:
    """One trained model, and everything that is tried on it. All is made when it is first needed.

    Attributes:
        training: How to train, also again.
        mix: The sentences.
        tests: The questions.
        quality: Measures of a model, by name.
        retrained: Models trained again, by whose sentences were removed, and how many.
        stepped: Newton steps likewise, and whether from the debiased model.
    """

    training: ExpectedTraining | SampledTraining
    mix: Mix
    tests: tuple[WEAT, ...]
    quality: Callable[[SkipGram], Mapping[str, float]]
    retrained: dict[tuple[str, int], SkipGram] = field(default_factory=dict, repr=False)
    stepped: dict[tuple[str, int, bool], Outcome | None] = field(default_factory=dict, repr=False)

    def rows(self, case: Case) -> list[dict[str, Any]]:
        """Before, predicted and after, for the test that was acted on; for all tests if it was none in particular.

        Args:
            case: What to do.

        Returns:
            One row for each test.
        """
        acted = self._act(case)
        before, after = self._tested(self.whole.model), self._tested(acted.model)
        cost = dict.fromkeys(self._quality_before, math.nan) if acted.model is None else self.quality(acted.model)
        return [
            {
                "test": test.sets.name, **asdict(case), "taken": acted.steps, "before": old.effect, "p before": old.p,
                "predicted": float(predicted), "after": new.effect, "p after": new.p, **cost, "stopped": acted.stopped,
            }
            for test, old, predicted, new in zip(self.tests, before, acted.predicted, after, strict=True)
            if case.of in {test.sets.name, RANDOM, ""}
        ]  # fmt: skip

    @cached_property
    def whole(self) -> Start:
        """Trained on the biased sentences and plain Wikipedia."""
        model = self.training.train(self._weights)
        return self._start(model, at_minimum=isinstance(self.training, ExpectedTraining))

    @cached_property
    def debiased(self) -> Start:
        """The same after hard debiasing; its sentences are ranked anew."""
        return self._start(self._hard(self.whole.model), at_minimum=False)

    def _start(self, model: SkipGram, *, at_minimum: bool) -> Start:
        pairs = self.training.pairs
        idle = self.mix.ids(1 - self._weights)
        risk = SkipGramRisk(model, pairs, PRIOR / pairs.all.total).without(idle)
        held = {test.sets.name: test.held_at(model) for test in self.tests}

        # away from a minimum the Hessian has negative curvature; the blocks never have, and rank as well
        return Start(model, risk, influence(risk, together(held), Auto() if at_minimum else WordBlocks()))

    def _act(self, case: Case) -> Acted:
        unknown = torch.full((len(self.tests),), math.nan)
        start = self.debiased if case.debiased and case.action != REMOVE else self.whole
        if case.action == NOTHING:
            return Acted(self.whole.model, self._effects(self.whole.model))
        if case.action == HARD:
            return Acted(self.debiased.model, unknown)
        if case.action == NEUTRALISE:
            return Acted(self._again.train(self.mix.weights(NEUTRAL)), self._neutralised())
        away, towards = self._chosen(case, start)
        if case.action == REMOVE:
            step, found = self._newton(case, away, start), self._without(case, away)
            foreseen = None if step is None else step.model
            if case.debiased:
                foreseen, found = foreseen and self._hard(foreseen), self._hard(found)
            return Acted(found, self._effects(foreseen))
        if case.action == UNLEARN:
            step = self._newton(case, away, start)
            return Acted(None, unknown, stopped="No Newton step lowers the loss.") if step is None else _acted(step)
        return self._walked(case, start, away, towards)

    def _walked(self, case: Case, start: Start, away: list[Id], towards: list[Id]) -> Acted:
        lr, tolerance = (GUARDED_LR, TOLERANCE) if case.guarded else (LR, math.inf)
        if case.action == AMPLIFY:
            outcome = amplify(start.risk, towards, steps=case.steps, lr=lr, watch=self._ask, tolerance=tolerance)
        else:
            more = towards if case.action == BOTH else []
            outcome = undo(
                start.risk, away, amplify=more, steps=case.steps, lr=lr, watch=self._ask, tolerance=tolerance
            )
        return _acted(outcome)

    def _chosen(self, case: Case, start: Start) -> tuple[list[Id], list[Id]]:
        """Sentences that raise the test most and that lower it most, or random ones."""
        active = self.mix.ids(self._weights)
        if case.size > len(active) // 4:
            raise CorpusError(f"Acting on {case.size} of {len(active)} sentences; needed at most a quarter of them.")
        if case.of == RANDOM:
            drawn = np.random.default_rng(case.size).choice(len(active), 2 * case.size, replace=False)
            random = [active[row] for row in drawn]
            return random[: case.size], random[case.size :]
        scores = start.scores.select(active)
        raising, lowering = (scores.top(case.size, case.of, effect=effect) for effect in ("raises", "lowers"))
        return [label for label, _ in raising], [label for label, _ in lowering]

    def _newton(self, case: Case, ids: list[Id], start: Start) -> Outcome | None:
        key = (case.of, case.size, start is not self.whole)
        if key not in self.stepped:
            self.stepped[key] = unlearned(start.risk, ids, self._ask)
        return self.stepped[key]

    def _without(self, case: Case, ids: list[Id]) -> SkipGram:
        key = (case.of, case.size)
        if key not in self.retrained:
            weights = self._weights.clone()
            weights[[self.whole.risk.rows[label] for label in ids]] = 0
            self.retrained[key] = self._again.train(weights)
        return self.retrained[key]

    @cached_property
    def _again(self) -> ExpectedTraining | SampledTraining:
        training = self.training
        return training.starting_from(self.whole.model) if isinstance(training, ExpectedTraining) else training

    def _neutralised(self) -> Tensor:
        """Effect sizes from the sum of scores: the biased versions taken away, the neutral ones added."""
        scores, biased, neutral = self.whole.scores, self._weights, self.mix.weights(NEUTRAL)
        change = (neutral - biased).to(scores.values) @ scores.values
        return self._effects(self.whole.model) + change.cpu().double()

    def _hard(self, model: nn.Module) -> SkipGram:
        assert isinstance(model, SkipGram)
        return hard_debiased(model, specific=gendered())

    def _ask(self, model: nn.Module) -> dict[str, Tensor]:
        return {test.sets.name: test(model) for test in self.tests}

    def _effects(self, model: nn.Module | None) -> Float[Tensor, " m"]:
        """Effect size of every test; NaN without a model."""
        return torch.full((len(self.tests),), math.nan) if model is None else evaluate(self._ask, model)[1]

    def _tested(self, model: SkipGram | None) -> list[Tested]:
        effects = self._effects(model).tolist()
        p_values = [math.nan if model is None else test.p_value(model).value for test in self.tests]
        return [Tested(*pair) for pair in zip(effects, p_values, strict=True)]

    @cached_property
    def _quality_before(self) -> Mapping[str, float]:
        return self.quality(self.whole.model)

    @cached_property
    def _weights(self) -> Float[Tensor, " n"]:
        return self.mix.weights(BIASED)


def _acted(outcome: Outcome) -> Acted:
    assert isinstance(outcome.model, SkipGram)
    assert outcome.predicted is not None
    return Acted(outcome.model, outcome.before + outcome.predicted, outcome.steps, outcome.stopped)


def gendered() -> list[str]:
    """The words of the association tests that name men and women, which keep their gender."""
    career, terms, math_, science = (word_sets(name)[0] for name in GENDER_TESTS)
    return [
        word.lower()
        for words in (career.X, career.Y, terms.X, terms.Y, math_.A, math_.B, science.A, science.B)
        for word in words
    ]
