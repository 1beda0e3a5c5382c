"""From running text to weighted pairs of words: what skip-gram is trained on, in expectation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from crossfluence.errors import CorpusError

from .corpus import Corpus

PAIRS_AT_ONCE = 4_000_000  # about 200 MB while they are sorted


@dataclass(frozen=True)
class Sampling:
    """Settings of word2vec's training pairs, for training by samples and in expectation.

    Attributes:
        window: Words on each side; a neighbour at distance t is used with probability (window - t + 1) / window.
        negatives: Noise words for each pair.
        subsample: Words more frequent than this share of the corpus are thinned out; 0 keeps all.
        power: Noise words are drawn in proportion to counts to this power.

    Example:
        >>> Sampling(window=2).keep(np.array([900, 100])).round(3).tolist()
        [0.034, 0.11]

    References:
        Mikolov, Sutskever, Chen, Corrado and Dean, "Distributed representations of words and phrases and their
        compositionality", NeurIPS 2013.
    """

    window: int = 5
    negatives: int = 5
    subsample: float = 1e-3
    power: float = 0.75

    def __post_init__(self) -> None:
        for name in ("window", "negatives"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"Got {name}={getattr(self, name)!r}; needed a whole number, at least 1.")
        for name in ("subsample", "power"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Got {name}={getattr(self, name)!r}; needed a number between 0 and 1.")

    @classmethod
    def from_gensim(cls, model: Any) -> Sampling:
        """The settings by which gensim drew a model's pairs, but for the gaps that thinned words leave.

        Args:
            model: A `gensim.models.Word2Vec`.

        Returns:
            Its window, negatives, sample and ns_exponent.

        Raises:
            CorpusError: If it drew them in a way that no setting here stands for.

        Example:
            >>> from gensim.models import Word2Vec
            >>> Sampling.from_gensim(Word2Vec([["he", "works"]], vector_size=4, min_count=1, sg=1, window=3))
            Sampling(window=3, negatives=5, subsample=0.001, power=0.75)
        """
        if not model.shrink_windows:
            raise CorpusError(
                "This Word2Vec was trained with shrink_windows=False; needed windows of random width, as word2vec has."
            )
        try:
            return cls(model.window, model.negative, float(model.sample), model.ns_exponent)
        except ValueError as error:
            raise CorpusError(f"This Word2Vec drew its pairs in another way than word2vec: {error}") from None

    def keep(self, counts: Int[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
        """The probability with which each occurrence of a word is used.

        Args:
            counts: Occurrences of each word.

        Returns:
            Shape `(V,)`, in (0, 1].
        """
        if not self.subsample:
            return np.ones(len(counts))
        share = np.maximum(counts, 1) / counts.sum()  # a word that never occurs needs a number too
        return np.minimum(1, np.sqrt(self.subsample / share) + self.subsample / share)

    def noise(self, counts: Int[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
        """The distribution of noise words.

        Args:
            counts: Occurrences of each word.

        Returns:
            Shape `(V,)`; sums to 1.
        """
        raised = counts.astype(float) ** self.power
        return raised / raised.sum()


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Expected counts of each word beside each other one: a sparse symmetric matrix, row by row.

    Attributes:
        size: V, the number of words.
        starts: Shape `(V + 1,)`: where each row begins.
        columns: Shape `(nnz,)`: the neighbours of each word, in order.
        values: Shape `(nnz,)`: expected counts.
    """

    size: int
    starts: Int[np.ndarray, " rows"]
    columns: Int[np.ndarray, " nnz"]
    values: Float[np.ndarray, " nnz"]

    @property
    def total(self) -> float:
        """The sum of all counts: pairs in expectation, each from both sides."""
        return float(self.values.sum())

    @property
    def of_word(self) -> Float[np.ndarray, " V"]:
        """Pairs of each word."""
        return np.bincount(self.rows, self.values, minlength=self.size).astype(float)  # of nothing it counts whole

    @property
    def rows(self) -> Int[np.ndarray, " nnz"]:
        """The word that each entry belongs to."""
        return np.repeat(np.arange(self.size), np.diff(self.starts))

    def minus(self, other: PairCounts) -> PairCounts:
        """The counts without those of some of the sentences they were made of.

        Args:
            other: Counts of these sentences; every pair in it is also here.

        Returns:
            The same sparsity; what rounding leaves below zero is zero.
        """
        keys = self.rows * self.size + self.columns
        places = np.searchsorted(keys, other.rows * other.size + other.columns)
        values = self.values.copy()
        values[places] -= other.values
        values[values < 1e-9 * self.values] = 0
        return PairCounts(self.size, self.starts, self.columns, values)


