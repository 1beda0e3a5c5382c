"""The sentences behind a bias of word embeddings: trained, ranked, removed, and trained again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crossfluence import CG, Outcome, Scores, influence, leave_out, unlearn
from crossfluence.errors import CorpusError, SolveError
from crossfluence.extend import Id, Objective

from .association import WEAT, weat
from .corpus.corpus import Corpus
from .corpus.pairs import Pairs
from .pretrained import Given, fitted
from .quality import measured
from .resume import trained_once
from .settings import WordsSettings
from .skipgram import ExpectedTraining, SkipGram, SkipGramRisk, WordBlocks
from .skipgram.blocks import RTOL
from .word_sets import WordSets

NO_LENGTH = 1e-3  # of the longest vector, under which all are what training left of zero
ONE_DIRECTION = 1e-4  # largest distance from the mean of vectors of length one that are all the same


@dataclass(frozen=True, eq=False)
class Removal:
    """Sentences removed together, and one test afterwards.

    Attributes:
        name: Which sentences.
        ids: They.
        summed: Change of the effect size from the sum of the scores, with the spread as it is.
        predicted: Effect size after one Newton step without them.
        retrained: Effect size after training without them.
        held: Change with the spread as it is, after one Newton step and after training: what `summed` foretells.
        p_value: Of the retrained model's test.
        quality: Of the retrained model, by measure.
        associations: Of each target word, at the retrained model.
    """

    name: str
    ids: tuple[Id, ...] = field(repr=False)
    summed: float
    predicted: float
    retrained: float
    held: tuple[float, float]
    p_value: float
    quality: Mapping[str, float]
    associations: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True, eq=False)
class TestResult:
    """One association test.

    Attributes:
        test: The question, with the words that the corpus has.
        effect: Its size at the trained model.
        p_value: One-sided, by permutation.
        associations: Of each target word.
        removals: The sentences that raise it most, those that lower it most, and as many random ones.
        given: At the model that training started from, if there was one.
    """

    __test__ = False  # no test of ours, whatever its name begins with

    test: WEAT
    effect: float
    p_value: float
    associations: Mapping[str, float] = field(repr=False)
    removals: tuple[Removal, ...]
    given: Given | None = None

    @property
    def name(self) -> str:
        """The name of the test."""
        return self.test.sets.name


@dataclass(frozen=True, eq=False)
class WordsAnswer:
    """The sentences behind the bias of an embedding, and the effect of removing them.

    Attributes:
        settings: What was asked for.
        corpus: The sentences.
        model: The trained model.
        scores: What every sentence did to each test, in effect-size units with the spread as it is.
        tests: One result for each test.
        quality: Of the trained model, by measure.
        seconds: Of each phase.
        steps: Of training.
    """

    settings: WordsSettings
    corpus: Corpus = field(repr=False)
    model: SkipGram = field(repr=False)
    scores: Scores = field(repr=False)
    tests: tuple[TestResult, ...]
    quality: Mapping[str, float]
    seconds: Mapping[str, float]
    steps: int


def explain_words(
    corpus: Corpus,
    lists: Sequence[WordSets],
    settings: WordsSettings | None = None,
    *,
    start: SkipGram | None = None,
    store: Path | None = None,
) -> WordsAnswer:
    """Trains an embedding, ranks the sentences behind each test, removes the strongest and trains again.

    A model that was trained elsewhere did not end where the expected loss has its minimum, and only there a score says
    what training again would do: training goes on from it to the minimum, and the answer says how far each test moved.

    Args:
        corpus: The sentences; read it with `keep=` the words of the lists.
        lists: The association tests.
        settings: Sizes and lengths; `dimensions` are those of `start`, if it is given.
        start: A model that was trained on this corpus, read with `words=start.words`; default: a random one.
        store: A folder that keeps what is finished: a stopped run goes on from it.

    Returns:
        The answer for each test, with its check.

    Raises:
        WordError: If the corpus lacks too many words of a list.
        CorpusError: If the share to remove makes no group, or the corpus lacks too many words of the start.

    Example:
        >>> from crossfluence.words.word_sets import word_sets
        >>> from crossfluence.words.planted import planted
        >>> settings = WordsSettings(dimensions=4, remove=10)
        >>> answer = explain_words(planted(sentences=500, culprits=30).corpus, word_sets("career-terms"), settings)
        >>> [removal.name for removal in answer.tests[0].removals]
        ['the 10 that raise it most', 'the 10 that lower it most', '10 random ones']
    """
    settings = settings or WordsSettings()
    if start is not None:
        start = fitted(start, corpus)
        settings = replace(settings, dimensions=start.word_vectors.shape[1])
    count, clock = settings.group(corpus.n), Clock()
    tests = [weat(one, corpus.index, least=settings.least) for one in lists]
    training = ExpectedTraining(
        Pairs(corpus, settings.sampling), settings.dimensions, prior=settings.prior, seed=settings.seed, start=start
    )
    model, steps = trained_once(training, store)
    clock.note("training")
    refuse_collapsed(model)
    risk = training.risk(model)
    held = {test.sets.name: test.held_at(model) for test in tests}
    scores = influence(risk, together(held))
    clock.note("scores")
    further = settings.further_groups(corpus.n)
    groups = {test.sets.name: _groups(scores, test.sets.name, count, settings.seed, further) for test in tests}
    predicted = _newton(risk, tests, held, groups)
    clock.note("one Newton step for each group")
    retrained = _retrained(training.starting_from(model), tests, held, groups, store)
    clock.note("training again without each group")
    results = [_result(test, model, scores, groups[test.sets.name], predicted, retrained) for test in tests]
    if start is not None:
        results = [replace(result, given=Given.of(result.test, start)) for result in results]
    return WordsAnswer(settings, corpus, model, scores, tuple(results), measured(model), clock.seconds, steps)


def refuse_collapsed(model: SkipGram) -> None:
    """Refuses vectors that are all zero, or differ in nothing but their lengths: nothing asked can tell words apart.

    The l2 term pulls them there where there is little text; of zeros, rounding decides the directions.

    Args:
        model: An embedding.

    Raises:
        CorpusError: If all vectors are near zero, or have one direction.
    """
    if (longest := float(model.word_vectors.detach().norm(dim=1).max())) < NO_LENGTH:
        raise CorpusError(
            f"The vectors of all {len(model.word_vectors)} words are zero (the longest is {longest:.1g}), so that "
            f"nothing tells words apart: too little text for its l2 term. Give more text, or a lower prior."
        )
    table = unit_vectors(model)
    if (spread := float((table - table.mean(0)).norm(dim=1).max())) < ONE_DIRECTION:
        raise CorpusError(
            f"The vectors of all {len(table)} words have one direction (within {spread:.1g}), so that nothing tells "
            f"words apart: too little text for its l2 term. Give more text, or a lower prior."
        )


def unit_vectors(model: SkipGram) -> Tensor:
    """The word vectors at length one, in float64; those without length stay at zero."""
    return torch.nn.functional.normalize(model.word_vectors.detach().double())


class Clock:
    """Seconds of each phase, from when it was made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def note(self, phase: str) -> None:
        """The time since the last note belongs to this phase."""
        now = time.perf_counter()
        self.seconds[phase], self.last = now - self.last, now


