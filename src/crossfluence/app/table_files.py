"""Files of tables as frames: text with its separator, encoding and header told or named, Parquet, and arrays."""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .columns import TableError, with_decimal_points

READERS = (".csv", ".tsv", ".parquet", ".pq", ".npy")
SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon"}
LOOKED_AT = 50  # rows that tell the separator
CELL_LIMIT = 1 << 27  # characters; Python's own limit is 131,072


def read_frame(path: Path, *, header: bool = True, encoding: str = "utf-8", twins: bool = False) -> pd.DataFrame:
    """The table in a file, text as it stands there.

    Args:
        path: `.csv`, `.tsv`, `.parquet`, `.pq` or `.npy`.
        header: Whether the first line of a text file holds column names; else they are "0", "1", ...
        encoding: Of a text file.
        twins: Whether columns of one name are told apart as pandas does: "age", "age.1".

    Returns:
        A frame with column names that are text and all different.

    Raises:
        TableError: If it cannot be read, has rows longer than its header, or two columns of one name.
    """
    try:
        frame = _frame(path, header, encoding, twins)
    except TableError:
        raise
    except UnicodeDecodeError as error:
        raise TableError(f"Cannot read {path.name}: {error}. Name its encoding, such as --encoding latin-1.") from error
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise TableError(f"Cannot read {path.name}: {str(error).splitlines()[0].rstrip('.')}.") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    _refuse_two_of_one_name(list(frame.columns), path.name)
    return frame


def ending_of(path: Path) -> str:
    """The ending that says how a file is read: that before .gz, if it is packed."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def taken_for_names(frame: pd.DataFrame) -> list[str]:
    """Column names that are numbers: perhaps a first row that was taken for a header.

    Args:
        frame: As read from a text file with a header.

    Returns:
        These names.
    """
    return [name for name in frame.columns if is_number(name)]


def is_number(text: object) -> bool:
    """Whether text is a finite or infinite number."""
    try:
        return not math.isnan(float(str(text)))
    except ValueError:
        return False


def listed(names: Iterable[object]) -> str:
    """Up to eight names in quotes."""
    names = list(names)
    return ", ".join(repr(str(name)) for name in names[:8]) + (", ..." if len(names) > 8 else "")


def _frame(path: Path, header: bool, encoding: str, twins: bool) -> pd.DataFrame:
    ending = ending_of(path)
    if ending == ".npy":
        return _from_array(np.load(path, allow_pickle=False), path)
    if ending in {".parquet", ".pq"}:
        frame = pd.read_parquet(path)
        return frame.reset_index() if any(frame.index.names) else frame
    return _from_text(path, header, encoding, twins)


def _from_text(path: Path, header: bool, encoding: str, twins: bool) -> pd.DataFrame:
    held = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    text = held.decode(_known(encoding))
    if not text.strip():
        raise TableError(f"{path.name} is empty.")
    lines = text.split("\n" if "\n" in text else "\r")
    separator = _separator(lines, "\t" if ending_of(path) == ".tsv" else ",")
    rows = _rows(lines, separator)
    names = _names(rows[0][1]) if header else [str(place) for place in range(max(len(cells) for _, cells in rows))]
    names = _told_apart(names) if twins else names
    _refuse_two_of_one_name(names, path.name)
    if header and all(is_number(name) for name in names):
        raise TableError(
            f"The first line of {path.name} must hold column names, but it is all numbers: {listed(names)}. "
            f"Add a header line, or type --no-header."
        )
    body = [_fitted(line, cells, names, path.name) for line, cells in rows[int(header) :]]
    frame = pd.DataFrame(body, columns=pd.Index(names), dtype=object)
    return frame if separator == "," else with_decimal_points(frame, path.name)


def _known(encoding: str) -> str:
    try:
        return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    except LookupError:
        raise TableError(f"There is no encoding {encoding!r}. Usual ones are utf-8, latin-1, cp1252, utf-16.") from None


def _names(cells: Sequence[str]) -> list[str]:
    """Column names; those that are missing are called as pandas does."""
    return [cell.strip() or f"Unnamed: {place}" for place, cell in enumerate(cells)]


def _rows(lines: Sequence[str], separator: str, *, strict: bool = True) -> list[tuple[int, list[str]]]:
    """The line at which each row begins, and its cells; blank lines are none."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, skipinitialspace=separator != "\t",
                        strict=strict)  # fmt: skip
    rows, begun = [], 1
    limit = csv.field_size_limit(CELL_LIMIT)
    try:
        for cells in reader:
            if len(cells) > 1 or any(map(str.strip, cells)):
                rows.append((begun, cells))
            begun = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)  # it is a setting of the whole program
    return rows


def _separator(lines: Sequence[str], usual: str) -> str:
    """The one that cuts the first rows into equally many cells, more than one; the usual one if several do or none."""
    counted = {one: _lengths(lines[:LOOKED_AT], one) for one in [usual, *SEPARATORS]}
    even = [one for one, lengths in counted.items() if lengths and lengths[0] > 1 and len(set(lengths)) == 1]
    some = [one for one, lengths in counted.items() if lengths and lengths[0] > 1]
    return next(iter([*even, *some]), usual)


def _lengths(lines: Sequence[str], separator: str) -> list[int]:
    return [len(cells) for _, cells in _rows(lines, separator, strict=False)]


def _fitted(line: int, cells: list[str], names: Sequence[str], file: str) -> list[str]:
    """Cells of one row, empty ones added at its end."""
    if len(cells) > len(names):
        raise TableError(
            f"Cannot read {file}: line {line} has {len(cells)} cells where the header has {len(names)} column names. "
            f"Mend that line, or quote cells that hold a separator."
        )
    return [*cells, *itertools.repeat("", len(names) - len(cells))]


def _told_apart(names: Sequence[str]) -> list[str]:
    """The second of two columns named "age" is called "age.1"."""
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name}.{count}" if count else name for name, count in zip(names, before, strict=True)]


def _refuse_two_of_one_name(names: Sequence[str], file: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        hint = " If the first line holds no names, type --no-header." if is_number(twice[0]) else ""
        raise TableError(f"{file} has {names.count(twice[0])} columns named {twice[0]!r}; name each otherwise.{hint}")


def _from_array(array: object, path: Path) -> pd.DataFrame:
    if not isinstance(array, np.ndarray):
        raise TableError(f"{path.name} holds several arrays; needed one of shape (n, f), as np.save writes it.")
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise TableError(
            f"{path.name} holds an array of shape {array.shape} and type {array.dtype}; needed numbers of shape (n, f)."
        )
    return pd.DataFrame(array, columns=[str(column) for column in range(array.shape[1])])
