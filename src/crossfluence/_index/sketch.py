"""Principal directions of some rows, and every row along them: a small picture of an index that stays in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from .._storage.archive import read_if_whole, write_tensors
from .build import Opened
from .codes import Whole
from .coordinates import Coordinates
from .manifest import Listed
from .scan import scanned
from .shards import Shard, ShardReader

FILE, FORM = "sketch.safetensors", "crossfluence.index-sketch/1"
RANK = 128, 512  # principal directions, at least and at most: bytes a row
BYTES = 28  # of a row that one direction stands for, so that a look at the sketch takes a small part of a scan
PILOT = 2  # rows for each direction that they are found from
NUMBERS = 2**26  # in all of these together: a quarter of a gigabyte
AT_ONCE = 8  # questions whose products with all rows are held together
ROWS = Whole()


@dataclass(frozen=True, eq=False)
class Sketch:
    """Rows of an index along principal directions.

    Attributes:
        directions: For each block `(k, r)`, of numbers that are scaled to their share in scores.
        rows: Whole numbers, shape `(n, r)`.
        scales: Of each row.
    """

    directions: list[Tensor]
    rows: Int[Tensor, "n r"]
    scales: Shaped[Tensor, " n"]

    @classmethod
    def of(cls, folder: Path, shards: Sequence[Listed], opened: Opened, reader: ShardReader) -> Sketch:
        """The sketch of all rows: read, or made with one pass over the index, and kept in its folder.

        Args:
            folder: Of the index.
            shards: Its files.
            opened: Fit and coordinates.
            reader: Of the files.

        Returns:
            All rows; directions stay as they are when rows are appended.
        """
        names = [f"{shard.file} {shard.xxh3_128}" for shard in shards]
        found = read_if_whole(folder / FILE, FORM)
        known = json.loads(found.texts["shards"]) if found else []
        if (
            found is not None
            and known == names[: len(known)]
            and len(found.tensors["rows"]) == _rows(shards[: len(known)])
        ):
            count = len(opened.coordinates.blocks)
            sketch = cls(
                [found.tensors[str(number)] for number in range(count)], found.tensors["rows"], found.tensors["scales"]
            )
        else:
            known, sketch = [], cls._begun(shards, opened, reader)
        if len(known) < len(names):
            sketch = sketch._with(shards[len(known) :], opened, reader)
            tensors = {str(number): part for number, part in enumerate(sketch.directions)}
            tensors |= {"rows": sketch.rows, "scales": sketch.scales}
            write_tensors(folder / FILE, FORM, tensors, shards=json.dumps(names))
        return sketch

    @classmethod
    def _begun(cls, shards: Sequence[Listed], opened: Opened, reader: ShardReader) -> Sketch:
        """Directions, from rows that are spread over the files."""
        lengths, roots = opened.coordinates.lengths, _roots(opened.coordinates)
        rank = min(max(RANK[0], opened.code.bytes // BYTES), RANK[1])
        count = max(8, min(PILOT * rank, NUMBERS // max(1, sum(lengths)), _rows(shards)))
        whole = [[] for _ in lengths]
        for shard, at in _spread(shards, count, reader):
            for number, k in enumerate(lengths):
                if k:
                    whole[number].append(opened.code.decoded(shard.at(at), number) * roots[number])
        rows = [torch.cat(parts) if parts else torch.zeros(0, 0) for parts in whole]
        gram = sum((part @ part.T for part in rows if len(part)), torch.zeros(()))
        sizes = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).sqrt()  # the few large rows are not all
        rows = [part / sizes.unsqueeze(1) if len(part) else part for part in rows]
        values, vectors = torch.linalg.eigh((gram / sizes / sizes.unsqueeze(1)).double())
        rank = min(rank, int((values > 1e-9 * values[-1]).sum()))
        basis = (vectors[:, -rank:] / values[-rank:].sqrt()).float()
        directions = [(part.T @ basis).half() if len(part) else torch.zeros(0, rank).half() for part in rows]
        return cls(directions, torch.zeros(0, rank, dtype=torch.int8), torch.zeros(0))

    def _with(self, shards: Sequence[Listed], opened: Opened, reader: ShardReader) -> Sketch:
        """More rows: their products with the directions, as if these were questions."""
        roots = _roots(opened.coordinates)
        asked = [part.float().T * root for part, root in zip(self.directions, roots, strict=True)]
        coded = [ROWS.encoded(part, part[0]) for _, part in scanned(reader, shards, opened.code.question(asked))]
        rows, scales = (torch.cat([one[name] for one in coded]) for name in ("rows", "scales"))
        return Sketch(self.directions, torch.cat([self.rows, rows]), torch.cat([self.scales, scales]))

    def strongest(self, asked: Sequence[Tensor], count: int, opened: Opened) -> Iterator[tuple[slice, Tensor]]:
        """The rows whose sketches say the largest scores, of either sign.

        Args:
            asked: `(m, k)` for each block.
            count: Rows for each question.
            opened: Fit and coordinates.

        Yields:
            Some questions, and the numbers of all their rows in order.
        """
        roots = _roots(opened.coordinates)
        small = torch.stack([
            (part.float() / root.clamp_min(torch.finfo(torch.float32).tiny)) @ own.float()
            for part, root, own in zip(asked, roots, self.directions, strict=True) if part.shape[1]
        ]).sum(0)  # fmt: skip
        parts = {"rows": self.rows, "scales": self.scales}
        for start in range(0, len(small), AT_ONCE):
            at = slice(start, start + AT_ONCE)
            scores = ROWS.products(parts, ROWS.prepared(small[at])).abs()
            yield at, scores.topk(min(count, len(scores)), dim=0, sorted=False).indices.flatten().unique()


def _roots(coordinates: Coordinates) -> list[Tensor]:
    return [block.energy.float().cpu().sqrt() for block in coordinates.blocks]


def _rows(shards: Sequence[Listed]) -> int:
    return sum(shard.rows for shard in shards)


def _spread(shards: Sequence[Listed], count: int, reader: ShardReader) -> Iterator[tuple[Shard, Tensor]]:
    """About so many rows, evenly over all files."""
    wanted = torch.linspace(0, _rows(shards) - 1, count).round().long().unique()
    start = 0
    for listed in shards:
        own = wanted[(wanted >= start) & (wanted < start + listed.rows)] - start
        if len(own):
            yield reader.open(listed), own
        start += listed.rows
