"""A small classifier of texts that trains in seconds: word vectors, attention over them, one hidden layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LONGEST = 128  # words that are read of a text
WORD = re.compile(r"\w+(?:['\u2019]\w+)?|[^\w\s]")
PADDING, UNKNOWN = 0, 1


def words_of(text: str) -> list[str]:
    """The words and signs of a text, in lower case."""
    return WORD.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """Numbers of words.

    Attributes:
        numbers: By word, from 2; 0 fills up, 1 stands for every other word.
    """

    numbers: dict[str, int]

    @classmethod
    def of(cls, texts: Iterable[str], least: int = 2) -> Vocabulary:
        """All words that occur at least so often, the most frequent first."""
        counts = Counter(word for text in texts for word in words_of(text))
        frequent = [word for word, count in counts.most_common() if count >= least]
        return cls({word: number for number, word in enumerate(frequent, UNKNOWN + 1)})

    def __len__(self) -> int:
        return len(self.numbers) + 2

    def encoded(self, texts: Sequence[str]) -> Tensor:
        """Word numbers of each text, `(n, longest)`, filled up with 0."""
        rows = [[self.numbers.get(word, UNKNOWN) for word in words_of(text)][:LONGEST] or [UNKNOWN] for text in texts]
        out = torch.zeros(len(rows), max(map(len, rows), default=1), dtype=torch.long)
        for place, row in enumerate(rows):
            out[place, : len(row)] = torch.tensor(row)
        return out


class BagOfWords(nn.Module):
    """Logits of the classes from an attended mean of a text's word vectors, through one hidden layer.

    Attributes:
        words: The vectors.
        attention: The direction along which a word draws attention.
        hidden: The hidden layer.
        classes: The last layer.
    """

    def __init__(self, vocabulary: int, classes: int, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words = nn.Embedding(vocabulary, width, padding_idx=PADDING)
            self.hidden, self.classes = nn.Linear(width, width), nn.Linear(width, classes)
            self.attention = nn.Parameter(torch.zeros(width))
            with torch.no_grad():
                self.words.weight.normal_(std=0.3)[PADDING] = 0

    def features(self, words: Tensor) -> Tensor:
        """The last hidden layer, `(b, width)`."""
        vectors = self.words(words)
        shares = (vectors @ self.attention).masked_fill(words == PADDING, float("-inf")).softmax(1)
        mean = (shares.unsqueeze(2) * vectors).sum(1)
        return nn.functional.gelu(self.hidden(mean))

    def forward(self, words: Tensor) -> Tensor:
        """From word numbers `(b, t)` to logits `(b, classes)`."""
        return self.classes(self.features(words))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of each text, in nats."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
