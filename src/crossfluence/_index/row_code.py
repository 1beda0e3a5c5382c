"""The code of a whole row: that of each block, one beside the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from .codes import CODES, AbstractCode, Parts
from .manifest import Block

CHUNK_BYTES = 2**22  # of rows that are multiplied together: they stay in the processor's cache
FEWEST_ROWS = 64  # in such a piece


@dataclass(frozen=True)
class RowCode:
    """The code of a row's blocks.

    Attributes:
        codes: Of each block.
        lengths: Numbers in each block; nothing is written of a block with none.
    """

    codes: tuple[AbstractCode, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, dtype: str, blocks: Sequence[Block]) -> RowCode:
        """The code of the blocks that a list names."""
        codes = (CODES[dtype].of_zeros if block.zeros else CODES[dtype] for block in blocks)
        return cls(tuple(codes), tuple(block.kept for block in blocks))

    @property
    def bytes(self) -> int:
        """Of a sample: its code in every block, and its score for its own loss."""
        return sum(code.bytes_of(k) for code, k in zip(self.codes, self.lengths, strict=True) if k) + 4

    def encoded(self, rows: Sequence[Tensor], energies: Sequence[Tensor]) -> Parts:
        """Some samples as tensors of a file, by the number of the block and the part of its code.

        Args:
            rows: By block.
            energies: Of each block's coordinates.

        Returns:
            In the memory of the CPU.
        """
        found: Parts = {}
        for number, (code, part, energy) in enumerate(zip(self.codes, rows, energies, strict=True)):
            if part.shape[1]:
                coded = code.encoded(part, energy)
                found |= {f"{number}.{name}": tensor.cpu() for name, tensor in coded.items()}
        return found

    def question(self, asked: Sequence[Tensor]) -> Question:
        """Questions, `(m, k)` for each block, as the codes of the rows take them."""
        parts = zip(self.codes, asked, strict=True)
        return Question(self, {n: code.prepared(own.float()) for n, (code, own) in enumerate(parts) if own.shape[1]})

    def decoded(self, tensors: Parts, number: int) -> Shaped[Tensor, "b k"]:
        """Rows of one block in single precision."""
        return self.codes[number].decoded(block_of(tensors, number), self.lengths[number])

    def chunks(self, rows: int) -> Iterator[slice]:
        """Pieces of so many rows that are multiplied together."""
        largest = max((code.bytes_of(k) for code, k in zip(self.codes, self.lengths, strict=True)), default=1)
        step = max(FEWEST_ROWS, CHUNK_BYTES // largest)
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))


@dataclass(frozen=True, eq=False)
class Question:
    """Questions as the code of the rows takes them.

    Attributes:
        code: Of the rows.
        blocks: By the number of the block, for blocks of which something is stored.
    """

    code: RowCode
    blocks: dict[int, Any]

    def products(self, tensors: Parts) -> Shaped[Tensor, "b m"]:
        """Inner products with some rows of a file."""
        parts = (self.code.codes[n].products(block_of(tensors, n), own) for n, own in self.blocks.items())
        return torch.stack(list(parts)).sum(0)


def block_of(tensors: Parts, number: int) -> Parts:
    """The parts of one block's code."""
    start = f"{number}."
    return {name.removeprefix(start): part for name, part in tensors.items() if name.startswith(start)}
