"""How long explaining a corpus, or clusters, will take here, and how much memory: from short trials."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._attribution.plan import Tally, plan
from ..clustering.dec import encoder, pretrain
from ..clustering.explain import ClusterSettings, pretrained, sharpening
from ..words.corpus.corpus import Corpus
from ..words.corpus.pairs import Pairs, pair_counts
from ..words.explain_bias import WordsSettings
from ..words.skipgram import ExpectedTraining, SkipGram
from ..words.skipgram.loss import ExpectedLoss
from ..words.skipgram.risk import NUMBERS_HELD

STEPS = 3  # of each phase of clustering that are tried
TRIAL = 400  # words whose rows of the pair matrix are tried
GRADIENTS, BLOCKS = 200, 11  # of training; measured on Wikipedia samples, as the others: benchmarks/words/forecast.py
PRODUCTS = 28  # for a question, and for a Newton step
AGAIN = 90  # gradients of training again
GROUPS = 3  # removed for each question
LIBRARIES = 0.7  # GiB of PyTorch, pandas and the like, and of pairs while they are sorted


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

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
    """How long `explain_words` will take here, and how much memory.

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


def forecast_clusters(x: Float[Tensor, "n f"], settings: ClusterSettings) -> Forecast:
    """How long `explain` will take here, and how much memory; more, if the anchor has to be raised.

    Args:
        x: As for `explain`.
        settings: As for `explain`.

    Returns:
        What a few steps of each phase take, times their number, and the `plan` of the curvature.
    """
    short = replace(settings, pretraining=STEPS, steps=STEPS)
    began = time.perf_counter()
    start = pretrained(x, short)
    centres = time.perf_counter() - began
    network = encoder([x.shape[1], settings.hidden, settings.embedding], seed=settings.seed)
    recipe = sharpening(start, x, short)
    count = min(settings.check, len(x)) + settings.draws + 2
    weights = torch.ones(min(count, recipe.at_once), len(x))
    with Tally() as tally:
        models = list(recipe.retrain(weights))
    solved = plan(recipe.risk(models[0]))
    first = _seconds(lambda: pretrain(network, x, steps=STEPS)) * settings.pretraining
    again = _seconds(recipe.train) + _seconds(lambda: list(recipe.retrain(weights))) * count / len(weights)
    seconds = centres + (first + again * settings.steps) / STEPS + 2 * solved.seconds  # and a Newton step
    return Forecast(seconds, LIBRARIES + max(solved.memory, tally.peak) / 2**30)


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


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two runs, after one that warms up."""
    work()
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)