@dataclass(frozen=True, eq=False)
class Pairs:
    """A corpus as skip-gram sees it; counted once, and shared by training and influence.

    Vocabulary, thinning and noise words are those of the whole corpus, whichever sentences are left out.

    Attributes:
        corpus: The sentences.
        sampling: How pairs are drawn from them.

    Raises:
        CorpusError: If there is no pair.

    Example:
        >>> from crossfluence.words.corpus.vocabulary import corpus_of
        >>> pairs = Pairs(corpus_of(["he works", "she works"]), Sampling(subsample=0))
        >>> pairs.all.total
        4.0
    """

    corpus: Corpus
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if not (np.diff(self.corpus.offsets) > 1).any():
            raise CorpusError(
                f"None of the {self.corpus.n:,} sentences holds two words of the vocabulary, so there is no pair to "
                f"learn from. Lower min_count, or read longer sentences: split='records' takes a whole record as one."
            )

    @cached_property
    def keep(self) -> Float[np.ndarray, " V"]:
        """Probability with which each occurrence of a word is used."""
        return self.sampling.keep(self.corpus.counts)

    @cached_property
    def noise(self) -> Float[np.ndarray, " V"]:
        """Distribution of noise words."""
        return self.sampling.noise(self.corpus.counts)

    @cached_property
    def all(self) -> PairCounts:
        """Expected counts of the whole corpus."""
        return self._counted(None)

    def weighted(self, weights: Float[np.ndarray, " n"]) -> PairCounts:
        """Expected counts of weighted sentences; a few left out, or a few kept, cost little.

        Args:
            weights: One for each sentence.

        Returns:
            A symmetric sparse matrix.
        """
        if (weights == 1).all():
            return self.all
        if (weights == 0).sum() <= len(weights) / 2 and np.isin(weights, (0, 1)).all():
            return self.all.minus(self._counted((weights == 0).astype(float)))
        return self._counted(weights)

    def _counted(self, weights: Float[np.ndarray, " n"] | None) -> PairCounts:
        return pair_counts(self.corpus.tokens, self.corpus.offsets, self.keep, self.sampling.window, weights)


def neighbours(
    tokens: Int[np.ndarray, " T"], sentence: Int[np.ndarray, " T"], keep: Float[np.ndarray, " V"], window: int
) -> Iterator[tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"], Int[np.ndarray, " b"], Float[np.ndarray, " b"]]]:
    """Every two words of a sentence within the window of each other, once, with its weight.

    Args:
        tokens: Words of all sentences, in order.
        sentence: The sentence that each token stands in.
        keep: Probability with which each word is used.
        window: Words on each side.

    Yields:
        Sentences, first words, second words and weights, some millions at a time.
    """
    for start in range(0, len(tokens), PAIRS_AT_ONCE):
        for distance in range(1, window + 1):
            stop = max(start, min(start + PAIRS_AT_ONCE, len(tokens) - distance))
            first, second = slice(start, stop), slice(start + distance, stop + distance)
            inside = np.flatnonzero(sentence[first] == sentence[second])
            if len(inside):
                a, b = tokens[first][inside], tokens[second][inside]
                yield sentence[first][inside], a, b, keep[a] * keep[b] * (1 - (distance - 1) / window)


def sentence_numbers(offsets: Int[np.ndarray, " offsets"]) -> Int[np.ndarray, " T"]:
    """The sentence that each token stands in."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))


def pair_counts(
    tokens: Int[np.ndarray, " T"],
    offsets: Int[np.ndarray, " offsets"],
    keep: Float[np.ndarray, " V"],
    window: int,
    weights: Float[np.ndarray, " n"] | None = None,
) -> PairCounts:
    """Expected pair counts of weighted sentences; those with weight zero cost nothing.

    Args:
        tokens: Words of all sentences, in order.
        offsets: Where each sentence begins, and the end.
        keep: Probability with which each word is used.
        window: Words on each side.
        weights: One for each sentence; default: ones.

    Returns:
        A symmetric sparse matrix.

    Example:
        >>> counts = pair_counts(np.array([0, 1, 2]), np.array([0, 3]), np.ones(3), window=2)
        >>> counts.of_word.tolist(), counts.total
        ([1.5, 2.0, 1.5], 5.0)
    """
    size, sentence = len(keep), sentence_numbers(offsets)
    if weights is not None and (weights == 0).any():
        used = weights[sentence] != 0
        tokens, sentence = tokens[used], sentence[used]
    done: list[tuple[np.ndarray, np.ndarray]] = []
    with tqdm(total=len(tokens) * window, desc="pairs", unit="pair", unit_scale=True, disable=None, leave=False) as bar:
        for numbers, a, b, weight in neighbours(tokens, sentence, keep, window):
            if weights is not None:
                weight = weight * weights[numbers]
            done.append(_summed(np.minimum(a, b).astype(np.int64) * size + np.maximum(a, b), weight))
            while len(done) > 1 and len(done[-2][0]) < 2 * len(done[-1][0]):  # merge sizes that are alike
                done.append(_merged(done.pop(), done.pop()))
            bar.update(len(a))
    while len(done) > 1:
        done.append(_merged(done.pop(), done.pop()))
    keys, values = done[0] if done else (np.zeros(0, np.int64), np.zeros(0))
    low, high = np.divmod(keys, size)
    keys, values = _merged((keys, values), (high * size + low, values))  # a word beside itself counts from both sides
    starts = np.searchsorted(keys, np.arange(size + 1) * size)
    return PairCounts(size, starts, (keys % size).astype(np.int32), values)


def _merged(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return _summed(np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]]))


def _summed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys in order, with the sums of their values."""
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, int)
    return keys[first], np.add.reduceat(values, first) if len(keys) else values
