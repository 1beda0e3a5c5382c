"""Judgements of each kind of answer, from the comparisons that it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from .reliability import (
    NO_EFFECT,
    Finding,
    Reliability,
    Removed,
    effect_in,
    judged,
    left_of_training,
    left_out_alone,
    removed_together,
)

if TYPE_CHECKING:
    from ...clustering.explain import Explanation
    from ...words.explain_bias import Removal, TestResult, WordsAnswer
    from ...words.explain_word import WordAnswer

FIRM_ANCHORS = (1.0, 2.0)  # with which sharpening is held firmly; by the last nothing sharpens any more
FLAT = 1e-6  # associations in cosines, below which they are rounding
NEAR_CEILING = 1.9  # effect size, of at most 2
LOWER_PRIOR = 5  # times lower: too strong an l2 term lets all vectors fall together in a small corpus


def of_clusters(found: Explanation, noun: str) -> Reliability:
    """A judgement of the scores of a clustering.

    Args:
        found: With its check.
        noun: What a sample is called.

    Returns:
        Level, reasons, and `--anchor` as advice, or `--k` where that is as firm as it can be.
    """
    groups = [
        Removed(_named(one.name), one.predicted, one.newton, one.achieved, random=one.name.startswith("random"))
        for one in found.removals
    ]
    drift = found.scores.report.drift[0] if found.scores.report else 0.0
    said = [
        *removed_together(groups, "the margin", " nats"),
        *left_of_training(drift, groups, "the margin", " nats"),
        *left_out_alone(found.agreement, noun),
    ]
    anchor = getattr(found.settings, "anchor", max(FIRM_ANCHORS))  # other clusterings are held by nothing
    firmer = next((f"--anchor {one:g}" for one in FIRM_ANCHORS if one > anchor), None)
    empty = empty_clusters(found)
    fewer = f"--k {max(2, found.settings.k - max(1, len(empty)))}"
    verdict = judged(said, advice=[firmer or fewer])
    if verdict.dependable or not empty:
        return verdict
    return replace(verdict, reasons=(*verdict.reasons, no_sample_in(empty, noun)))


def _named(group: str) -> str:
    return group if group.startswith("random") else f"the {group}"


def smallest_that_moves(found: Explanation, noun: str) -> str:
    """The smallest group that, removed, takes the sample to its other cluster.

    Args:
        found: With its check.
        noun: What a sample is called.

    Returns:
        A sentence.
    """
    groups = [one for one in found.removals if not one.name.startswith("random")]
    enough = [one for one in groups if found.margin + one.achieved < 0]
    where = f"{noun} {found.ids[found.query]}"
    if enough:
        least = min(enough, key=lambda one: len(one.ids))
        return f"Without the {least.name} together, {where} moves to cluster {found.second}."
    most = max(groups, key=lambda one: len(one.ids))
    return f"Even without the {most.name} together, {where} stays in cluster {found.first}; remove more with --remove."


def empty_clusters(found: Explanation) -> list[int]:
    """Numbers of the clusters that are the most likely one of no sample."""
    held = set(found.assignments.argmax(1).tolist())
    return [number for number in range(found.settings.k) if number not in held]


def no_sample_in(empty: list[int], noun: str) -> str:
    """A sentence about clusters that hold no sample."""
    if len(empty) == 1:
        return f"cluster {empty[0]} holds no {noun}"
    return f"clusters {', '.join(map(str, empty))} hold no {noun}"


def of_test(answer: WordsAnswer, result: TestResult) -> Reliability:
    """A judgement of the scores for a test; compared is the effect size at the spread that they hold.

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
    said = [
        *removed_together(groups, question, ""),
        *left_of_training(drift, groups, question, ""),
        *vectors_alike(result.associations.values()),
    ]
    return judged(said, advice=_other_prior(answer.settings.prior))


def vectors_alike(associations: Iterable[float]) -> list[Finding]:
    """A finding if vectors do not tell the target words apart: an effect size is a ratio, and rounding has one too.

    Args:
        associations: Of each target word, in cosines.

    Returns:
        One finding, or none.

    Example:
        >>> vectors_alike([3e-12, -4e-12])[0][0], vectors_alike([0.1, -0.2])
        ('unreliable', [])
    """
    most = max((abs(value) for value in associations), default=0.0)
    if most >= FLAT:
        return []
    said = f"the vectors do not tell these words apart: associations differ by {most:.0e} at most, which is rounding"
    return [("unreliable", said)]


def limits_of(result: TestResult) -> str:
    """Sentences about an effect at its ceiling, and a p-value that cannot be smaller with these lists.

    Args:
        result: One test.

    Returns:
        None, one or two sentences.
    """
    sets, said = result.test.sets, list[str]()
    if abs(result.effect) > NEAR_CEILING:
        said.append("The effect size is near 2, the most there can be: it cannot show how much larger the bias is.")
    partitions = math.comb(len(sets.X) + len(sets.Y), len(sets.X))
    if result.p_value <= 1.5 / partitions:
        said.append(f"With these lists p cannot be smaller than {1 / partitions:.2g}; longer ones could tell more.")
    return " ".join(said)


def of_word(answer: WordAnswer) -> Reliability:
    """A judgement of the scores for the cluster of a word.

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
    """A sentence about the effect that a test found, and its direction; see `effect_in`."""
    sets = result.test.sets
    partitions = math.comb(len(sets.X) + len(sets.Y), len(sets.X))
    return effect_in(result.p_value, partitions)


def chosen_of(result: TestResult) -> Removal:
    """The group to remove: the smallest after which the test finds no effect, or else the largest that lowers it.

    Args:
        result: One test.

    Returns:
        One of its removals that raise what is asked about.
    """
    raising = [one for one in result.removals if "raise it most" in one.name]
    enough = [one for one in raising if one.p_value > NO_EFFECT]
    if enough:
        return min(enough, key=lambda one: len(one.ids))
    return max(raising or result.removals[:1], key=lambda one: len(one.ids))


def smallest_that_suffices(result: TestResult) -> str:
    """The smallest group that, removed, leaves no effect.

    Args:
        result: One test.

    Returns:
        A sentence.
    """
    if effect_of(result) != "as asked":
        return ""
    chosen = chosen_of(result)
    chance = [one for one in result.removals if one.name.endswith("random ones") and one.p_value > NO_EFFECT]
    if chance:
        return f"Without {chance[0].name} the effect is gone too, so this does not say which sentences to remove."
    if chosen.p_value > NO_EFFECT:
        return f"Trained without {chosen.name}, the test finds no effect any more (p = {chosen.p_value:.2g})."
    return (
        f"Even trained without {chosen.name}, the effect stays (p = {chosen.p_value:.2g}): remove more with --remove."
    )


def first_sentence(answer: WordsAnswer, result: TestResult) -> str:
    """The first sentence about one test: there is no effect, or how far scores can be relied on.

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
    """True if the scores of all tests can be relied on at least in their order."""
    return all(of_test(answer, result).dependable for result in answer.tests)