def together(questions: Mapping[str, Objective]) -> Callable[[nn.Module], dict[str, Tensor]]:
    """Several scalar questions as one.

    Args:
        questions: By name.

    Returns:
        An objective.
    """
    return lambda model: {name: torch.as_tensor(question(model)) for name, question in questions.items()}


def _groups(scores: Scores, name: str, count: int, seed: int, further: Sequence[int] = ()) -> dict[str, tuple[Id, ...]]:
    draw = np.random.default_rng(seed).choice(len(scores.ids), count, replace=False)
    groups = {
        f"the {count} that raise it most": scores.top(count, name),
        f"the {count} that lower it most": scores.top(count, name, effect="lowers"),
        f"{count} random ones": [(scores.ids[row], 0.0) for row in draw],
    }
    groups |= {f"the {more} that raise it most": scores.top(more, name) for more in further}
    return {group: tuple(label for label, _ in listed) for group, listed in groups.items() if listed}


def _newton(
    risk: SkipGramRisk,
    tests: Sequence[WEAT],
    held: Mapping[str, Objective],
    groups: Mapping[str, Mapping[str, tuple[Id, ...]]],
) -> dict[tuple[str, str], tuple[float, float]]:
    """The effect size of each test after one Newton step without each of its groups; the same with its spread held."""
    asked = {test.sets.name: together({"effect": test, "held": held[test.sets.name]}) for test in tests}
    steps = {(name, group): (ids, asked[name]) for name in asked for group, ids in groups[name].items()}
    outcomes = {key: unlearned(risk, ids, both) for key, (ids, both) in steps.items()}
    lost = (float("nan"), float("nan"))
    return {key: lost if one is None else (float(one.after[0]), float(one.after[1])) for key, one in outcomes.items()}


