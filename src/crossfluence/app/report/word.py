"""The page about a word in its cluster: clusters, a map, the sentences behind it, predictions beside retraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from sklearn.manifold import TSNE
from torch import Tensor

from ..._types import Id
from .page import LOWERS, PALETTE, RAISES, all_samples, template, versions
from .svg import Picture
from .verdicts import of_word
from .words import rows_of_corpus, strongest

if TYPE_CHECKING:
    from ...words.explain_word import WordAnswer

MEMBERS = 30  # words of each cluster that are shown, those nearest to its centre
LABELLED = 10  # of these, how many have their name beside them in the two clusters asked about


def word_page(
    answer: WordAnswer,
    texts: Mapping[Id, str],
    shown_ids: Mapping[Id, str],
    *,
    title: str,
    command: str,
    sheet: str = "scores.csv",
) -> str:
    """One HTML file with everything in it; its script is inside, it requests nothing from the network.

    Args:
        answer: The word, its cluster and the check.
        texts: Sentences by id, at least the strongest 20 of each kind.
        shown_ids: What a person is shown for each sentence.
        title: What the corpus is called.
        command: The command line that made it.
        sheet: Name of the file with all scores.

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
        clusters=sorted(range(len(shown)), key=lambda number: -answer.assignments[number]),
        shown=shown,
        most=MEMBERS,
        raises=strongest(answer.scores, texts, shown_ids, kinds, objective=objective, effect="raises"),
        lowers=strongest(answer.scores, texts, shown_ids, kinds, objective=objective, effect="lowers"),
        map=_map(answer, shown).drawn(),
        scatter=_scatter(answer).drawn(),
        everything=all_samples(
            rows_of_corpus(answer.scores, answer.corpus, texts, shown_ids), sheet=sheet, sources=True
        ),
        settings={"clusters": len(shown), **asdict(answer.settings)},
        report=answer.scores.report,
        versions=versions(),
    )


def _map(answer: WordAnswer, shown: list[tuple[str, ...]]) -> Picture:
    words = list(dict.fromkeys([answer.word, *(word for members in shown for word in members)]))
    plane = dict(zip(words, _plane(answer, words).tolist(), strict=True))
    places = {word: (x, y) for word, (x, y) in plane.items()}
    picture = Picture("Map of words in their clusters", "", "", height=640, ticks=False)
    colours = {number: PALETTE[number % len(PALETTE)] for number in range(len(shown))}
    colours |= {answer.first: RAISES, answer.second: LOWERS}  # as the marks in the sentences
    for number in sorted(colours, key=lambda number: number in (answer.first, answer.second)):
        asked = number in (answer.first, answer.second)
        members = [word for word in shown[number] if word != answer.word]
        named = members[: LABELLED if asked else 0]
        picture.points(
            [places[word] for word in members], members, name=f"cluster {number}", colour=colours[number],
            size=4 if asked else 2.5, texts=named + [""] * (len(members) - len(named)),
        )  # fmt: skip
    picture.points(
        [places[answer.word]], [answer.word], name=answer.word, colour="currentColor", size=11, kind="star",
        texts=[answer.word],
    )  # fmt: skip
    return picture


def _plane(answer: WordAnswer, words: list[str]) -> Tensor:
    """Places of the words by t-SNE of their vectors of length one: shape `(words, 2)`, the same every time."""
    rows = [answer.model.index[word] for word in words]
    vectors = torch.nn.functional.normalize(answer.model.word_vectors.detach()[rows].double())
    perplexity = min(30.0, (len(words) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="random", random_state=answer.settings.seed).fit_transform(vectors.numpy())
    return torch.as_tensor(flat)


def _scatter(answer: WordAnswer) -> Picture:
    picture = Picture(
        "Predicted beside trained again", "margin, predicted (nats)", "margin, trained again (nats)", height=420
    )
    truth = [answer.margin, *(move.retrained for move in answer.moves)]
    picture.diagonal(min(truth), max(truth), "equal")
    for kind, name, predicted in (
        ("ring", "summed scores", [move.summed for move in answer.moves]),
        ("dot", "one Newton step", [move.predicted for move in answer.moves]),
    ):
        pairs = [(x, move) for x, move in zip(predicted, answer.moves, strict=True) if x == x]
        names = [f"without {move.name}: {x:.4f} predicted, {move.retrained:.4f} found" for x, move in pairs]
        places = [(x, move.retrained) for x, move in pairs]
        picture.points(places, names, name=name, colour=PALETTE[0], size=6, kind=kind)
    at = (answer.margin, answer.margin)
    picture.points([at], ["nothing removed"], name="nothing removed", colour=RAISES, size=5, kind="cross")
    return picture
