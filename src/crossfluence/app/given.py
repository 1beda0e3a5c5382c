"""A given model beside the corpus, before anything is trained: whether it was trained on this text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..words.association import weat
from ..words.corpus.corpus import Corpus
from ..words.corpus.pairs import Pairs
from ..words.explain_bias import WordsSettings
from ..words.pretrained import Given, fitted
from ..words.skipgram import ExpectedTraining, SkipGram
from ..words.skipgram.loss import ExpectedLoss
from ..words.word_sets import WordSets

NO_BETTER = 0.98  # of the loss without vectors, above which a model says nothing about a corpus


def compared(start: SkipGram, corpus: Corpus, lists: Sequence[WordSets], settings: WordsSettings) -> list[str]:
    """Sentences about how a given model fits the corpus.

    Args:
        start: The model.
        corpus: Read with its words.
        lists: The association tests.
        settings: Sizes.

    Returns:
        The share of its words that occur, its loss on the corpus beside that of no vectors, and its effect sizes; a
        warning if its vectors foretell the corpus no better than none.

    Raises:
        CorpusError: If the corpus lacks too many of its words.
    """
    model = fitted(start, corpus)
    length = model.word_vectors.shape[1]
    training = ExpectedTraining(Pairs(corpus, settings.sampling), length, prior=settings.prior, seed=settings.seed)
    loss = ExpectedLoss.of(training.pairs, 0.0, training.precision)
    tables = [table.detach().to(training.precision) for table in (model.word_vectors, model.context_vectors)]
    here, nothing = loss.value(*tables), loss.value(*map(torch.zeros_like, tables))
    share = len(corpus.words) / len(start.words)
    said = [
        f"The given model: {share:.1%} of its {len(start.words):,} words occur in the corpus; its loss a pair is "
        f"{here:.3f}, and {nothing:.3f} without any vectors."
    ]
    if not here < NO_BETTER * nothing:
        said.append(
            "Warning: The given vectors foretell this text no better than none. Was the model trained on another text, "
            "or cut into words in another way? What follows is about vectors trained further on this text."
        )
    for one in lists:
        given = Given.of(weat(one, corpus.index, least=settings.least), model)
        said.append(f"{one.name} as given: effect size {given.effect:+.3f}, p = {given.p_value:.2g}.")
    return said
