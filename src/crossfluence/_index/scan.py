"""Questions against every row, or against some of them, file by file and chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from .manifest import Listed
from .row_code import Question
from .shards import ShardReader


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
        for at in question.code.chunks(shard.rows):
            yield start + at.start, question.products(shard.at(at))
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
            for at in question.code.chunks(len(own)):
                yield own[at], question.products(shard.at(own[at] - start))
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
