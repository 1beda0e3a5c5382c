"""Biased sentences of Wikipedia, their neutral versions, and plain Wikipedia: one corpus, chosen from by weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crossfluence._types import Id
from crossfluence.words.corpus.corpus import Corpus
from crossfluence.words.corpus.readers import Sentence, read_sentences
from crossfluence.words.corpus.vocabulary import build_corpus

PAIRS = ("wnc_parts/pairs.tsv.gz", "wikibias/wikibias_re.csv.gz")
PLAIN = "enwiki"
BIASED, NEUTRAL = "biased", "neutral"
RARE = 20  # words that occur less often stay out, those of the tests too: they would decide an effect size


@dataclass(frozen=True, eq=False)
class Mix:
    """Three kinds of sentences with one vocabulary, so that models trained on some of them can be compared.

    Attributes:
        corpus: All of them; the field "side" is "biased", "neutral" or "plain".
        held: Shape `(n,)`: plain sentences that no model is trained on.
    """

    corpus: Corpus
    held: Bool[np.ndarray, " n"]

    def weights(self, side: str) -> Float[Tensor, " n"]:
        """One for the sentences that a model is trained on, zero for the others.

        Args:
            side: "biased" or "neutral", beside plain sentences.

        Returns:
            Shape `(n,)`.
        """
        sides = np.array(self.corpus.fields["side"])
        return torch.as_tensor(((sides == side) | (sides == "plain")) & ~self.held).double()

    def ids(self, weights: Float[Tensor, " n"]) -> list[Id]:
        """The sentences with a weight."""
        return [self.corpus.ids[row] for row in weights.nonzero().flatten().tolist()]


def mixed(data: Path, *, words: int, vocabulary: int, keep: Iterable[str], held: float, seed: int = 0) -> Mix:
    """The pairs of the Wiki Neutrality Corpus and of WIKIBIAS, and the beginning of each sample of Wikipedia.

    Args:
        data: A folder with `wnc_parts/pairs.tsv.gz`, `wikibias/wikibias_re.csv.gz` and `enwiki/`.
        words: Of plain Wikipedia, in equal parts from each file of `enwiki/`.
        vocabulary: The most words to keep.
        keep: Words that stay if they are not rare.
        held: Share of the plain sentences to hold out.
        seed: Of their choice.

    Returns:
        The sentences.

    Raises:
        CorpusError: If a file is missing or not what it should be.

    References:
        Pryzant et al., "Automatically neutralizing subjective bias in text", AAAI 2020. Zhong et al., "WIKIBIAS",
        Findings of EMNLP 2021.
    """
    pairs = (
        replace(sentence, fields={"side": _side(sentence)})
        for sentence in read_sentences([data / name for name in PAIRS])
    )
    corpus = build_corpus(
        [*pairs, *_plain(data / PLAIN, words)],
        min_count=RARE, max_words=vocabulary, keep=keep, keep_count=RARE,
    )  # fmt: skip
    plain = np.array(corpus.fields["side"]) == "plain"
    return Mix(corpus, plain & (np.random.default_rng(seed).random(corpus.n) < held))


def _side(sentence: Sentence) -> str:
    """Of which version a sentence is; WIKIBIAS says it at the end of its ids."""
    return sentence.fields.get("side") or (BIASED if sentence.fields["id"].endswith("_0") else NEUTRAL)


def _plain(folder: Path, words: int) -> Iterator[Sentence]:
    files = sorted(folder.glob("*.txt*")) or [folder]  # a folder that is not there is refused where it is read
    for file in files:
        left = words / len(files)
        for sentence in read_sentences(file, split="sentences"):
            left -= len(sentence.text.split())
            if left < 0:
                break
            yield replace(sentence, file=f"{PLAIN}/{file.name}", fields={"side": "plain"})
