"""Shakespeare's characters for the benchmarks, and a small transformer that reads them. Needs PyTorch alone."""

import gzip
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CHARACTERS = 65


class Block(nn.Module):
    """Attention, then two linear layers, each beside a direct path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From `(b, t, d)` to the same shape."""
        mixed = self.mixed(self.first(x)).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in mixed)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Next-character logits `(b, t, 65)` for characters `(b, t)`."""

    def __init__(self, length: int = 64, width: int = 64, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, t, 65)`."""
        places = self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(self.characters(x) + places)))


def summed(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample; of a sequence, the sum over its characters."""
    found = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return found if logits.ndim == 2 else found.unflatten(0, targets.shape).sum(1)


def shakespeare(n: int, questions: int, length: int = 64) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Sequences, each with the characters that follow, evenly spaced; questions come from the last tenth."""
    folder = os.environ.get("CROSSFLUENCE_DATA")
    if not folder:
        raise SystemExit("Set CROSSFLUENCE_DATA to a folder that holds tinyshakespeare/input.txt.gz.")
    with gzip.open(Path(folder, "tinyshakespeare", "input.txt.gz"), "rt") as file:
        text = file.read()
    places = {character: place for place, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([places[character] for character in text])

    def drawn(part: Tensor, count: int) -> tuple[Tensor, Tensor]:
        rows = torch.linspace(0, len(part) - length - 1, count).long().unsqueeze(1) + torch.arange(length)
        return part[rows], part[rows + 1]

    cut = len(codes) * 9 // 10
    return drawn(codes[:cut], n), drawn(codes[cut:], questions)
