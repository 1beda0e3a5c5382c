"""A small classifier of texts that trains in seconds: word vectors, attention over them, one hidden layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

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
        return self.hidden_of(self.words(words), words)

    def hidden_of(self, vectors: Tensor, words: Tensor) -> Tensor:
        """The last hidden layer from the vectors `(b, t, width)` of words `(b, t)`."""
        shares = (vectors @ self.attention).masked_fill(words == PADDING, float("-inf")).softmax(1)
        mean = (shares.unsqueeze(2) * vectors).sum(1)
        return nn.functional.gelu(self.hidden(mean))

    def forward(self, words: Tensor) -> Tensor:
        """From word numbers `(b, t)` to logits `(b, classes)`."""
        return self.classes(self.features(words))


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds of one class of each row against all others, `(b,)`, in nats."""
    count = logits.shape[1]
    others = (labels.unsqueeze(1) + torch.arange(1, count, device=labels.device)) % count
    return logits.gather(1, labels.unsqueeze(1))[:, 0] - logits.gather(1, others).logsumexp(1)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of each text, in nats, by its log-odds: a text that is fitted to 1e-20 keeps its gradient's direction.

    The gradient by logits of `torch.nn.functional.cross_entropy` is a probability minus one, which rounds to nothing
    beyond 1e-16.

    Args:
        model: The classifier.
        batch: Word numbers and labels.

    Returns:
        Shape `(b,)`.
    """
    return nn.functional.softplus(-log_odds(model(batch[0]), batch[1]))


def gradient_lengths(model: BagOfWords, words: Tensor, labels: Tensor, at_once: int = 256) -> Tensor:
    """The norm of each text's gradient by all parameters, without a row for every word of the vocabulary.

    The gradient by a word's vector is the sum over the places where the text has it, so the square of the whole is the
    sum over pairs of places with one word of the products of their gradients.

    Args:
        model: The classifier.
        words: Word numbers `(n, t)`.
        labels: Shape `(n,)`.
        at_once: Texts whose gradients are held together.

    Returns:
        Shape `(n,)`.
    """
    others = {name: part.detach() for name, part in model.named_parameters() if name != "words.weight"}

    def loss(vectors: Tensor, parts: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        inner = (vectors.unsqueeze(0), row.unsqueeze(0))
        logits = functional_call(_FromVectors(model), {f"of.{name}": part for name, part in parts.items()}, inner)
        return nn.functional.softplus(-log_odds(logits, label.unsqueeze(0)))[0]

    each = vmap(grad(loss, argnums=(0, 1)), in_dims=(0, None, 0, 0))
    found = list[Tensor]()
    for row, label in zip(words.split(at_once), labels.split(at_once), strict=True):
        by_place, by_part = each(model.words(row).detach(), others, row, label)
        same = (row.unsqueeze(2) == row.unsqueeze(1)) & (row != PADDING).unsqueeze(1)
        of_words = ((by_place @ by_place.mT) * same).sum((1, 2))
        found.append(of_words + torch.stack([part.flatten(1).square().sum(1) for part in by_part.values()]).sum(0))
    return torch.cat(found).clamp(min=0).sqrt()


class _FromVectors(nn.Module):
    """The classifier behind its word vectors."""

    def __init__(self, of: BagOfWords) -> None:
        super().__init__()
        self.of = of

    def forward(self, vectors: Tensor, words: Tensor) -> Tensor:
        return self.of.classes(self.of.hidden_of(vectors, words))
