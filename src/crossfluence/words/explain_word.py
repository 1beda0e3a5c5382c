"""The sentences behind a word's cluster: training, clustering, influence, removal, and training again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from crossfluence import Scores, influence, leave_out
from crossfluence.errors import CorpusError, import_optional
from crossfluence.extend import Id

from .corpus.corpus import Corpus
from .corpus.pairs import Pairs
from .explain_bias import Clock, WordsSettings, newton_step, refuse_collapsed, unit_vectors
from .objectives import cluster_margin, log_cluster
from .resume import trained_once
from .skipgram import ExpectedTraining, SkipGram
from .word_sets import rows_of


@dataclass(frozen=True, eq=False)
class Removal:
    """Sentences removed together, and the margin afterwards.

    Attributes:
        name: Which sentences.
        ids: They.
        summed: Margin predicted by summing scores.
        predicted: Margin after one Newton step without them; NaN if no step was possible.
        retrained: Margin after training without them.
    """

    name: str
    ids: tuple[Id, ...] = field(repr=False)
    summed: float
    predicted: float
    retrained: float


@dataclass(frozen=True, eq=False)
class WordAnswer:
    """The sentences behind a word's cluster, and the effect of removing them.

    Attributes:
        word: As the corpus has it.
        settings: What was asked for.
        corpus: The sentences.
        model: The trained embedding.
        clusters: The words of each cluster, those nearest to its centre first.
        assignments: Share of the word's soft assignment to each cluster.
        first: The word's cluster.
        second: The next one.
        margin: Log of the ratio of its soft assignments to the two. The word itself does not count in a centre, so for
            a word at the border it may be a little below zero.
        scores: What every sentence did to the margin.
        moves: The sentences that hold it there most, those that pull it away most, and random ones.
        seconds: Of each phase.
        steps: Of training.
    """

    word: str
    settings: WordsSettings
    corpus: Corpus = field(repr=False)
    model: SkipGram = field(repr=False)
    clusters: tuple[tuple[str, ...], ...] = field(repr=False)
    assignments: tuple[float, ...]
    first: int
    second: int
    margin: float
    scores: Scores = field(repr=False)
    moves: tuple[Removal, ...]
    seconds: Mapping[str, float]
    steps: int


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
        CorpusError: If there are too few words for so many clusters, too few sentences hold the word for so many to be
            removed, or it has a cluster for itself.

    Example:
        >>> from crossfluence.words.planted import planted
        >>> corpus = planted(sentences=800, culprits=40).corpus
        >>> answer = explain_word(corpus, "fox", clusters=3, settings=WordsSettings(dimensions=4, remove=3))
        >>> answer.word, len(answer.clusters), answer.margin > 0
        ('fox', 3, True)
    """
    settings, clock = settings or WordsSettings(), Clock()
    if not 2 <= clusters <= len(corpus.words) // 4:
        most = len(corpus.words) // 4
        way = f"Ask for clusters={most}." if most >= 2 else "Give more text."
        raise CorpusError(
            f"Got {clusters} clusters for {len(corpus.words)} words; needed 2 to a quarter of the words. {way}"
        )
    word = corpus.words[next(iter(rows_of([word], corpus.index).values()))]
    held = corpus.sentences_with(word)
    count = _refuse_emptying(settings.group(corpus.n), word, held)
    pairs = Pairs(corpus, settings.sampling)
    training = ExpectedTraining(pairs, settings.dimensions, prior=settings.prior, seed=settings.seed)
    model, steps = trained_once(training, store)
    clock.note("training")
    members = clustered(model, clusters, seed=settings.seed)
    first, second = own_and_next(model, word, members)
    question = cluster_margin(word, members, first, second, corpus.index)
    risk = training.risk(model)
    scores = influence(risk, question)
    clock.note("clusters and scores")
    groups = _groups(scores, word, held, count, settings.seed)
    predicted = {name: newton_step(risk, ids, question) for name, ids in groups.items()}
    clock.note("one Newton step for each group")
    truth = leave_out(training.starting_from(model), question, groups, n=corpus.n, ids=corpus.ids, store=store)
    clock.note("training again without each group")
    margin = float(torch.as_tensor(question(model)).detach())
    moves = tuple(
        Removal(
            str(name),
            tuple(ids),
            margin - float(scores.select(ids).values.sum()),
            predicted[name],
            margin - float(truth.select([name]).values),
        )
        for name, ids in groups.items()
    )
    shares = tuple(
        float(torch.as_tensor(log_cluster(word, members, number, corpus.index)(model)).exp().detach())
        for number in range(clusters)
    )
    return WordAnswer(
        word, settings, corpus, model, members, shares, first, second, margin, scores, moves, clock.seconds, steps
    )  # fmt: skip


