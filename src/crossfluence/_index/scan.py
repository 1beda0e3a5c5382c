"""Questions against every row, or against some of them, file by file and chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from .codes import AbstractCode
from .manifest import Listed
from .shards import Shard, ShardReader, chunks


@dataclass(frozen=True, eq=False)
class Question:
    """Questions as the code of the rows takes them.

    Attributes:
        code: Of the rows.
        lengths: Numbers in each block.
        blocks: By the number of the block, for blocks of which something is stored.
    """

    code: AbstractCode
    lengths: tuple[int, ...]
    blocks: dict[int, Any]

    def products(self, shard: Shard, at: slice | Int[Tensor, " b"]) -> Shaped[Tensor, "b m"]:
        """Inner products with some rows of a file."""
        parts = (self.code.products(shard.block(number, at), own) for number, own in self.blocks.items())
        return torch.stack(list(parts)).sum(0)


def prepared(code: AbstractCode, asked: Sequence[Tensor]) -> Question:
    """Questions as the code of the rows takes them.

    Args:
        code: Of the rows.
        asked: `(m, k)` for each block.

    Returns:
        All of them.
    """
    blocks = {number: code.prepared(part.float()) for number, part in enumerate(asked) if part.shape[1]}
    return Question(code, tuple(part.shape[1] for part in asked), blocks)


def scanned(
    reader: ShardReader, shards: Sequence[Listed], question: Question
) -> Iterator[tuple[int, Shaped[Tensor, "b m"]]]:
    """Inner products with all rows.

    Args:
        reader: Of the files.
        shards: Which.
        question: What is asked.

    Yields:
        The number of the first row of a chunk, and its products.
    """
    start = 0
    for shard in reader.all(shards):
        for at in chunks(shard.rows, question.code, question.lengths):
            yield start + at.start, question.products(shard, at)
        start += shard.rows


def picked(
    reader: ShardReader, shards: Sequence[Listed], question: Question, rows: Int[Tensor, " c"]
) -> Iterator[tuple[Int[Tensor, " b"], Shaped[Tensor, "b m"]]]:
    """Inner products with some rows; the others are not read.

    Args:
        reader: Of the files.
        shards: Which.
        question: What is asked.
        rows: Their numbers, in order.

    Yields:
        Numbers, and their products.
    """
    start = 0
    for listed in shards:
        first, last = torch.searchsorted(rows, torch.tensor([start, start + listed.rows])).tolist()
        if last > first:
            shard, own = reader.open(listed), rows[first:last]
            for at in chunks(len(own), question.code, question.lengths):
                yield own[at], question.products(shard, own[at] - start)
        start += listed.rows


@dataclass(eq=False)
class Strongest:
    """The k largest and the k smallest scores for each question, among all that were added.

    Attributes:
        k: How many of each.
        rows: Whose they are.
        values: Of all questions, shape `(c, m)`.
    """

    k: int
    rows: Int[Tensor, " c"]
    values: Shaped[Tensor, "c m"]

    @classmethod
    def of(cls, k: int, m: int) -> Strongest:
        """Nothing yet."""
        return cls(k, torch.zeros(0, dtype=torch.long), torch.zeros(0, m))

    def add(self, rows: Int[Tensor, " b"], values: Shaped[Tensor, "b m"]) -> None:
        """Takes scores in, and lets go of those that are not among the strongest any more."""
        rows, values = torch.cat([self.rows, rows]), torch.cat([self.values, values])
        k = min(self.k, len(values))
        ends = [values.topk(k, dim=0, largest=largest).indices for largest in (True, False)]
        chosen = torch.cat(ends).flatten().unique()
        self.rows, self.values = rows[chosen], values[chosen]