def newton_step(risk: SkipGramRisk, ids: Sequence[Id], question: Objective) -> float:
    """A scalar question after one Newton step without some sentences, stopped earlier where it would go astray.

    Args:
        risk: The trained model.
        ids: The sentences.
        question: Asked of the model after the step.

    Returns:
        Its value; NaN if even the shortest step raises the loss without the sentences.
    """
    outcome = unlearned(risk, ids, question)
    return float("nan") if outcome is None else float(outcome.after)


def unlearned(risk: SkipGramRisk, ids: Sequence[Id], watch: Objective) -> Outcome | None:
    """One Newton step without some sentences, stopped earlier where it would go astray.

    Args:
        risk: The trained model.
        ids: The sentences.
        watch: Questions to ask before and after.

    Returns:
        The new model; nothing if even the shortest step raises the loss without the sentences.
    """
    for rtol in (RTOL, 0.1, 0.5):
        solver = CG(rtol=rtol, preconditioner=WordBlocks(), truncate=True)
        with contextlib.suppress(SolveError):
            return unlearn(risk, ids, solver, watch=watch)
    return None


def _retrained(
    training: ExpectedTraining,
    tests: Sequence[WEAT],
    held: Mapping[str, Objective],
    groups: Mapping[str, Mapping[str, tuple[Id, ...]]],
    store: Path | None,
) -> dict[str, dict[str, float]]:
    """All figures of the model trained without each group, by "test: group"; finished ones are taken from the store."""
    drop = {f"{test}: {group}": ids for test, named in groups.items() for group, ids in named.items()}
    asked = _figures(tests, held)
    corpus = training.pairs.corpus
    changes = leave_out(training, asked, drop, n=corpus.n, ids=corpus.ids, store=store)
    assert training.start is not None
    whole = {name: float(value) for name, value in asked(training.start).items()}
    return {
        str(label): {name: whole[name] - float(change) for name, change in zip(changes.objectives, row, strict=True)}
        for label, row in zip(changes.ids, changes.values, strict=True)
    }


def _figures(tests: Sequence[WEAT], held: Mapping[str, Objective]) -> Callable[[nn.Module], dict[str, Tensor]]:
    """Effect sizes, also with their spread held, p-values, associations and quality of a model, as one objective."""

    def figures(model: nn.Module) -> dict[str, Tensor]:
        found: dict[str, float] = {}
        for test in tests:
            name = test.sets.name
            found[f"effect {name}"] = float(test(model).detach())
            found[f"held {name}"] = float(torch.as_tensor(held[name](model)).detach())
            found[f"p {name}"] = test.p_value(model).value
            found |= {f"word {name} {word}": value for word, value in test.associations(model).items()}
        if isinstance(model, SkipGram):
            found |= {f"quality {name}": value for name, value in measured(model).items()}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    return figures


def _result(
    test: WEAT,
    model: SkipGram,
    scores: Scores,
    groups: Mapping[str, tuple[Id, ...]],
    predicted: Mapping[tuple[str, str], tuple[float, float]],
    retrained: Mapping[str, Mapping[str, float]],
) -> TestResult:
    name = test.sets.name
    column = scores.objectives.index(name)
    effect, p = float(test(model).detach()), test.p_value(model).value
    removals = []
    for group, ids in groups.items():
        after = retrained[f"{name}: {group}"]
        word = f"word {name} "
        removals.append(
            Removal(
                group,
                ids,
                -float(scores.select(ids).values[:, column].sum()),
                predicted[name, group][0],
                after[f"effect {name}"],
                (predicted[name, group][1] - effect, after[f"held {name}"] - effect),  # at the model both are one
                after[f"p {name}"],
                {key.removeprefix("quality "): value for key, value in after.items() if key.startswith("quality ")},
                {key.removeprefix(word): value for key, value in after.items() if key.startswith(word)},
            )
        )
    return TestResult(test, effect, p, test.associations(model), tuple(removals))
