"""A model that was trained elsewhere: whether it fits the corpus, and how it stands before training goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crossfluence.errors import CorpusError

from .association import WEAT
from .corpus.corpus import Corpus
from .corpus.pairs import Sampling
from .quality import measured
from .skipgram import SkipGram
from .skipgram.formats import load_word2vec

LACKING = 0.05  # share of the model's words that may be absent from the corpus


@dataclass(frozen=True, eq=False)
class Given:
    """One association test at the model that training started from.

    Attributes:
        effect: Its size.
        p_value: One-sided, by permutation.
        quality: Of the model, by measure.
    """

    effect: float
    p_value: float
    quality: Mapping[str, float]

    @classmethod
    def of(cls, test: WEAT, start: SkipGram) -> Given:
        """Results of the test on the given model."""
        return cls(float(test(start).detach()), test.p_value(start).value, measured(start))


def read_given(path: Path) -> tuple[SkipGram, Sampling]:
    """A model that gensim trained, and how its pairs were drawn.

    Args:
        path: What gensim's `Word2Vec.save` wrote.

    Returns:
        Both of its tables, and the settings.

    Raises:
        CorpusError: If the file holds something else, or a model of another loss.
    """
    theirs = load_word2vec(path)
    return SkipGram.from_gensim(theirs), Sampling.from_gensim(theirs)


def fitted(start: SkipGram, corpus: Corpus) -> SkipGram:
    """The vectors of the corpus's words.

    Args:
        start: A model that was trained elsewhere.
        corpus: Read with `words=start.words`, so without those that never occur.

    Returns:
        A model whose words are those of the corpus.

    Raises:
        CorpusError: If the corpus lacks so many of the model's words that it is another one.
    """
    lacking = sorted(set(start.words) - set(corpus.words))
    if len(lacking) > LACKING * len(start.words):
        raise CorpusError(
            f"{len(lacking):,} of the model's {len(start.words):,} words never occur in the corpus, such as "
            f"{lacking[:3]}; needed at most {LACKING:.0%}. Give the corpus that the model was trained on, cut into "
            f"words in the same way, such as with --tokenizer whitespace."
        )
    return start.only(corpus.words)
