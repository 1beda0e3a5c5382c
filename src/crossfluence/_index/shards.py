"""Files of rows: written one after another while a part of an index is built, and read in chunks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, Timeout
from jaxtyping import Int, Shaped
from torch import Tensor

from .._data.ranks import ALONE, Ranks
from .._results.ids import label_from_json, label_to_json
from .._storage.archive import fitting, read_tensors, starts_of, write_tensors
from .._types import Id
from ..errors import RankError, ResultFileError
from .codes import Parts
from .manifest import FILE, Listed
from .row_code import RowCode

FORM = "crossfluence.index-rows/1"
LOCK = "building.lock"
FAR = 512  # bytes of a row from which on a scattered one is read, and not mapped: a fault maps sixteen pages
SHARD_BYTES = 2**26  # of one file of rows: what a scan holds in memory, and what is lost when a build is stopped


@contextmanager
def building(folder: Path, ranks: Ranks = ALONE, ours: Callable[[str], bool] | None = None) -> Iterator[None]:
    """Keeps other builders out of a folder, which the ranks of one job share.

    Args:
        folder: Of an index.
        ranks: Who build; rank 0 holds the folder for them all.
        ours: Whether a name is that of a file of an index; then the folder is made, if it is not there.

    Yields:
        Nothing.

    Raises:
        ResultFileError: If another process or thread is building there.
        RankError: If ranks have folders of their own.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    ranks.first("opening a folder", lambda: _held(folder, lock, ours))
    try:
        seen = ranks.heard("opening a folder", (folder / LOCK).exists)
        if not all(seen):
            raise RankError(
                f"Rank {seen.index(False)} does not see the folder {folder} that rank 0 holds. All ranks write their "
                f"files of an index into one folder: name one on a disk that all machines share."
            )
        yield
    finally:
        lock.release()


def _held(folder: Path, lock: BaseFileLock, ours: Callable[[str], bool] | None) -> None:
    if ours is not None:
        made(folder, ours)
    try:
        lock.acquire()
    except Timeout:
        raise ResultFileError(
            f"Another process or thread is writing the index in {folder}. Wait until it has ended, or name another "
            f"folder."
        ) from None


def rows_in_shard(code: RowCode) -> int:
    """Number of samples in one file.

    Args:
        code: Of the rows.

    Returns:
        At least one.
    """
    return max(1, SHARD_BYTES // code.bytes)


@dataclass(eq=False)
class ShardWriter:
    """Collects rows, and writes a file as soon as there are enough of them.

    Attributes:
        folder: Of the index.
        size: Samples in a file.
        ids: Of all samples of the part.
        row: The first sample that is in no file yet.
        number: Of the next file.
        listed: Takes each file as it is written.
        waiting: Rows that are in no file yet, by name of the tensor.
    """

    folder: Path
    size: int
    ids: Sequence[Id]
    row: int
    number: int
    listed: Callable[[Listed], None]
    waiting: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, rows: Parts) -> None:
        """Takes some samples' rows, and writes all files that are full."""
        for name, part in rows.items():
            self.waiting.setdefault(name, []).append(part)
        while self._count >= self.size:
            self._write(self.size)

    def close(self) -> None:
        """Writes what is left."""
        if self._count:
            self._write(self._count)

    @property
    def _count(self) -> int:
        return sum(map(len, next(iter(self.waiting.values()), [])))

    def _write(self, count: int) -> None:
        whole = {name: torch.cat(parts) for name, parts in self.waiting.items()}
        self.waiting = {name: [part[count:]] for name, part in whole.items()}
        path = self.folder / f"rows-{self.number:05}.safetensors"
        ids = self.ids[self.row : self.row + count]
        write_tensors(path, FORM, {name: part[:count] for name, part in whole.items()}, ids=_written(ids))
        self.row, self.number = self.row + count, self.number + 1
        self.listed(Listed.of(path, count))


def _written(ids: Sequence[Id]) -> str:
    """Labels as JSON; consecutive numbers as their first and last."""
    start = ids[0] if ids else 0
    if type(start) is int and tuple(ids) == tuple(range(start, start + len(ids))):
        return json.dumps({"first": start, "count": len(ids)})
    return json.dumps([label_to_json(label) for label in ids])


