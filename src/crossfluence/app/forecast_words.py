"""Estimates of the time and memory of explaining a corpus from its size, or from its beginning, and one short trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorpusError
from ..words.corpus.corpus import Corpus
from ..words.corpus.readers import open_source
from ..words.corpus.vocabulary import build_corpus
from ..words.settings import WordsSettings
from .forecast import LIBRARIES, STARTED, Forecast, beside_others, seconds_of

BEGINNING = 600_000  # characters of a corpus that are read to foretell from
DOUBLE_UP_TO, HELD_UP_TO = 10_000, 5_477  # words, with which training computes in double; of which all pairs are held
ROWS, TRIAL_SECONDS = 400, 0.05  # words whose rows of the pair matrix are tried, and for how long
GRADIENTS, BLOCKS = 200, 11  # of training; measured on Wikipedia samples, as the others: benchmarks/words/forecast.py
PRODUCTS = 28  # for a question, and for a Newton step
AGAIN = 90  # gradients of training again
GROUPS = 3  # removed for each question
READING = 1.2e-6  # seconds for each word read, beside the pairs that are counted


@dataclass(frozen=True)
class Extent:
    """The size of a corpus, known or extrapolated from its beginning.

    Attributes:
        sentences: How many.
        tokens: Words of the vocabulary, each as often as it stands there.
        words: Of the vocabulary.
        share: Of the corpus that was read.
    """

    sentences: int
    tokens: int
    words: int
    share: float = 1.0

    @classmethod
    def of(cls, corpus: Corpus) -> Extent:
        """That of a corpus that was read."""
        return cls(corpus.n, len(corpus.tokens), len(corpus.words))

    def __str__(self) -> str:
        if self.share == 1.0:
            return f"{self.sentences:,} sentences, {self.tokens:,} words, vocabulary {self.words:,}."
        sentences, tokens = (f"{float(f'{count:.2g}'):,.0f}" for count in (self.sentences, self.tokens))
        read = f"{100 * self.share:.2g} %"
        return f"About {sentences} sentences, {tokens} words, vocabulary {self.words:,}; the first {read} were read."


def beginning(
    source: Path, *, reading: dict[str, Any], tokenizer: str, min_count: int, max_words: int, keep: set[str]
) -> tuple[Corpus, Extent]:
    """The beginning of a corpus, and how large all of it is.

    Args:
        source: As for `read_corpus`.
        reading: Format, column, split and encoding.
        tokenizer: As for `read_corpus`.
        min_count: Of the whole corpus.
        max_words: The same.
        keep: Words that stay.

    Returns:
        A corpus with the words that the whole one has, as far as they stand in its beginning; and the size of it all.

    Raises:
        CorpusError: As `read_corpus`.
    """
    files = open_source(source, **reading)
    sentences, share = files.beginning(BEGINNING)
    if not sentences:
        raise CorpusError(f"There is no text in {source.name}; needed a sentence.")
    least = min_count if share == 1.0 else max(1, round(min_count * share))
    found = build_corpus(
        sentences, tokenizer=tokenizer, min_count=least, max_words=max_words, keep=keep, keep_count=least, source=files
    )
    extent = Extent.of(found)
    if share < 1.0:
        extent = Extent(round(found.n / share), round(len(found.tokens) / share), len(found.words), share)
    return found, extent


def forecast_words(extent: Extent, questions: int, settings: WordsSettings) -> Forecast:
    """Estimates the time and memory of `explain_words` on this machine.

    Args:
        extent: Of the corpus.
        questions: How many tests, or words.
        settings: As for `explain_words`.

    Returns:
        The number of passes over the pair matrix, as measured on other corpora, times the time of its products and
        sigmoids for some words here and now.
    """
    size, d = extent.words, settings.dimensions
    dtype = np.float64 if size <= DOUBLE_UP_TO else np.float32
    product, sigmoid = trial(size, d, dtype)
    groups = GROUPS + len(settings.further)
    gradient = 3 * product + 5 * sigmoid
    blocks = 3 * (d + 2) * product + 2 * sigmoid
    curvature = 6 * product + 3 * sigmoid if size <= HELD_UP_TO else 7 * product + 7 * sigmoid
    passes = (GRADIENTS + questions * groups * AGAIN) * gradient + questions * (1 + groups) * PRODUCTS * curvature
    passes += (BLOCKS + 2 + 2 * questions * groups) * blocks
    looked_up = extent.tokens * (READING + settings.window * (6e-7 + 1e-7 * questions))  # counting, and scores
    numbers = size * d * (2 * d * 2 + 100) + (2 * size**2 if size <= HELD_UP_TO else 0)  # factors and their blocks,
    # descent, products
    counted = min(extent.tokens * settings.window, size**2 // 4)
    memory = (numbers * np.dtype(dtype).itemsize + 40 * counted) / 2**30
    seconds = STARTED + size * passes + looked_up
    return Forecast(seconds * beside_others(1), LIBRARIES + memory)


def trial(size: int, d: int, dtype: type[np.floating]) -> tuple[float, float]:
    """Seconds for a word's row of the pair matrix: of a product of the two tables, and of a sigmoid of all entries.

    Args:
        size: Words of the vocabulary.
        d: Length of the vectors.
        dtype: In which training computes.

    Returns:
        Both.
    """
    m = min(size, ROWS)
    own, others = np.full((m, d), 0.1, dtype), np.full((d, size), 0.1, dtype)
    scores, out = np.linspace(-3, 3, m * size, dtype=dtype).reshape(m, size), np.empty((m, size), dtype)

    def sigmoid() -> None:
        np.exp(np.negative(scores, out=out), out=out)
        np.divide(1, np.add(out, 1, out=out), out=out)

    product = seconds_of(lambda: np.matmul(own, others, out=out), least=TRIAL_SECONDS)
    return product / m, seconds_of(sigmoid, least=TRIAL_SECONDS) / m
