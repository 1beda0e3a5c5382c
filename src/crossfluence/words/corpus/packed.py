"""Files packed by gzip, xz, bzip2 or zip, opened as if they were not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from crossfluence.errors import CorpusError

COMPRESSED = {".gz": (b"\x1f\x8b", gzip.open), ".xz": (b"\xfd7zXZ\x00", lzma.open), ".bz2": (b"BZh", bz2.open)}
ZIP, ZIP_START = ".zip", b"PK\x03\x04"
ENDINGS = (*COMPRESSED, ZIP)
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)
"""Errors of reading a packed file that breaks off or is damaged."""


def plain_name(path: Path) -> str:
    """The name of a file without the ending of its compression; for a .zip, the name of the file inside.

    Args:
        path: The file.

    Returns:
        Such as `plots.csv` for `plots.csv.gz`.

    Example:
        >>> plain_name(Path("plots.csv.gz"))
        'plots.csv'
    """
    ending = path.suffix.lower()
    if ending == ZIP and path.is_file() and path.stat().st_size:
        with _archive(path) as archive:
            return PurePosixPath(_member(archive, path)).name
    return path.stem if ending in ENDINGS else path.name


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A file to read bytes from, unpacked, with the file on disk below it.

    Args:
        path: The file; its packing is told from its first bytes, a zip from its name.

    Yields:
        Both.

    Raises:
        CorpusError: If it cannot be opened, is not packed as its name says, or is a zip of several files.
    """
    try:
        raw = open(path, "rb")  # noqa: SIM115  # what stands in `with` below
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}.") from error
    with raw:
        start, ending = raw.peek(6)[:6], path.suffix.lower()
        unpack = next((opener for mark, opener in COMPRESSED.values() if start.startswith(mark)), None)
        if start and ((ending in COMPRESSED and not unpack) or (ending == ZIP and not start.startswith(ZIP_START))):
            raise CorpusError(
                f"{path.name} ends in {ending} but does not hold such data. "
                f"If it is plain text, drop {ending} from its name; if not, fetch the file again."
            )
        if ending == ZIP and start:
            with _archive(path, raw) as archive, _inside(archive, path) as file:
                yield file, raw
            return
        with cast(IO[bytes], unpack(raw, "rb") if unpack else raw) as file:
            yield file, raw


def _archive(path: Path, raw: IO[bytes] | None = None) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(raw or path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CorpusError(f"{path.name} is damaged: {error}. Fetch or pack the file again.") from error


def _inside(archive: zipfile.ZipFile, path: Path) -> IO[bytes]:
    try:
        return archive.open(_member(archive, path))
    except (zipfile.BadZipFile, OSError) as error:
        raise CorpusError(f"{path.name} is damaged: {error}. Fetch or pack the file again.") from error
    except RuntimeError as error:  # a password
        raise CorpusError(f"Cannot read {path.name}: {error}. Unpack it first.") from error


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    """The one file of an archive; what systems add of their own does not count."""
    names = [name for name in archive.namelist() if not name.endswith("/")]
    names = [name for name in names if not any(part[0] in "._" for part in PurePosixPath(name).parts)]
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    raise CorpusError(
        f"{path.name} holds {len(names)} files{f': {listed}' if names else ''}; needed one. Unpack it, and name the "
        f"file or the folder."
    )
