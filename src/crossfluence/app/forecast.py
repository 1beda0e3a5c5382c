"""Estimates of the time and memory of explaining a corpus, or clusters, from short trials."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..clustering.dec import DEC, encoder
from ..clustering.explain import ClusterSettings
from ..clustering.processes import WORTH, one_thread, processors
from ..clustering.sharpen import field
from ..words.corpus.corpus import Corpus
from ..words.corpus.pairs import Pairs, pair_counts
from ..words.explain_bias import WordsSettings
from ..words.skipgram import ExpectedTraining, SkipGram
from ..words.skipgram.loss import ExpectedLoss
from ..words.skipgram.risk import NUMBERS_HELD

TRIED, TRIAL_SECONDS = 2_000, 0.1  # rows on which steps of clustering are tried, and for how long
PRETRAINING, HESSIAN = 4.0, 3.0  # steps of sharpening that take as long as one of pre-training; as one row of the
# curvature
SOLVED, STARTED = 1e-9, 3.0  # seconds of a dense solve, per cubed parameter; of k-means and the page
MOST_PROCESSES = 8
TRIAL = 400  # words whose rows of the pair matrix are tried
GRADIENTS, BLOCKS = 200, 11  # of training; measured on Wikipedia samples, as the others: benchmarks/words/forecast.py
PRODUCTS = 28  # for a question, and for a Newton step
AGAIN = 90  # gradients of training again
GROUPS = 3  # removed for each question
LIBRARIES = 0.7  # GiB of PyTorch, pandas and the like, and of pairs while they are sorted


@dataclass(frozen=True)
class Forecast:
    """The time and memory of a run.

    Attributes:
        seconds: On the clock, with the processors as free as they are now.
        gigabytes: Peak memory, in GiB.

    Example:
        >>> print(Forecast(400.0, 1.23))
        About 7 min and 1.2 GiB.
    """

    seconds: float
    gigabytes: float

    def __str__(self) -> str:
        return f"About {max(1, round(self.seconds / 60))} min and {self.gigabytes:.1f} GiB."


def forecast(corpus: Corpus, questions: int, settings: WordsSettings) -> Forecast:
    """Estimates the time and memory of `explain_words` on this machine.

    Args:
        corpus: The sentences.
        questions: How many tests, or words.
        settings: As for `explain_words`.

    Returns:
        The number of passes, as measured on other corpora, times what a pass over some words takes here and now.
    """
    pairs = Pairs(corpus, settings.sampling)
    training = ExpectedTraining(pairs, settings.dimensions, prior=settings.prior, seed=settings.seed)
    size, d, dtype = len(corpus.words), settings.dimensions, training.precision
    model = SkipGram.initial(corpus.words, d, dtype=dtype)
    tables = torch.stack([table.detach() for table in model.parameters()])
    loss, active = _trial(pairs, dtype)
    held = 2 * size**2 <= NUMBERS_HELD
    once = tuple(loss.bends(*tables))
    gradient = _seconds(lambda: loss.value_and_gradient(*tables)) / active
    blocks = _seconds(lambda: loss.blocks(*tables)) / active
    product = _seconds(
        lambda: loss.curvature_products(tables, tables[None], once if held else loss.bends(*tables), full=True)
    )
    steps = questions * (1 + GROUPS) * PRODUCTS
    passes = (GRADIENTS + questions * GROUPS * AGAIN) * gradient + steps * product / active
    passes += (BLOCKS + 2 + 2 * questions * GROUPS) * blocks
    looked_up = len(corpus.tokens) * settings.window * (6e-7 + 1e-7 * questions)  # counting, and scores
    numbers = size * d * (2 * d * 2 + 100) + (2 * size**2 if held else 0)  # factors and their blocks, descent, products
    counted = min(len(corpus.tokens) * settings.window, size**2 // 4)
    return Forecast(size * passes + looked_up, LIBRARIES + (numbers * dtype.itemsize + 40 * counted) / 2**30)


@one_thread()
def forecast_clusters(n: int, features: int, settings: ClusterSettings, *, questions: int = 1) -> Forecast:
    """Estimates the time and memory of `explain` on this machine; more, if the anchor has to be raised.

    Args:
        n: Rows.
        features: Columns.
        settings: As for `explain`.
        questions: Rows that are asked about.

    Returns:
        What a few steps of training on some rows take here and now, times the number of rows, steps and trainings, and
        the products of the curvature in such steps.
    """
    m = min(n, TRIED)
    start = DEC(
        encoder([features, settings.hidden, settings.embedding], seed=0),
        torch.zeros(settings.k, settings.embedding, dtype=torch.float64),
    )
    theta = {name: tensor.detach() for name, tensor in start.named_parameters()}
    slope = {name: torch.empty_like(tensor) for name, tensor in theta.items()}
    x, weights = torch.linspace(-1, 1, m * features, dtype=torch.float64).view(m, features), torch.ones(m).double()
    with torch.no_grad():
        step = _seconds(lambda: field(theta, x, weights, slope), least=TRIAL_SECONDS) * n / m
    p = sum(tensor.numel() for tensor in theta.values())
    trainings = questions * (min(settings.check, n) + settings.draws + len(settings.sizes) + 2)
    once = step * (settings.pretraining * PRETRAINING + settings.steps + p * HESSIAN * (1 + questions))
    again = step * settings.steps * trainings
    workers = min(processors(), MOST_PROCESSES) if again > WORTH else 1
    seconds = STARTED + once + p**3 * SOLVED + again / workers
    held = n * (features + 4 * settings.hidden + 4 * settings.embedding + 6 * settings.k) + 6 * p**2
    return Forecast(seconds, LIBRARIES + 8 * held * (1 + workers) / 2**30)


def processes_for(expected: Forecast) -> int:
    """In how many processes to retrain: one, if that takes no longer than to start more.

    Args:
        expected: From `forecast_clusters`.

    Returns:
        At most the number of processors.
    """
    return min(processors(), MOST_PROCESSES) if expected.seconds > WORTH else 1


def _trial(pairs: Pairs, dtype: torch.dtype) -> tuple[ExpectedLoss, int]:
    """The loss of a few sentences, and how many words have pairs in them."""
    corpus = pairs.corpus
    count = 1
    while count < corpus.n and len(np.unique(corpus.tokens[: corpus.offsets[count]])) < TRIAL:
        count *= 2
    count = min(count, corpus.n)
    tokens = corpus.tokens[: corpus.offsets[count]]
    counts = pair_counts(tokens, corpus.offsets[: count + 1], pairs.keep, pairs.sampling.window)
    loss = ExpectedLoss(
        counts, torch.as_tensor(pairs.noise), pairs.sampling.negatives, max(1.0, counts.total), 1.0, dtype
    )
    return loss, max(1, int((counts.of_word > 0).sum()))


def _seconds(work: Callable[[], object], *, least: float = 0.0) -> float:
    """The shortest of at least two runs, after one that warms up.

    Args:
        work: What to do.
        least: Seconds for which it is done again.

    Returns:
        Seconds on the clock.
    """
    work()
    taken, begun = [], time.perf_counter()
    while len(taken) < 2 or time.perf_counter() - begun < least:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)
