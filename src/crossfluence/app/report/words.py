"""The page about bias in word embeddings: sentences, words before and after, predictions beside retraining."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from ..._results.scores import Scores
from ..._types import Id
from .page import LOWERS, PALETTE, RAISES, embedded, layout, template, versions
from .verdicts import first_sentence, of_test, title_of

if TYPE_CHECKING:
    from ...words.explain_bias import TestResult, WordsAnswer

LISTED, SHOWN = 20, 400  # sentences of each kind, and characters of each


def words_page(
    answer: WordsAnswer, texts: Mapping[Id, str], shown_ids: Mapping[Id, str], *, title: str, command: str
) -> str:
    """One HTML file with everything in it; its script is inside, it requests nothing from the network.

    Args:
        answer: The tests and their check.
        texts: Sentences by id, at least the strongest 20 of each kind.
        shown_ids: What a person is shown for each sentence.
        title: What the corpus is called.
        command: The command line that made it.

    Returns:
        The text of the page.
    """
    return template("words.html").render(
        a=answer,
        title=title,
        command=command,
        script=get_plotlyjs(),
        heading=title_of(answer),
        tests=[_test(answer, result, texts, shown_ids) for result in answer.tests],
        scatter=embedded(_scatter(answer)),
        settings=asdict(answer.settings),
        versions=versions(),
    )


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
    return [{"id": shown_ids[label], "score": value, "text": marked(texts[label], kinds)} for label, value in top]


def _test(
    answer: WordsAnswer, result: TestResult, texts: Mapping[Id, str], shown_ids: Mapping[Id, str]
) -> dict[str, Any]:
    sets, missing = result.test.sets, result.test.missing
    kinds = {"target": sets.X + sets.Y, "attribute": sets.A + sets.B}
    named = zip(sets.categories, (sets.X, sets.Y, sets.A, sets.B), ("X", "Y", "A", "B"), strict=True)
    return {
        "result": result,
        "first": first_sentence(answer, result),
        "level": of_test(answer, result).level,
        "sets": [{"name": name, "words": words, "missing": missing[key]} for name, words, key in named],
        "raises": strongest(answer.scores, texts, shown_ids, kinds, objective=result.name, effect="raises"),
        "lowers": strongest(answer.scores, texts, shown_ids, kinds, objective=result.name, effect="lowers"),
        "bars": embedded(_bars(result)),
    }


def _bars(result: TestResult) -> go.Figure:
    words = list(result.associations)
    figure = go.Figure(layout=layout("", "association with the first attribute (cosines)"))
    figure.add_bar(x=words, y=list(result.associations.values()), name="whole corpus", marker={"color": RAISES})
    if result.removals:
        removal = result.removals[0]
        after = [removal.associations[word] for word in words]
        figure.add_bar(x=words, y=after, name=f"without {removal.name}", marker={"color": LOWERS})
    return figure.update_layout(barmode="group", height=360)


def _scatter(answer: WordsAnswer) -> go.Figure:
    points = [
        (result.name, removal.name, removal.predicted, removal.retrained)
        for result in answer.tests
        for removal in result.removals
        if removal.predicted == removal.predicted  # NaN: no step was possible
    ]
    seen = [value for point in points for value in point[2:]] or [0.0]
    ends = [min(seen), max(seen)]
    figure = go.Figure(layout=layout("effect size, predicted by one Newton step", "effect size, trained again"))
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line={"dash": "dot", "color": "#888888"})
    for number, name in enumerate(dict.fromkeys(point[0] for point in points)):
        chosen = [point for point in points if point[0] == name]
        figure.add_scatter(
            x=[point[2] for point in chosen], y=[point[3] for point in chosen], text=[point[1] for point in chosen],
            mode="markers", name=name, hovertemplate="without %{text}: %{x:.3f} predicted, %{y:.3f} found",
            marker={"size": 10, "color": PALETTE[number % len(PALETTE)]},
        )  # fmt: skip
    return figure
