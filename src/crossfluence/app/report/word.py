"""The page about a word in its cluster: clusters, a map, the sentences behind it, predictions beside retraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import torch
from plotly.offline import get_plotlyjs
from sklearn.manifold import TSNE
from torch import Tensor

from ..._types import Id
from .page import LOWERS, PALETTE, RAISES, embedded, layout, template, versions
from .verdicts import of_word
from .words import strongest

if TYPE_CHECKING:
    from ...words.explain_word import WordAnswer

MEMBERS = 30  # words of each cluster that are shown, those nearest to its centre
LABELLED = 10  # of these, how many have their name beside them in the two clusters asked about


def word_page(
    answer: WordAnswer, texts: Mapping[Id, str], shown_ids: Mapping[Id, str], *, title: str, command: str
) -> str:
    """One HTML file with everything in it; its script is inside, it requests nothing from the network.

    Args:
        answer: The word, its cluster and the check.
        texts: Sentences by id, at least the strongest 20 of each kind.
        shown_ids: What a person is shown for each sentence.
        title: What the corpus is called.
        command: The command line that made it.

    Returns:
        The text of the page.
    """
    shown = [words[:MEMBERS] for words in answer.clusters]
    kinds = {"target": [answer.word], "first": shown[answer.first], "second": shown[answer.second]}
    objective = answer.scores.objectives[0]
    return template("word.html").render(
        a=answer,
        title=title,
        command=command,
        verdict=of_word(answer),
        script=get_plotlyjs(),
        clusters=sorted(range(len(shown)), key=lambda number: -answer.assignments[number]),
        shown=shown,
        most=MEMBERS,
        raises=strongest(answer.scores, texts, shown_ids, kinds, objective=objective, effect="raises"),
        lowers=strongest(answer.scores, texts, shown_ids, kinds, objective=objective, effect="lowers"),
        map=embedded(_map(answer, shown)),
        scatter=embedded(_scatter(answer)),
        settings={"clusters": len(shown), **asdict(answer.settings)},
        report=answer.scores.report,
        versions=versions(),
    )


def _map(answer: WordAnswer, shown: list[tuple[str, ...]]) -> go.Figure:
    words = list(dict.fromkeys([answer.word, *(word for members in shown for word in members)]))
    places = dict(zip(words, _plane(answer, words).tolist(), strict=True))
    figure = go.Figure(layout=layout("", ""))
    colours = {number: PALETTE[number % len(PALETTE)] for number in range(len(shown))}
    colours |= {answer.first: RAISES, answer.second: LOWERS}  # as the marks in the sentences
    for number in sorted(colours, key=lambda number: number in (answer.first, answer.second)):
        asked = number in (answer.first, answer.second)
        members = [word for word in shown[number] if word != answer.word]
        named = members[: LABELLED if asked else 0]
        figure.add_scatter(
            **_dots(places, members, text=named + [""] * (len(members) - len(named))), mode="markers+text",
            name=f"cluster {number}", textposition="top center", textfont={"size": 11},
            marker={"size": 7 if asked else 5, "color": colours[number], "opacity": 1 if asked else 0.35},
        )  # fmt: skip
    figure.add_scatter(
        **_dots(places, [answer.word], text=[answer.word]), mode="markers+text", name="the word",
        textposition="bottom center", textfont={"size": 16, "color": "#000000"},
        marker={"symbol": "star", "size": 18, "color": "#000000", "line": {"width": 1, "color": "#ffffff"}},
    )  # fmt: skip
    return figure.update_layout(height=640).update_xaxes(showticklabels=False).update_yaxes(showticklabels=False)


def _plane(answer: WordAnswer, words: list[str]) -> Tensor:
    """Where t-SNE draws the words, by their vectors of length one: shape `(words, 2)`, the same every time."""
    rows = [answer.model.index[word] for word in words]
    vectors = torch.nn.functional.normalize(answer.model.word_vectors.detach()[rows].double())
    perplexity = min(30.0, (len(words) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="random", random_state=answer.settings.seed).fit_transform(vectors.numpy())
    return torch.as_tensor(flat)


def _dots(places: Mapping[str, list[float]], words: list[str], *, text: list[str]) -> dict[str, Any]:
    x, y = ([places[word][axis] for word in words] for axis in (0, 1))
    return {"x": x, "y": y, "text": text, "hovertext": words, "hoverinfo": "text"}


def _scatter(answer: WordAnswer) -> go.Figure:
    figure = go.Figure(layout=layout("margin, predicted (nats)", "margin, trained again (nats)"))
    truth = [answer.margin, *(move.retrained for move in answer.moves)]
    ends = [min(truth), max(truth)]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line={"dash": "dot", "color": "#888888"})
    for symbol, name, predicted in (
        ("circle-open", "summed scores", [move.summed for move in answer.moves]),
        ("circle", "one Newton step", [move.predicted for move in answer.moves]),
    ):
        figure.add_scatter(
            x=predicted, y=[move.retrained for move in answer.moves], text=[move.name for move in answer.moves],
            mode="markers", name=name, hovertemplate="without %{text}: %{x:.4f} predicted, %{y:.4f} found",
            marker={"symbol": symbol, "size": 11, "color": PALETTE[0]},
        )  # fmt: skip
    figure.add_scatter(
        x=[answer.margin], y=[answer.margin], mode="markers", name="nothing removed", hoverinfo="name",
        marker={"symbol": "x", "size": 9, "color": RAISES},
    )  # fmt: skip
    return figure.update_layout(height=420)
