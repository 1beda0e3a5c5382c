"""Questions against every row, or against some of them, file by file and chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


class Strongest:
    """The k largest and the k smallest scores for each question, among all that were added.

    Scores wait until there are as many of them as are kept, and what is not beyond those of any question does not wait.

    Args:
        k: How many of each.
        m: Questions.
    """

    def __init__(self, k: int, m: int) -> None:
        self._k, self._m = k, m
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._count = 0
        self._beyond: tuple[Tensor, Tensor] | None = None  # least of the largest, most of the smallest

    def add(self, rows: Int[Tensor, " b"], values: Shaped[Tensor, "b m"]) -> None:
        """Takes scores in."""
        if self._beyond is not None:
            least, most = self._beyond
            among = ((values > least) | (values < most)).any(1)
            rows, values = rows[among], values[among]
        self._waiting.append((rows, values))
        self._count += len(rows)
        if self._count > 4 * self._k * self._m:
            self.found()

    def found(self) -> tuple[Int[Tensor, " c"], Shaped[Tensor, "c m"]]:
        """Those that are among the strongest of any question: their rows, in the order that they came, and scores."""
        if not self._waiting:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0, self._m)
        rows, values = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        k = min(self._k, len(values))
        (largest, at_top), (smallest, at_bottom) = (values.topk(k, dim=0, largest=largest) for largest in (True, False))
        if k == self._k:
            self._beyond = largest[-1], smallest[-1]
        chosen = torch.cat([at_top, at_bottom]).flatten().unique()
        self._waiting, self._count = [(rows[chosen], values[chosen])], len(chosen)
        return self._waiting[0]
