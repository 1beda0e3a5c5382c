"""Two tables of vectors, and the words that their rows belong to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crossfluence.errors import CorpusError, import_optional


class SkipGram(nn.Module):
    """Word and context vectors: the score of a pair is the product of the first word's vector and the second's context.

    Args:
        words: V different words; row i of both tables belongs to words[i].
        word_vectors: Shape `(V, d)`.
        context_vectors: Shape `(V, d)`.

    Raises:
        CorpusError: If the shapes do not fit or a word stands twice.

    Example:
        >>> model = SkipGram.initial(["he", "she", "home"], 2, seed=0)
        >>> model(torch.tensor([0, 1]), torch.tensor([2, 2])).shape
        torch.Size([2])
    """

    def __init__(self, words: Sequence[str], word_vectors: Tensor, context_vectors: Tensor) -> None:
        super().__init__()
        self.words = tuple(words)
        if len(self.words) != len(set(self.words)):
            raise CorpusError("Got a word twice; needed different words, one for each row.")
        shapes = (tuple(word_vectors.shape), tuple(context_vectors.shape))
        if word_vectors.ndim != 2 or len(word_vectors) != len(self.words) or shapes[0] != shapes[1]:
            raise CorpusError(
                f"Got {len(self.words)} words and tables of shapes {shapes}; needed two tables of one shape, with one "
                f"row for each word."
            )
        self.word_vectors = nn.Parameter(word_vectors)
        self.context_vectors = nn.Parameter(context_vectors)

    @classmethod
    def initial(
        cls, words: Sequence[str], dimensions: int, *, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> SkipGram:
        """Small random vectors, from which training starts.

        Args:
            words: V different words.
            dimensions: Length d of each vector.
            seed: Of the random vectors.
            dtype: Of both tables.

        Returns:
            An untrained model; its vectors have a length of about one half.
        """
        generator = torch.Generator().manual_seed(seed)
        scale = 0.5 * dimensions**-0.5
        tables = torch.randn(2, len(words), dimensions, generator=generator, dtype=torch.float64) * scale
        return cls(words, tables[0].to(dtype), tables[1].to(dtype))

    @cached_property
    def index(self) -> dict[str, int]:
        """The row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    def only(self, words: Sequence[str]) -> SkipGram:
        """The vectors of some of the words, in another order if wanted; to fit a model to a corpus.

        Args:
            words: Words of the model, such as `corpus.words`.

        Returns:
            A copy with these rows.

        Raises:
            CorpusError: If the model has no such word, or one stands twice.

        Example:
            >>> SkipGram.initial(["he", "she", "home"], 2).only(["home", "he"]).words
            ('home', 'he')
        """
        if unknown := [word for word in words if word not in self.index]:
            raise CorpusError(
                f"The model has no vectors for {len(unknown)} of {len(words)} words, such as {unknown[:3]}. "
                f"Read the corpus with read_corpus(..., words=model.words)."
            )
        rows = torch.tensor([self.index[word] for word in words], dtype=torch.long)
        return SkipGram(words, self.word_vectors.detach()[rows], self.context_vectors.detach()[rows])

    def forward(self, centre: Int[Tensor, "..."], context: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The score of each pair; its sigmoid is the probability that the pair was seen and not made up.

        Args:
            centre: Rows of words.
            context: Rows of words beside them.

        Returns:
            The scores, same shape.
        """
        return (self.word_vectors[centre] * self.context_vectors[context]).sum(-1)

    @classmethod
    def from_gensim(cls, model: Any, *, dtype: torch.dtype = torch.float64) -> SkipGram:
        """The model that gensim trained, with both of its tables.

        Args:
            model: A `gensim.models.Word2Vec` trained as skip-gram with negative sampling.
            dtype: Of both tables.

        Returns:
            A copy.

        Raises:
            CorpusError: If it has no second table, or was trained by another loss.

        Example:
            >>> from gensim.models import Word2Vec
            >>> trained = Word2Vec([["he", "works"], ["she", "works"]], vector_size=4, min_count=1, sg=1, seed=0)
            >>> SkipGram.from_gensim(trained).word_vectors.shape
            torch.Size([3, 4])
        """
        contexts = getattr(model, "syn1neg", None)
        if contexts is None or not hasattr(model, "wv"):
            raise CorpusError(
                f"Got {type(model).__name__} without context vectors (syn1neg); needed a gensim Word2Vec that was "
                f"trained with negative sampling: Word2Vec(sentences, sg=1, negative=5)."
            )
        other = {
            "as a continuous bag of words (sg=0)": not model.sg,
            "by hierarchical softmax as well (hs=1)": model.hs,
            "on parts of words": hasattr(model.wv, "vectors_ngrams"),
            "with vectors of documents": hasattr(model, "dv"),
        }
        if wrong := [loss for loss, applies in other.items() if applies]:
            raise CorpusError(
                f"This {type(model).__name__} was trained {' and '.join(wrong)}, which is another loss; needed "
                f"Word2Vec(sentences, sg=1, negative=5)."
            )
        tables = (torch.as_tensor(np.array(table)).to(dtype) for table in (model.wv.vectors, contexts))
        return cls(model.wv.index_to_key, *tables)

    def to_gensim(self) -> Any:
        """The word vectors as gensim `KeyedVectors`.

        `save_word2vec_format(path, binary=...)` of the result writes word2vec's text and binary formats.

        Returns:
            A copy, in float32.

        Example:
            >>> SkipGram.initial(["he", "she"], 3).to_gensim().vector_size
            3
        """
        keyed = import_optional("gensim.models", "Export to gensim", "words").KeyedVectors(self.word_vectors.shape[1])
        keyed.add_vectors(list(self.words), self.word_vectors.detach().cpu().float().numpy())
        return keyed
