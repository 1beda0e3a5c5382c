"""Shakespeare's characters: the file `tinyshakespeare/input.txt.gz`."""

import functools
import gzip

import torch
from torch import Tensor

from .folder import data_folder


def shakespeare(n: int, questions: int, length: int = 64) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Sequences, each with the characters that follow, evenly spaced; questions come from the last tenth."""
    text = _text()
    places = {character: place for place, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([places[character] for character in text])

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
