"""Why is this word in that cluster, and what would move it? Train, cluster, ask, remove and train again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .._errors import CorpusError
from .._extras import optional
from .._influence import influence
from .._scores import Scores
from .._types import Id
from ..corpus.corpus import Corpus
from ..corpus.pairs import Pairs
from ..models.skipgram import ExpectedTraining, SkipGram
from ..objectives.embeddings import cluster_margin
from ..objectives.word_sets import rows_of
from ..training.retrain import leave_out
from .words import WordsSettings, newton_step

MEMBERS = 30  # words nearest to a centre, whose mean stands for the cluster in every retrained model


@dataclass(frozen=True, eq=False)
class Move:
    """Sentences removed together, and the margin afterwards.

    Attributes:
        name: Which sentences.
        ids: They.
        summed: Margin predicted by summing scores.
        predicted: Margin after one Newton step without them.
        retrained: Margin after training without them.
    """

    name: str
    ids: tuple[Id, ...] = field(repr=False)
    summed: float
    predicted: float
    retrained: float


@dataclass(frozen=True, eq=False)
class WordAnswer:
    """Why a word is in its cluster.

    Attributes:
        word: As the corpus has it.
        clusters: Words nearest to each centre.
        first: The word's cluster.
        second: The next one.
        margin: Log of the ratio of its soft assignments to the two.
        scores: What every sentence did to the margin.
        moves: The sentences that hold it there most, those that pull it away most, random ones.
    """

    word: str
    clusters: tuple[tuple[str, ...], ...]
    first: int
    second: int
    margin: float
    scores: Scores = field(repr=False)
    moves: tuple[Move, ...]


def explain_word(
    corpus: Corpus,
    word: str,
    *,
    clusters: int = 8,
    settings: WordsSettings | None = None,
    store: Path | None = None,
) -> WordAnswer:
    """Clusters the words of a corpus and says which sentences put one of them where it is.

    Args:
        corpus: The sentences; read it with `keep=[word]`.
        word: The word asked about.
        clusters: Centres of k-means, on vectors of length one.
        settings: Sizes and lengths, as for `explain_words`.
        store: A folder that keeps what is finished.

    Returns:
        Clusters, margin, scores, and what removing sentences was predicted to do and did.

    Raises:
        WordError: If the word is not in the corpus.
        CorpusError: If there are too few words for so many clusters.

    Example:
        >>> from crossfluence.studies.planted import planted
        >>> corpus = planted(sentences=200, culprits=10).corpus
        >>> answer = explain_word(corpus, "fox", clusters=3, settings=WordsSettings(dimensions=4, remove=5))
        >>> answer.word, len(answer.clusters), answer.margin > 0
        ('fox', 3, True)
    """
    settings = settings or WordsSettings()
    count = settings.group(corpus.n)
    if not 2 <= clusters <= len(corpus.words) // 4:
        raise CorpusError(f"Got {clusters} clusters for {len(corpus.words)} words; needed 2 to a quarter of the words.")
    index = {known: row for row, known in enumerate(corpus.words)}
    word = corpus.words[next(iter(rows_of([word], index).values()))]
    pairs = Pairs(corpus, settings.sampling)
    training = ExpectedTraining(pairs, settings.dimensions, prior=settings.prior, seed=settings.seed)
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
    model, _ = training.fit(checkpoint=None if store is None else store / "training.safetensors")
    members = _clustered(model, clusters, settings.seed)
    first, second = _nearest_two(model, word, members)
    question = cluster_margin(word, members, first, second, index)
    risk = training.risk(model)
    scores = influence(risk, question)
    groups = _groups(scores, count, settings.seed)
    truth = leave_out(training.starting_from(model), question, groups, n=corpus.n, ids=corpus.ids, store=store)
    margin = float(torch.as_tensor(question(model)).detach())
    moves = tuple(
        Move(
            str(name),
            tuple(ids),
            margin - float(scores.select(ids).values.sum()),
            newton_step(risk, ids, question),
            margin - float(truth.select([name]).values),
        )
        for name, ids in groups.items()
    )
    return WordAnswer(word, members, first, second, margin, scores, moves)


def _groups(scores: Scores, count: int, seed: int) -> dict[Id, list[Id]]:
    draw = np.random.default_rng(seed).choice(len(scores.ids), count, replace=False)
    groups: dict[Id, list[Id]] = {
        f"the {count} that hold it there most": [label for label, _ in scores.top(count)],
        f"the {count} that pull it away most": [label for label, _ in scores.top(count, effect="lowers")],
        f"{count} random ones": [scores.ids[row] for row in draw],
    }
    return {name: ids for name, ids in groups.items() if ids}


def _clustered(model: SkipGram, clusters: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """The words nearest to each centre of k-means on vectors of length one."""
    kmeans = optional("sklearn.cluster", "Clusters of words", "clusters").KMeans(clusters, n_init=4, random_state=seed)
    table = torch.nn.functional.normalize(model.word_vectors.detach().double())
    labels = torch.as_tensor(kmeans.fit(table.numpy()).labels_)
    centres = torch.as_tensor(kmeans.cluster_centers_)
    found = []
    for number in range(clusters):
        rows = (labels == number).nonzero().flatten()
        order = (table[rows] @ centres[number]).argsort(descending=True)[:MEMBERS]
        found.append(tuple(model.words[row] for row in rows[order].tolist()))
    return tuple(found)


def _nearest_two(model: SkipGram, word: str, members: tuple[tuple[str, ...], ...]) -> tuple[int, int]:
    """The clusters whose members' mean is nearest to the word, the word itself not counted."""
    table = torch.nn.functional.normalize(model.word_vectors.detach().double())
    centres = [table[[model.index[one] for one in words if one != word]].mean(0) for words in members]
    order = (torch.stack(centres) - table[model.index[word]]).norm(dim=1).argsort().tolist()
    return order[0], order[1]
