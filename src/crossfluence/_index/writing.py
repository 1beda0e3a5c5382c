"""Rows of new samples are written: file after file by one process, or by all ranks of a job in turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from tqdm.auto import tqdm

from .._data.ranks import Ranks
from .._types import Batch, Id
from ..errors import NonFiniteError, ResultFileError
from .codes import Parts
from .manifest import Listed, Manifest
from .shards import ShardWriter


@dataclass(frozen=True, eq=False)
class NewSamples:
    """Samples that come into an index.

    Attributes:
        sizes: Samples in each batch.
        ids: Of all samples.
        read: From the numbers of batches to these batches, in order, with their numbers.
        nan_message: A sentence for a batch whose rows are not finite.
        coded: From a batch and its length to its rows.
    """

    sizes: Sequence[int]
    ids: Sequence[Id]
    read: Callable[[Collection[int]], Iterator[tuple[int, Batch]]]
    nan_message: Callable[[int, Batch], str]
    coded: Callable[[Batch, int], Parts]

    @property
    def starts(self) -> list[int]:
        """The first sample of each batch, and the number of all."""
        return [0, *accumulate(self.sizes)]

    def rows(self, batches: range, start: int) -> Iterator[Parts]:
        """Rows of some batches, from one sample on."""
        starts = self.starts
        for index, batch in self.read(batches):
            found = self.coded(batch, self.sizes[index])
            if not all(part.isfinite().all() for part in found.values() if part.is_floating_point()):
                raise NonFiniteError(self.nan_message(index, batch))
            first = max(0, start - starts[index])
            yield {name: part[first:] for name, part in found.items()}

    def after(self, row: int) -> range:
        """The batches that hold a sample and all that follow it."""
        return range(sum(end <= row for end in self.starts[1:]), len(self.sizes))


def written(folder: Path, manifest: Manifest, samples: NewSamples, size: int, ranks: Ranks) -> Manifest:
    """Writes the rows of all samples that are in no file yet.

    Args:
        folder: Of the index.
        manifest: Its list, with a part that is not finished.
        samples: Of that part.
        size: Samples in a file.
        ranks: Who share the work.

    Returns:
        The list, with the part as a whole one.

    Raises:
        ResultFileError: If the disk is full.
        NonFiniteError: If a row is not finite.
    """
    writer = _Writing(folder, manifest, samples, size)
    if ranks.count == 1:
        writer.alone()
    else:
        writer.shared(ranks)
    whole = writer.manifest.finished()
    ranks.first("listing an index", lambda: writer.keep(whole))
    return whole


@dataclass(eq=False)
class _Writing:
    folder: Path
    manifest: Manifest
    samples: NewSamples
    size: int

    @property
    def done(self) -> int:
        """Samples in whole files."""
        assert self.manifest.unfinished is not None
        return self.manifest.unfinished.rows

    @property
    def files(self) -> int:
        """Whole files."""
        assert self.manifest.unfinished is not None
        return len(self.manifest.shards) + len(self.manifest.unfinished.shards)

    def alone(self) -> None:
        """Every file is listed as soon as it is whole."""

        def listed(file: Listed) -> None:
            found = self.manifest.with_shard(file)
            self.keep(found)
            self.manifest = found

        whole = ShardWriter(self.folder, self.size, self.samples.ids, self.done, self.files, listed)
        batches, start = self.samples.after(self.done), self.done
        rows = self.samples.rows(batches, start)
        for found in tqdm(rows, desc="Index", unit="batch", total=len(batches), disable=None, leave=False):
            self._told(lambda found=found: whole.add(found))
        self._told(whole.close)

    def shared(self, ranks: Ranks) -> None:
        """Each rank writes the files of some batches, then rank 0 lists them all; what is listed has no gaps."""
        groups = self._groups(ranks.count)
        for turn in range(0, len(groups), ranks.count):
            own, number = groups[turn : turn + ranks.count], self.files
            numbers = [number, *accumulate((-(-rows // self.size) for _, _, rows in own), initial=number)]
            found = ranks.heard("writing rows", lambda own=own, numbers=numbers[1:]: self._group(ranks, own, numbers))
            for files in found:
                for file in files:
                    self.manifest = self.manifest.with_shard(file)
            ranks.first("listing an index", lambda: self.keep(self.manifest))

    def _groups(self, count: int) -> list[tuple[range, int, int]]:
        """Neighbouring batches for one turn of a rank: numbers, the first sample, how many samples."""
        starts, done = self.samples.starts, self.done
        wanted = min(self.size, -(-(starts[-1] - done) // count))
        groups, batches = [], self.samples.after(done)
        first, row = batches.start, done
        for index in batches:
            last = index + 1 == batches.stop
            if last or starts[index + 1] - row >= wanted or starts[index + 2] - row > self.size:
                groups.append((range(first, index + 1), row, starts[index + 1] - row))
                first, row = index + 1, starts[index + 1]
        return groups

    def _group(self, ranks: Ranks, own: Sequence[tuple[range, int, int]], numbers: Sequence[int]) -> list[Listed]:
        """The files of this rank in one turn."""
        files: list[Listed] = []
        if ranks.number < len(own):
            batches, row, _ = own[ranks.number]
            whole = ShardWriter(
                self.folder, self.size, self.samples.ids, row, numbers[ranks.number], files.append
            )  # fmt: skip
            for found in self.samples.rows(batches, row):
                self._told(lambda found=found: whole.add(found))
            self._told(whole.close)
        return files

    def keep(self, manifest: Manifest) -> None:
        """Writes the list."""
        self._told(lambda: manifest.written(self.folder))

    def _told(self, work: Callable[[], object]) -> None:
        """Says of a full disk how far the index is."""
        try:
            work()
        except (ResultFileError, OSError) as error:
            if "are in whole files" in str(error):
                raise
            raise ResultFileError(
                f"{str(error).rstrip('.')}. {self.done:,} of {len(self.samples.ids):,} samples are in whole files, and "
                f"nothing of them is lost: make room, and run the same line again."
            ) from error
