"""How far each kind of answer can be relied on, from the comparisons that it holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from .reliability import Reliability, Removed, effect_in, judged, left_of_training, left_out_alone, removed_together

if TYPE_CHECKING:
    from ...clustering.explain import Explanation
    from ...words.explain_bias import TestResult, WordsAnswer
    from ...words.explain_word import WordAnswer

FIRM_ANCHORS = (1.0, 2.0)  # with which sharpening is held firmly; by the last nothing sharpens any more
LOWER_PRIOR = 5  # times lower: too strong an l2 term lets all vectors fall together in a small corpus


def of_clusters(found: Explanation, noun: str) -> Reliability:
    """Whether the scores of a clustering can be relied on.

    Args:
        found: With its check.
        noun: What a sample is called.

    Returns:
        Level, reasons, and `--anchor` as advice, or `--k` where that is as firm as it can be.
    """
    groups = [
        Removed(f"the {one.name}" if not row else one.name, one.predicted, one.newton, one.achieved, random=row > 0)
        for row, one in enumerate(found.removals)
    ]
    drift = found.scores.report.drift[0] if found.scores.report else 0.0
    said = [
        *removed_together(groups, "the margin", " nats"),
        *left_of_training(drift, groups, "the margin", " nats"),
        *left_out_alone(found.agreement, noun),
    ]
    firmer = next((f"--anchor {one:g}" for one in FIRM_ANCHORS if one > found.settings.anchor), None)
    empty = empty_clusters(found)
    fewer = f"--k {max(2, found.settings.k - max(1, len(empty)))}"
    verdict = judged(said, advice=[firmer or fewer])
    if verdict.dependable or not empty:
        return verdict
    return replace(verdict, reasons=(*verdict.reasons, no_sample_in(empty, noun)))


def empty_clusters(found: Explanation) -> list[int]:
    """Numbers of the clusters that are the most likely one of no sample."""
    held = set(found.assignments.argmax(1).tolist())
    return [number for number in range(found.settings.k) if number not in held]


def no_sample_in(empty: list[int], noun: str) -> str:
    """Which clusters hold no sample."""
    if len(empty) == 1:
        return f"cluster {empty[0]} holds no {noun}"
    return f"clusters {', '.join(map(str, empty))} hold no {noun}"


def of_test(answer: WordsAnswer, result: TestResult) -> Reliability:
    """Whether the scores for a test can be relied on; compared is the effect size at the spread that they hold.

    Args:
        answer: All tests.
        result: One of them.

    Returns:
        Level, reasons, and `--prior` as advice.
    """
    groups = [
        Removed(one.name, one.summed, one.held[0], one.held[1], random=one.name.endswith("random ones"))
        for one in result.removals
    ]
    report = answer.scores.report
    drift = report.drift[answer.scores.objectives.index(result.name)] if report else 0.0
    question = "the effect size, at the same spread,"
    said = [*removed_together(groups, question, ""), *left_of_training(drift, groups, question, "")]
    return judged(said, advice=_other_prior(answer.settings.prior))


def of_word(answer: WordAnswer) -> Reliability:
    """Whether the scores for the cluster of a word can be relied on.

    Args:
        answer: With its check.

    Returns:
        Level, reasons, and `--prior` as advice.
    """
    before = answer.margin
    groups = [
        Removed(one.name, one.summed - before, one.predicted - before, one.retrained - before, "random" in one.name)
        for one in answer.moves
    ]
    drift = answer.scores.report.drift[0] if answer.scores.report else 0.0
    said = [
        *removed_together(groups, "the margin", " nats"), *left_of_training(drift, groups, "the margin", " nats")
    ]  # fmt: skip
    return judged(said, advice=_other_prior(answer.settings.prior))


def _other_prior(prior: float) -> list[str]:
    return [f"--prior {prior / LOWER_PRIOR:g}", "the same command for more text"]


def effect_of(result: TestResult) -> Literal["as asked", "opposite", "none"]:
    """Whether a test found an effect, and in which direction; see `effect_in`."""
    sets = result.test.sets
    partitions = math.comb(len(sets.X) + len(sets.Y), len(sets.X))
    return effect_in(result.p_value, partitions)


def first_sentence(answer: WordsAnswer, result: TestResult) -> str:
    """What stands above everything else about one test: that there is no effect, or how far scores can be relied on.

    Args:
        answer: All tests.
        result: One of them.

    Returns:
        One sentence, or two if the effect is the opposite of the one asked about.
    """
    reliability, effect = of_test(answer, result), effect_of(result)
    figures = f"{result.name} has the effect size {result.effect:+.3f} with p = {result.p_value:.2g}"
    if effect == "none":
        said = f"There is no bias to explain: {figures}, which words divided at random reach too"
        return f"{said}." if reliability.dependable else f"{said}; and t{str(reliability)[1:]}"
    if effect == "opposite":
        return f"{reliability} The bias is the opposite of the one asked about: {figures}."
    return str(reliability)


def title_of(answer: WordsAnswer) -> str:
    """The heading of the page: no bias is called one where no test found an effect."""
    if any(effect_of(result) != "none" for result in answer.tests):
        return "Where does this bias come from?"
    return "No bias to explain"


def dependable(answer: WordsAnswer) -> bool:
    """Whether the scores of all tests can be relied on at least in their order."""
    return all(of_test(answer, result).dependable for result in answer.tests)
