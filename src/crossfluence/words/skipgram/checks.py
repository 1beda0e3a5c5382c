"""Checks before anything is computed: weights that are none, and models that do not fit their corpus."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from crossfluence.errors import CorpusError, DataError, NonFiniteError

from .module import SkipGram


def sentence_weights(weights: Tensor, n: int) -> Float[np.ndarray, " n"]:
    """Weights of a corpus's sentences, in float64.

    Args:
        weights: Shape `(n,)`.
        n: How many sentences there are.

    Returns:
        The same numbers.

    Raises:
        DataError: If there is not one for each, or one is NaN, infinite or below zero.
    """
    if weights.shape != (n,):
        raise DataError(f"Got weights of shape {tuple(weights.shape)}; needed ({n},), one for each sentence.")
    found = weights.detach().double().cpu().numpy()
    if wrong := np.flatnonzero(~(np.isfinite(found) & (found >= 0))).tolist():
        raise DataError(
            f"Got the weight {found[wrong[0]]:g} for sentence {wrong[0]}; needed finite weights, none below zero."
        )
    return found


def refuse_misfit(model: SkipGram, corpus: tuple[str, ...]) -> None:
    """Makes sure that a model has vectors, all of them finite, for the words of a corpus, in its order.

    Args:
        model: Trained tables.
        corpus: The words of the corpus.

    Raises:
        CorpusError: If the words are others, or in another order.
        NonFiniteError: If a vector holds a NaN or an infinity.
    """
    if model.words != corpus:
        ours, theirs = set(model.words), set(corpus)
        difference = sorted(ours ^ theirs, key=str)[:3]
        counts = f"{len(ours - theirs)} only in the model, {len(theirs - ours)} only in the corpus, such as"
        raise CorpusError(
            f"The model has {len(model.words)} words and the corpus {len(corpus)}"
            f"{f': {counts} {difference}' if difference else ', in another order'}. Read the corpus that the model was "
            f"trained on with read_corpus(..., words=model.words); if some words never occur in it, take "
            f"model.only(corpus.words)."
        )
    for table in (model.word_vectors, model.context_vectors):
        if rows := (~table.isfinite().all(1)).nonzero().flatten().tolist():
            raise NonFiniteError(
                f"The vectors of {len(rows)} words, such as {model.words[rows[0]]!r}, hold a NaN or an infinity: "
                f"training diverged. Train the model again, with a lower learning rate."
            )
