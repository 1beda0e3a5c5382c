"""The list of an index's files, and what decides their content; read first and written last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from .._risk.base import differing, of_another_version
from .._storage.archive import fitting
from .._storage.atomic import write_atomically
from ..errors import NewerFileError, ResultFileError, StaleError

VERSION = 1
FORMAT = "crossfluence.index"
FILE = "manifest.json"
PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class Listed:
    """A file of an index.

    Attributes:
        file: Its name.
        bytes: Its length.
        xxh3_128: A hash of its content.
        rows: How many samples it holds.
    """

    file: str
    bytes: int
    xxh3_128: str
    rows: int = 0

    @classmethod
    def of(cls, path: Path, rows: int = 0) -> Listed:
        """A file as it lies on disk."""
        length, found = _hashed(path)
        return cls(path.name, length, found, rows)

    def check(self, folder: Path, *, content: bool = True) -> Path:
        """Makes sure that the file is the one that was listed.

        Args:
            folder: Of the index.
            content: Whether to read it all.

        Returns:
            Its path.

        Raises:
            ResultFileError: If it is missing, torn or another file.
        """
        path = folder / self.file
        length = path.stat().st_size if path.is_file() else None
        if length != self.bytes:
            came = "is missing" if length is None else f"has {length:,} bytes"
            raise ResultFileError(f"{path} {came}; the index lists {self.bytes:,} bytes. {_AGAIN}")
        if content and (found := _hashed(path)[1]) != self.xxh3_128:
            raise ResultFileError(
                f"{path} is damaged or of another index: its content hash is {found[:8]}, the index lists "
                f"{self.xxh3_128[:8]}. {_AGAIN}"
            )
        return path


_AGAIN = "Put the file back, or build the index in another folder."


@dataclass(frozen=True)
class Part:
    """Samples that came together: those of the training data, or of one call of `append`.

    Attributes:
        data: Content hash of their batches and ids.
        shards: Their files, in order.
    """

    data: str
    shards: tuple[Listed, ...] = ()

    @property
    def rows(self) -> int:
        """Number of samples."""
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class Block:
    """A block of parameters, and what of it is stored.

    Attributes:
        names: Of the parameters.
        form: `(g, r, c)`.
        kept: How many coordinates.
        zeros: Whether many of these are zero in a sample, so that signs need a code that knows of zero.
    """

    names: tuple[str, ...]
    form: tuple[int, int, int]
    kept: int
    zeros: bool = False


@dataclass(frozen=True)
class Manifest:
    """The contents of an index, and their files.

    Attributes:
        solver: `repr` of what made the fit.
        signature: Of the risk: content hashes of model, data, loss, parameters and weights, and l2.
        dtype: Of the stored numbers.
        tolerance: Share of the scores, in root mean square, that coordinates left out may hold.
        n: Training samples that the fit counts.
        damping: Absolute, in the mean over parameters.
        blocks: In the order of the fit.
        modes: Training mode of each module.
        decays: The l2 coefficient of each parameter, where these differ.
        precision: Relative rounding error of the losses.
        coverage: Share of the model's parameters that count as trained.
        gradient_norm: At the trained parameters.
        smallest_eigenvalue: Of the curvature, before damping.
        remainder: What one more Newton step would gain, squared, in units of the loss.
        kinks: Jumps of the samples' slopes, as a share.
        notes: Of the risk.
        agreement: Correlation of scores from stored and from full gradients among some samples; `None` before it is
            known or where it is not defined.
        fit: The inverse.
        start: Places that are stored, and the Newton step.
        parts: What is whole.
        unfinished: What is being written.
        library: Version that wrote it.
    """

    solver: str
    signature: str
    dtype: str
    tolerance: float
    n: int
    damping: float
    blocks: tuple[Block, ...]
    modes: tuple[bool, ...]
    decays: Mapping[str, float]
    precision: float
    coverage: float
    gradient_norm: float
    smallest_eigenvalue: float | None
    remainder: float
    kinks: float
    notes: tuple[str, ...]
    fit: Listed
    start: Listed
    agreement: float | None = None
    parts: tuple[Part, ...] = ()
    unfinished: Part | None = None
    library: str = field(default_factory=lambda: _version())

    @property
    def shards(self) -> tuple[Listed, ...]:
        """All files of rows that are whole, in order."""
        return tuple(shard for part in self.parts for shard in part.shards)

    @property
    def rows(self) -> int:
        """Number of samples."""
        return sum(part.rows for part in self.parts)

    @property
    def coordinates(self) -> int:
        """Number of numbers stored of a sample."""
        return sum(block.kept for block in self.blocks)

    @property
    def parameters(self) -> int:
        """Number of parameters in the blocks."""
        return sum(groups * rows * columns for groups, rows, columns in (block.form for block in self.blocks))

    @property
    def fingerprint(self) -> str:
        """Content hash of the trained model."""
        return dict(part.split("=") for part in self.signature.split())["model"]

    @property
    def loss(self) -> str:
        """Content hash of the loss."""
        return dict(part.split("=") for part in self.signature.split())["loss"]

    def written(self, folder: Path) -> Manifest:
        """Puts it in its place, whole or not at all; returns it."""
        content = {"format": f"{FORMAT}/{VERSION}", **asdict(self)}
        write_atomically(folder / FILE, json.dumps(content, indent=1).encode())
        return self

    def with_shard(self, shard: Listed) -> Manifest:
        """One more file of the part that is being written."""
        assert self.unfinished is not None
        return replace(self, unfinished=replace(self.unfinished, shards=(*self.unfinished.shards, shard)))

    def finished(self) -> Manifest:
        """The part that was being written, as a whole one."""
        assert self.unfinished is not None
        return replace(self, parts=(*self.parts, self.unfinished), unfinished=None)

    def refuse_other(self, folder: Path, solver: str, signature: str, dtype: str, tolerance: float) -> None:
        """Makes sure that a build would continue this index.

        Args:
            folder: Where it lies.
            solver: `repr` of the solver that is to be built with.
            signature: Of the risk that is to be built from.
            dtype: That is asked for.
            tolerance: The same.

        Raises:
            StaleError: If the folder holds the index of something else.
        """
        settings: dict[str, tuple[object, object]] = {
            "solver": (self.solver, solver), "dtype": (self.dtype, dtype), "tolerance": (self.tolerance, tolerance),
        }  # fmt: skip
        changed = [f"{name} ({old}, now {new})" for name, (old, new) in settings.items() if old != new]
        own = differing(self.signature, signature)
        if changed or own:
            raise StaleError(
                f"{folder} holds an index of something else. What differs, by content hash or value: "
                f"{', '.join([*changed, *own])}. Name another folder, or delete this one."
                f"{of_another_version(own) if own else ''}"
            )


def read_manifest(folder: Path) -> Manifest:
    """Reads a folder's list of files.

    Args:
        folder: Of an index.

    Returns:
        The list; no file is looked at.

    Raises:
        ResultFileError: If the folder holds no index, or the list is damaged.
        NewerFileError: If a newer version of this library wrote it.
    """
    file = folder / FILE
    if not file.is_file():
        what = "has no manifest.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise ResultFileError(
            f"{folder} is no index: it {what}. Make one: crossfluence.Index.build(risk, EKFAC(), {str(folder)!r})."
        )
    with fitting(file):
        content = json.loads(file.read_bytes())
        form = content.pop("format")
        if form != f"{FORMAT}/{VERSION}":
            _refuse_form(file, form)
        return _made(content)


def _refuse_form(file: Path, form: Any) -> None:
    sentence = f"{file} has format {form!r}; needed {f'{FORMAT}/{VERSION}'!r}."
    kind, _, version = str(form).rpartition("/")
    if kind == FORMAT and version.isdecimal() and int(version) > VERSION:
        raise NewerFileError(f"{sentence} A newer {PACKAGE} wrote it. Type: pip install --upgrade {PACKAGE}")
    raise ResultFileError(sentence)


def _made(content: Mapping[str, Any]) -> Manifest:
    known = {item.name for item in fields(Manifest)}
    given = {name: value for name, value in content.items() if name in known}
    given["blocks"] = tuple(map(_block, content["blocks"]))
    given |= {name: tuple(content[name]) for name in ("modes", "notes")}
    given |= {name: Listed(**content[name]) for name in ("fit", "start")}
    given["parts"] = tuple(map(_part, content["parts"]))
    given["unfinished"] = _part(content["unfinished"]) if content["unfinished"] else None
    return Manifest(**given)


def _block(content: Mapping[str, Any]) -> Block:
    groups, rows, columns = content["form"]
    return Block(tuple(content["names"]), (groups, rows, columns), content["kept"], content["zeros"])


def _part(content: Mapping[str, Any]) -> Part:
    return Part(content["data"], tuple(Listed(**shard) for shard in content["shards"]))


def _hashed(path: Path) -> tuple[int, str]:
    state, length = xxh3_128(), 0
    with path.open("rb") as file:
        while piece := file.read(2**22):
            state.update(piece)
            length += len(piece)
    return length, state.hexdigest()


def _version() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown"
