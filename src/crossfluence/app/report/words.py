"""The page about bias in word embeddings: sentences, words before and after, predictions beside retraining."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup, escape

from ..._results.scores import Scores
from ..._types import Id
from .page import LOWERS, PALETTE, RAISES, all_samples, template, versions
from .sheet import source_of
from .svg import Picture
from .verdicts import first_sentence, limits_of, of_test, smallest_that_suffices, title_of

if TYPE_CHECKING:
    from ...words.corpus.corpus import Corpus
    from ...words.explain_bias import TestResult, WordsAnswer

LISTED, SHOWN = 20, 400  # sentences of each kind, and characters of each


def words_page(
    answer: WordsAnswer,
    texts: Mapping[Id, str],
    shown_ids: Mapping[Id, str],
    *,
    title: str,
    command: str,
    sheet: str = "scores.csv",
) -> str:
    """One HTML file with everything in it; its script is inside, it requests nothing from the network.

    Args:
        answer: The tests and their check.
        texts: Sentences by id, at least the strongest 20 of each kind.
        shown_ids: What a person is shown for each sentence.
        title: What the corpus is called.
        command: The command line that made it.
        sheet: Name of the file with all scores.

    Returns:
        The text of the page.
    """
    return template("words.html").render(
        a=answer,
        title=title,
        command=command,
        heading=title_of(answer),
        tests=[_test(answer, result, texts, shown_ids) for result in answer.tests],
        scatter=_scatter(answer).drawn(),
        everything=all_samples(
            rows_of_corpus(answer.scores, answer.corpus, texts, shown_ids), sheet=sheet, sources=True
        ),
        settings=asdict(answer.settings),
        versions=versions(),
    )


def rows_of_corpus(
    scores: Scores, corpus: Corpus, texts: Mapping[Id, str], shown_ids: Mapping[Id, str]
) -> list[dict[str, Any]]:
    """All sentences, those with the strongest score of the first question first, with full text and source.

    Args:
        scores: Of all sentences.
        corpus: The sentences.
        texts: Their text.
        shown_ids: What a person is shown for each.

    Returns:
        One entry for each sentence.
    """
    values = scores.values[:, 0]
    return [
        {"id": shown_ids[corpus.ids[row]], "score": float(values[row]), "source": source_of(corpus, row),
         "text": texts[corpus.ids[row]]}
        for row in values.abs().argsort(descending=True, stable=True).tolist()
    ]  # fmt: skip


def marked(text: str, kinds: Mapping[str, Collection[str]]) -> Markup:
    """A sentence with some words marked, whole words only; of a long one the part around the first.

    Args:
        text: As it stands in the corpus.
        kinds: Words by the class of their mark; a word that stands twice gets the first.

    Returns:
        HTML, in which everything else is escaped.

    Example:
        >>> marked("He <b> ran a business.", {"target": ["he"], "attribute": ["business"]})
        Markup('<mark class="target">He</mark> &lt;b&gt; ran a <mark class="attribute">business</mark>.')
    """
    longest_first = {kind: sorted(words, key=len, reverse=True) for kind, words in kinds.items() if words}
    named = (f"(?P<{kind}>{'|'.join(map(re.escape, words))})" for kind, words in longest_first.items())
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(named)})(?!\w)", re.IGNORECASE)
    if len(text) > SHOWN:
        first = pattern.search(text)
        start = max(0, (first.start() if first else 0) - SHOWN // 2)
        stop = min(len(text), start + SHOWN)
        text = f"{'…' if start else ''}{text[start:stop]}{'…' if stop < len(text) else ''}"
    parts, end = list[Markup](), 0
    for found in pattern.finditer(text):
        parts.append(escape(text[end : found.start()]))
        parts.append(Markup('<mark class="{}">{}</mark>').format(found.lastgroup, found[0]))
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def strongest(
    scores: Scores,
    texts: Mapping[Id, str],
    shown_ids: Mapping[Id, str],
    kinds: Mapping[str, Collection[str]],
    *,
    objective: str,
    effect: Literal["raises", "lowers"],
) -> list[dict[str, Any]]:
    """The sentences that raise or lower a question most, as the template `sentences.html` shows them."""
    top = scores.top(LISTED, objective, effect=effect)
    return [
        {"id": shown_ids[label], "score": value, "text": marked(texts[label], kinds),
         "whole": texts[label] if len(texts[label]) > SHOWN else ""} for label, value in top
    ]  # fmt: skip


def _test(
    answer: WordsAnswer, result: TestResult, texts: Mapping[Id, str], shown_ids: Mapping[Id, str]
) -> dict[str, Any]:
    sets, missing = result.test.sets, result.test.missing
    kinds = {"target": sets.X, "other": sets.Y, "attribute": sets.A, "counter": sets.B}
    named = zip(sets.categories, (sets.X, sets.Y, sets.A, sets.B), ("X", "Y", "A", "B"), strict=True)
    return {
        "result": result,
        "first": first_sentence(answer, result),
        "level": of_test(answer, result).level,
        "suffices": smallest_that_suffices(result),
        "limits": limits_of(result),
        "sets": [{"name": name, "words": words, "missing": missing[key]} for name, words, key in named],
        "raises": strongest(answer.scores, texts, shown_ids, kinds, objective=result.name, effect="raises"),
        "lowers": strongest(answer.scores, texts, shown_ids, kinds, objective=result.name, effect="lowers"),
        "bars": _bars(result).drawn(),
    }


def _bars(result: TestResult) -> Picture:
    words = list(result.associations)
    picture = Picture(f"{result.name}: each word before and after", "", "nearer to the first attribute", height=360)
    picture.bars(words, list(result.associations.values()), name="whole corpus", colour=RAISES)
    if result.removals:
        removal = result.removals[0]
        after = [removal.associations[word] for word in words]
        picture.bars(words, after, name=f"without {removal.name}", colour=LOWERS)
    return picture


def _scatter(answer: WordsAnswer) -> Picture:
    points = [
        (result.name, removal.name, removal.predicted, removal.retrained)
        for result in answer.tests
        for removal in result.removals
        if removal.predicted == removal.predicted  # NaN: no step was possible
    ]
    seen = [value for point in points for value in point[2:]] or [0.0]
    picture = Picture(
        "Predicted beside trained again", "effect size, predicted by one Newton step", "effect size, trained again"
    )
    picture.diagonal(min(seen), max(seen), "equal")
    for number, name in enumerate(dict.fromkeys(point[0] for point in points)):
        chosen = [point for point in points if point[0] == name]
        names = [f"without {what}: {x:.3f} predicted, {y:.3f} found" for _, what, x, y in chosen]
        colour = PALETTE[number % len(PALETTE)]
        picture.points([point[2:] for point in chosen], names, name=name, colour=colour, size=6)
    return picture
