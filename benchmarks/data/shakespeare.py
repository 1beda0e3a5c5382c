"""Shakespeare's characters: the file `tinyshakespeare/input.txt.gz`."""

import gzip

import torch
from torch import Tensor

from .folder import data_folder


def shakespeare(n: int, questions: int, length: int = 64) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Sequences, each with the characters that follow, evenly spaced; questions come from the last tenth."""
    with gzip.open(data_folder("tinyshakespeare") / "input.txt.gz", "rt") as file:
        text = file.read()
    places = {character: place for place, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([places[character] for character in text])

    def drawn(part: Tensor, count: int) -> tuple[Tensor, Tensor]:
        rows = torch.linspace(0, len(part) - length - 1, count).long().unsqueeze(1) + torch.arange(length)
        return part[rows], part[rows + 1]

    cut = len(codes) * 9 // 10
    return drawn(codes[:cut], n), drawn(codes[cut:], questions)