def clustered(model: SkipGram, clusters: int, *, seed: int) -> tuple[tuple[str, ...], ...]:
    """The words of each cluster of k-means on vectors of length one.

    Args:
        model: An embedding.
        clusters: How many.
        seed: Of the starts of k-means.

    Returns:
        All words, in each cluster those nearest to its centre first.

    Raises:
        CorpusError: If all vectors have one direction.
    """
    kmeans = import_optional("sklearn.cluster", "Clusters of words", "clusters").KMeans(
        clusters, n_init=4, random_state=seed
    )
    refuse_collapsed(model)
    table = unit_vectors(model)
    labels = torch.as_tensor(kmeans.fit(table.numpy()).labels_)
    centres = torch.as_tensor(kmeans.cluster_centers_)
    found = []
    for number in range(clusters):
        rows = (labels == number).nonzero().flatten()
        order = (table[rows] - centres[number]).norm(dim=1).argsort(stable=True)
        found.append(tuple(model.words[row] for row in rows[order].tolist()))
    return tuple(found)


def own_and_next(model: SkipGram, word: str, members: Sequence[Sequence[str]]) -> tuple[int, int]:
    """The cluster of a word, and of the others the one whose words' mean is nearest to it.

    Args:
        model: The embedding that was clustered.
        word: The word.
        members: The words of each cluster.

    Returns:
        Two positions.

    Raises:
        CorpusError: If the word has a cluster for itself.
    """
    own = next(number for number, words in enumerate(members) if word in words)
    if len(members[own]) == 1:
        raise CorpusError(
            f"{word!r} is the only word of its cluster, one of {len(members)}, so nothing holds it there. "
            f"Ask for fewer clusters."
        )
    table = unit_vectors(model)
    centres = torch.stack([table[[model.index[one] for one in words]].mean(0) for words in members])
    order = (centres - table[model.index[word]]).norm(dim=1).argsort().tolist()
    return own, next(number for number in order if number != own)


def _refuse_emptying(count: int, word: str, held: np.ndarray) -> int:
    """Number of sentences to remove; refused if too few would be left that hold the word."""
    if count > len(held) // 2:
        raise CorpusError(
            f"{count} sentences are to be removed together, and {len(held)} hold {word!r}; needed at most half as "
            f"many, or too little is left to say where it belongs. Remove at most {len(held) // 2}, or ask about a "
            f"word that is less rare."
        )
    return count


def _groups(scores: Scores, word: str, held: np.ndarray, count: int, seed: int) -> dict[Id, list[Id]]:
    random = np.random.default_rng(seed)
    with_it, any_of_all = (random.choice(rows, count, replace=False) for rows in (held, len(scores.ids)))
    groups: dict[Id, list[Id]] = {
        f"the {count} that hold it there most": [label for label, _ in scores.top(count)],
        f"the {count} that pull it away most": [label for label, _ in scores.top(count, effect="lowers")],
        f"{count} random ones with {word!r}": [scores.ids[row] for row in with_it],
        f"{count} random ones": [scores.ids[row] for row in any_of_all],
    }
    return {name: ids for name, ids in groups.items() if ids}
