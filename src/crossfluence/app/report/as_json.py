"""Answers as values for scripts: `--json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .reliability import Reliability
from .verdicts import effect_of, first_sentence, of_clusters, of_test, of_word

if TYPE_CHECKING:
    from ...clustering.explain import Explanation
    from ...words.explain_bias import WordsAnswer
    from ...words.explain_word import WordAnswer
    from .page import Samples

LISTED = 20


def of_explanation(found: Explanation, samples: Samples, out: Path) -> dict[str, Any]:
    """A clustering explained.

    Args:
        found: The answer.
        samples: What was read.
        out: The page.

    Returns:
        Verdict, cluster, strongest samples, agreement with retraining, groups removed.
    """
    agreement = {name: float(getattr(found.agreement, name)) for name in ("pearson", "spearman", "slope")}
    return {
        **_verdict(of_clusters(found, samples.noun)),
        "query": found.ids[found.query], "cluster": found.first, "next": found.second, "margin": found.margin,
        "raises": dict(found.strongest(LISTED, raises=True)), "lowers": dict(found.strongest(LISTED, raises=False)),
        "agreement": agreement,
        "removed": [
            {"name": one.name, "ids": list(one.ids), "predicted": one.predicted, "newton": one.newton,
             "achieved": one.achieved} for one in found.removals
        ],
        "columns": list(samples.columns), "remarks": list(samples.remarks), "page": out,
        "scores": out.with_suffix(".csv"),
    }  # fmt: skip


def of_words(answer: WordsAnswer, shown: dict[Any, str], out: Path) -> dict[str, Any]:
    """Association tests explained.

    Args:
        answer: All tests.
        shown: What a person is shown for each sentence.
        out: The page.

    Returns:
        One entry for each test.
    """
    tests = [
        {
            **_verdict(of_test(answer, one)), "first": first_sentence(answer, one), "name": one.name,
            "effect_size": one.effect, "p": one.p_value, "effect": effect_of(one),
            "raises": {shown[label]: value for label, value in answer.scores.top(LISTED, one.name)},
            "lowers": {shown[label]: value for label, value in answer.scores.top(LISTED, one.name, effect="lowers")},
            "removed": [
                {"name": group.name, "ids": [shown[label] for label in group.ids], "newton": group.predicted,
                 "retrained": group.retrained, "p": group.p_value} for group in one.removals
            ],
        }
        for one in answer.tests
    ]  # fmt: skip
    return {
        "dependable": all(one["dependable"] for one in tests), "tests": tests, "page": out,
        "scores": out.with_suffix(".csv"),
    }  # fmt: skip


def of_cluster_of_word(answer: WordAnswer, shown: dict[Any, str], out: Path) -> dict[str, Any]:
    """The cluster of a word explained.

    Args:
        answer: The answer.
        shown: What a person is shown for each sentence.
        out: The page.

    Returns:
        Verdict, cluster, strongest sentences, groups removed.
    """
    return {
        **_verdict(of_word(answer)), "word": answer.word, "cluster": answer.first, "next": answer.second,
        "margin": answer.margin,
        "raises": {shown[label]: value for label, value in answer.scores.top(LISTED)},
        "lowers": {shown[label]: value for label, value in answer.scores.top(LISTED, effect="lowers")},
        "removed": [
            {"name": move.name, "newton": move.predicted, "retrained": move.retrained} for move in answer.moves
        ],
        "page": out, "scores": out.with_suffix(".csv"),
    }  # fmt: skip


def _verdict(found: Reliability) -> dict[str, Any]:
    return {
        "verdict": str(found), "dependable": found.dependable, "level": found.level, "reasons": list(found.reasons),
        "advice": list(found.advice),
    }  # fmt: skip