def _read_ids(text: str) -> tuple[Id, ...]:
    content = json.loads(text)
    if isinstance(content, dict):
        return tuple(range(content["first"], content["first"] + content["count"]))
    return tuple(label_from_json(label) for label in content)


@dataclass(frozen=True, eq=False)
class Shard:
    """One file of rows, in memory that the operating system reads as it is used.

    Attributes:
        rows: How many.
        tensors: By name.
        ids: Of the samples.
        path: The file.
    """

    rows: int
    tensors: Mapping[str, Tensor]
    ids: tuple[Id, ...]
    path: Path

    def at(self, rows: slice | Int[Tensor, " b"]) -> Parts:
        """Some rows; scattered ones are read one by one, without what lies around them."""
        if isinstance(rows, slice):
            return {name: part[rows] for name, part in self.tensors.items()}
        starts, found = starts_of(self.path), {}
        with self.path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for name, part in self.tensors.items():
                one = part[0].nbytes
                found[name] = _read(file.fileno(), starts[name], one, part, rows) if one >= FAR else part[rows]
        return found

    @property
    def own(self) -> Shaped[Tensor, " b"]:
        """Scores for the samples' own losses."""
        return self.tensors["own"]


def _read(descriptor: int, start: int, one: int, like: Tensor, rows: Int[Tensor, " b"]) -> Tensor:
    """Rows of one tensor, of so many bytes each."""
    found = like.new_empty(len(rows), *like.shape[1:])
    whole, numbers = found.flatten().view(torch.uint8).numpy().data, rows.tolist()
    for row in numbers if hasattr(os, "posix_fadvise") else ():  # all are asked for before the first is waited for
        os.posix_fadvise(descriptor, start + row * one, one, os.POSIX_FADV_WILLNEED)
    for at, row in enumerate(numbers):
        os.preadv(descriptor, [whole[at * one : (at + 1) * one]], start + row * one)
    return found


def _ask_for(path: Path) -> None:
    """Has the system begin to read a file, where it can be told to."""
    if hasattr(os, "posix_fadvise") and path.is_file():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True, eq=False)
class ShardReader:
    """Opens files of rows; the first time, their content is compared with the list.

    Attributes:
        folder: Of the index.
        checked: Names of files whose content was compared.
    """

    folder: Path
    checked: set[str] = field(default_factory=set)

    def open(self, listed: Listed) -> Shard:
        """One file.

        Args:
            listed: Which.

        Returns:
            Its content.

        Raises:
            ResultFileError: If it is missing, torn or another file.
        """
        path = listed.check(self.folder, content=listed.file not in self.checked)
        self.checked.add(listed.file)
        found = read_tensors(path, FORM)
        with fitting(path):
            return Shard(listed.rows, found.tensors, _read_ids(found.texts["ids"]), path)

    def all(self, shards: Sequence[Listed]) -> Iterator[Shard]:
        """One file after another; the system reads the next one while this one is worked on."""
        for number, listed in enumerate(shards):
            for following in shards[number + 1 : number + 2]:
                _ask_for(self.folder / following.file)
            yield self.open(listed)


def made(folder: Path, ours: Callable[[str], bool]) -> Path:
    """Makes a folder, or makes sure that nothing of somebody else lies in it.

    Args:
        folder: Its parent must exist.
        ours: Whether a name is that of a file of an index.

    Returns:
        The folder.

    Raises:
        ResultFileError: If it cannot be made, or holds other files.
    """
    try:
        folder.mkdir(exist_ok=True)
        others = sorted(name for name in os.listdir(folder) if not ours(name))
    except OSError as error:
        way = "Name another folder." if folder.is_file() else "Make its parent first."
        raise ResultFileError(f"Cannot make the folder {folder}: {error.strerror}. {way}") from error
    if others and not (folder / FILE).exists():
        raise ResultFileError(
            f"{folder} holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) and no index. "
            f"Name an empty folder, or one that is not there yet."
        )
    return folder
