"""Hard debiasing: a direction such as gender is taken out of the words that should not have it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from crossfluence.errors import WordError, import_optional

from .module import SkipGram

GENDER = (
    ("woman", "man"), ("girl", "boy"), ("she", "he"), ("mother", "father"), ("daughter", "son"), ("gal", "guy"),
    ("female", "male"), ("her", "his"), ("herself", "himself"), ("mary", "john"),
)  # fmt: skip
"""The pairs by which Bolukbasi et al. define the direction of gender."""


def hard_debiased(
    model: SkipGram, pairs: Sequence[tuple[str, str]] = GENDER, *, specific: Iterable[str] = ()
) -> SkipGram:
    """The model with the direction of the pairs taken out of its word vectors, by the package wefe.

    The direction is the first principal axis of the pairs' differences. Words lose their part along it, except specific
    ones; then the words of each pair are put at equal distances on both of its sides. wefe makes all vectors one long,
    which no training loss would survive: here every word keeps its length. Context vectors stay as they are.

    Args:
        model: Trained tables; not changed.
        pairs: Pairs of opposite words; those of which a word is missing do not count.
        specific: Words that differ by their meaning and keep their part, such as "king"; the pairs always do.

    Returns:
        A new model.

    Raises:
        MissingExtraError: If wefe is not installed.
        WordError: If the model has fewer than two of the pairs.

    References:
        Bolukbasi, Chang, Zou, Saligrama and Kalai, "Man is to computer programmer as woman is to homemaker? Debiasing
        word embeddings", NeurIPS 2016.
    """
    embedding = import_optional("wefe.word_embedding_model", "Hard debiasing", "debias").WordEmbeddingModel
    debias = import_optional("wefe.debias.hard_debias", "Hard debiasing", "debias").HardDebias
    known = [list(pair) for pair in pairs if set(pair) <= set(model.words)]
    if len(known) < 2:
        raise WordError(
            f"The model has {len(known)} of the {len(pairs)} pairs that define the direction; needed at least 2. "
            f"Pass pairs=[('she', 'he'), ...] of its words."
        )
    lengths = torch.linalg.vector_norm(model.word_vectors.detach(), dim=1, keepdim=True)
    unchanged = [*specific, *(word for pair in known for word in pair)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it tells every step
        keyed = embedding(model.to_gensim(), "skip-gram")
        fitted = debias(pca_args={"n_components": 1}).fit(keyed, definitional_pairs=known)
        changed = fitted.transform(keyed, ignore=unchanged, copy=False).wv
    vectors = torch.as_tensor(np.array(changed[list(model.words)])).to(lengths) * lengths
    return SkipGram(model.words, vectors, model.context_vectors.detach().clone())
