"""The cost of a change: word similarity and analogies, by gensim on the sets that it ships, and held-out loss."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from crossfluence.errors import CorpusError, import_optional

from .corpus.pairs import Pairs
from .skipgram import SkipGram
from .skipgram.loss import ExpectedLoss

SIMILARITY = {"WordSim-353": "wordsim353.tsv", "SimLex-999": "simlex999.txt"}
ENOUGH = 20  # pairs of which both words have a vector; with fewer a correlation says nothing
ANALOGY_WORDS = 5_000  # the most frequent words, among which the answer of an analogy is looked for


@dataclass(frozen=True)
class Quality:
    """One measure of how good word vectors are.

    Attributes:
        name: Of the set.
        value: Rank correlation with human judgements, or the share of analogies that are right.
        used: Pairs or questions of which all words have a vector.
    """

    name: str
    value: float
    used: int


def quality(model: SkipGram, *, data: Path | None = None) -> tuple[Quality, ...]:
    """Word similarity on WordSim-353 and SimLex-999, on MEN if the data has it, and Google's analogies.

    Analogies are answered among the 5,000 most frequent words. Measures with fewer than 20 usable items are left out.

    Args:
        model: Word vectors, most frequent words first.
        data: The folder in which MEN is `word_similarity/EN-MEN-TR-3k.txt`; default: what `CROSSFLUENCE_DATA` names.

    Returns:
        What could be measured.

    Raises:
        MissingExtraError: If gensim is not installed.

    Example:
        >>> quality(SkipGram.initial(["a", "b"], 2))
        ()

    References:
        Finkelstein et al. 2002 (WordSim-353); Hill, Reichart and Korhonen 2015 (SimLex-999); Bruni, Tran and Baroni
        2014 (MEN); Mikolov et al. 2013 (analogies).
    """
    datapath = import_optional("gensim.test.utils", "Word similarity", "words").datapath
    keyed = model.to_gensim()
    files = {name: Path(datapath(file)) for name, file in SIMILARITY.items()}
    folder = os.environ.get("CROSSFLUENCE_DATA", "") if data is None else data
    men = Path(folder, "word_similarity", "EN-MEN-TR-3k.txt")
    found = []
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # gensim tells of every set and section
    try:
        for name, file in {**files, **({"MEN": men} if men.is_file() else {})}.items():
            found.append(_similarity(keyed, name, file))
        found.append(_analogies(keyed, datapath("questions-words.txt")))
    finally:
        logging.disable(disabled)
    return tuple(one for one in found if one.used >= ENOUGH)


def measured(model: SkipGram, *, data: Path | None = None) -> dict[str, float]:
    """The values of `quality` by name."""
    return {measure.name: measure.value for measure in quality(model, data=data)}


def held_out_loss(pairs: Pairs, held: Bool[np.ndarray, " n"]) -> Callable[[SkipGram], float]:
    """Mean loss of a pair in sentences that the model was not trained on.

    Args:
        pairs: Of all sentences.
        held: Which of them are kept out of training, by weights of zero.

    Returns:
        A function of a model: the mean loss of a pair of these sentences, noise words in expectation. Unit: nats.

    Raises:
        CorpusError: If they have no pairs.

    Example:
        >>> from crossfluence.words.corpus.vocabulary import corpus_of
        >>> pairs = Pairs(corpus_of(["he works", "she works"]))
        >>> loss = held_out_loss(pairs, np.array([False, True]))
        >>> round(loss(SkipGram(pairs.corpus.words, torch.zeros(3, 2), torch.zeros(3, 2))), 3)  # (1 + 5) log 2
        4.159
    """
    counts = pairs.weighted(held.astype(float))
    if not counts.total:
        raise CorpusError(f"The {int(held.sum())} sentences that are held out have no pairs; hold out more of them.")
    loss = ExpectedLoss(
        counts, torch.as_tensor(pairs.noise), pairs.sampling.negatives, counts.total, l2=0.0, dtype=torch.float64
    )
    return lambda model: loss.value(model.word_vectors.detach().double(), model.context_vectors.detach().double())


def _similarity(keyed: Any, name: str, file: Path) -> Quality:
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pairs = [(a.lower(), b.lower(), float(score)) for a, b, score in (line[:3] for line in lines) if _number(score)]
    known = [(keyed.similarity(a, b), score) for a, b, score in pairs if a in keyed and b in keyed]
    if len(known) < ENOUGH:
        return Quality(name, float("nan"), len(known))
    correlation = import_optional("scipy.stats", "Word similarity", "words").spearmanr(*zip(*known, strict=True))
    return Quality(name, float(correlation.statistic), len(known))


def _analogies(keyed: Any, file: str) -> Quality:
    if len(keyed) < 4 * ENOUGH:
        return Quality("analogies", float("nan"), 0)
    _, sections = keyed.evaluate_word_analogies(file, restrict_vocab=ANALOGY_WORDS)
    right, wrong = (len(sections[-1][key]) for key in ("correct", "incorrect"))
    return Quality("analogies", right / max(1, right + wrong), right + wrong)


def _number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
