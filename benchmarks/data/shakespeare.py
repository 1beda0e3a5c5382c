"""Shakespeare's characters: the file `tinyshakespeare/input.txt.gz`."""

import functools
import gzip
import re
from collections import Counter

import torch
from torch import Tensor

from .folder import data_folder


def shakespeare(n: int, questions: int, length: int = 64) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Sequences, each with the characters that follow, evenly spaced; questions come from the last tenth."""
    return _drawn(_codes(_text()), n, questions, length)


def shakespeare_words(
    n: int, questions: int, length: int = 128, vocabulary: int = 5_000
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same in words and what stands between them; the rarest are one code."""
    words = re.findall(r"\w+|[^\w\s]|\n", _text())
    kept = [word for word, _ in Counter(words).most_common(vocabulary - 1)]
    places = {word: place for place, word in enumerate(kept, start=1)}
    return _drawn(torch.tensor([places.get(word, 0) for word in words]), n, questions, length)


def _codes(text: str) -> Tensor:
    places = {character: place for place, character in enumerate(sorted(set(text)))}
    return torch.tensor([places[character] for character in text])


def _drawn(codes: Tensor, n: int, questions: int, length: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def drawn(part: Tensor, count: int) -> tuple[Tensor, Tensor]:
        rows = torch.linspace(0, len(part) - length - 1, count).long().unsqueeze(1) + torch.arange(length)
        return part[rows], part[rows + 1]

    cut = len(codes) * 9 // 10
    return drawn(codes[:cut], n), drawn(codes[cut:], questions)


def text_of(codes: Tensor) -> str:
    """The characters of a sequence."""
    characters = sorted(set(_text()))
    return "".join(characters[code] for code in codes.tolist())


@functools.cache
def _text() -> str:
    with gzip.open(data_folder("tinyshakespeare") / "input.txt.gz", "rt") as file:
        return file.read()
