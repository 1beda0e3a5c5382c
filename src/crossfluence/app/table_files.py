"""Files of tables as frames: text, spreadsheets, Parquet, JSON and arrays, packed or not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import CorpusError, import_optional
from ..words.corpus.encodings import told_encoding
from ..words.corpus.packed import DAMAGE, opened, plain_name
from .columns import TableError
from .text_tables import from_text, is_number, listed, refuse_two_of_one_name

__all__ = ["READERS", "is_number", "listed", "read_frame", "taken_for_names"]

TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", ".data", ".test")  # the last two: of the UCI repository
OTHER = (".xlsx", ".xlsm", ".parquet", ".pq", ".jsonl", ".ndjson", ".json", ".npy", ".npz")
READERS = (*TEXT, *OTHER)
ADVICE = {
    ".xls": "Save it as .xlsx or .csv", ".ods": "Save it as .xlsx or .csv", ".numbers": "Export it as .xlsx or .csv",
    ".sav": "Export it as .csv", ".dta": "Export it as .csv", ".rds": "Save it with write.csv",
    ".pkl": "Save it as .parquet; a pickle can run a program", ".feather": "Save it as .parquet",
}  # fmt: skip


HEAD = 1 << 19
"""Bytes of a large text file that are enough to foretell from."""


def share_in_head(path: Path) -> float:
    """About which share of a text file its first `HEAD` bytes are, unpacked.

    Args:
        path: A table.

    Returns:
        1 for short files, and for those that are no text or cannot be read.
    """
    try:
        if Path(plain_name(path)).suffix.lower() not in (*TEXT, ".jsonl", ".ndjson"):
            return 1.0
        with opened(path) as (file, raw):
            content = file.read(HEAD)
            done = raw.tell()
        return 1.0 if len(content) < HEAD else min(1.0, done / path.stat().st_size)
    except (CorpusError, *DAMAGE):
        return 1.0  # the reader says what is wrong with it


def read_frame(
    path: Path,
    *,
    header: bool = True,
    encoding: str | None = None,
    separator: str | None = None,
    beginning: bool = False,
    twins: bool = False,
) -> tuple[pd.DataFrame, list[str]]:
    """The table in a file, text as it stands there.

    Args:
        path: A file with one of the endings `READERS`, also packed as .gz, .xz, .bz2 or .zip.
        header: Whether the first line of a text file or sheet holds column names; else they are "0", "1", ...
        encoding: Of a text file; default: told.
        separator: Of the cells of a text file; default: told.
        beginning: Whether to read only whole lines among the first `HEAD` bytes of a text file.
        twins: Whether columns of one name in a text file are told apart as pandas does: "age", "age.1".

    Returns:
        A frame with column names that are text and all different, and sentences about what was guessed.

    Raises:
        TableError: If it cannot be read, has rows longer than its header, or two columns of one name.
    """
    try:
        name = plain_name(path)
        ending = Path(name).suffix.lower()
        if ending not in READERS:
            hint = f" {ADVICE[ending]}." if ending in ADVICE else ""
            raise TableError(
                f"Cannot read {path.name}: needed a file that ends in {', '.join(READERS)}, or one of these packed as "
                f".gz, .xz, .bz2 or .zip.{hint}"
            )
        with opened(path) as (file, _):
            content = file.read(HEAD).rpartition(b"\n")[0] if beginning else file.read()
        if ending in TEXT:
            frame, said = from_text(
                content, path.name, header=header, encoding=encoding, separator=separator, twins=twins
            )
        else:
            frame, said = BINARY[ending](content, path, header), []
    except TableError:
        raise
    except UnicodeDecodeError as error:
        raise TableError(f"Cannot read {path.name}: {error}. Name its encoding, such as --encoding latin-1.") from error
    except CorpusError as error:
        raise TableError(str(error)) from error
    except MemoryError as error:
        raise TableError(f"{path.name} does not fit into memory. Name fewer rows, or a smaller file.") from error
    except (*DAMAGE, ValueError, KeyError, csv.Error) as error:
        raise TableError(f"Cannot read {path.name}: {_first_line(error)}.") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    refuse_two_of_one_name(list(frame.columns), path.name)
    return frame, said


def taken_for_names(frame: pd.DataFrame) -> list[str]:
    """Column names that are numbers: perhaps a first row that was taken for a header.

    Args:
        frame: As read from a text file with a header.

    Returns:
        These names.
    """
    return [name for name in frame.columns if is_number(name)]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")


def _parquet(content: bytes, path: Path, header: bool) -> pd.DataFrame:
    table = import_optional("pyarrow.parquet", "Reading Parquet files", "app").read_table(io.BytesIO(content))
    table.validate(full=True)  # text that is no UTF-8 is noticed here, and not where it is looked at
    frame = table.to_pandas()
    return frame.reset_index() if any(frame.index.names) else frame


def _sheet(content: bytes, path: Path, header: bool) -> pd.DataFrame:
    """The only sheet of a workbook that holds something; formulas as their last value."""
    openpyxl = import_optional("openpyxl", "Reading Excel files", "app")
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    except Exception as error:
        raise TableError(f"Cannot read {path.name}: {_first_line(error)}.") from error
    sheets = {sheet.title: _cells(sheet) for sheet in book.worksheets}
    filled = {title: rows for title, rows in sheets.items() if rows}
    if len(filled) > 1:
        raise TableError(
            f"{path.name} holds {len(filled)} sheets: {listed(filled)}. Save the one that is meant as a file."
        )
    rows = next(iter(filled.values()), [])
    if not rows:
        raise TableError(f"{path.name} is empty.")
    width = max(map(len, rows))
    rows = [[*row, *[None] * (width - len(row))] for row in rows]
    names = [f"Unnamed: {place}" if cell is None else str(cell) for place, cell in enumerate(rows[0])]
    if header and all(map(is_number, names)):
        raise TableError(f"The first row of {path.name} holds no column names: {listed(names)}. Type --no-header.")
    columns = names if header else [str(place) for place in range(width)]
    return pd.DataFrame(rows[int(header) :], columns=pd.Index(columns), dtype=object)


def _cells(sheet: Any) -> list[list[object]]:
    """Rows of a sheet without those that are empty, and without empty cells at their ends."""
    rows = []
    for row in sheet.iter_rows(values_only=True):
        cells = list(row)
        while cells and cells[-1] is None:
            cells.pop()
        if cells:
            rows.append(cells)
    return rows


def _json(content: bytes, path: Path, header: bool) -> pd.DataFrame:
    """Objects, one a line or in one list; fields of objects inside are named by their path."""
    text = content.decode(told_encoding([content])).lstrip("\ufeff").strip()
    if not text:
        raise TableError(f"{path.name} is empty.")
    rows = _parsed(text, path.name, 1) if text.startswith("[") else _json_lines(text, path.name)
    if isinstance(rows, dict):
        rows = [rows]
    wrong = next((row for row in rows if not isinstance(row, dict)), None)
    if wrong is not None:
        raise TableError(f'{path.name} holds {wrong!r:.40} where an object such as {{"height": 1.8}} was needed.')
    return pd.DataFrame([_flat(row) for row in rows], dtype=object)


def _json_lines(text: str, name: str) -> list[Any]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_parsed(line, name, number) for number, line in lines]


def _parsed(text: str, name: str, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = number + getattr(error, "lineno", 1) - 1
        raise TableError(
            f"Line {line} of {name} is not JSON: {str(error).partition(':')[0]}. Needed one object a line, or one list."
        ) from None


def _flat(row: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return found


def _array(content: bytes, path: Path, header: bool) -> pd.DataFrame:
    return _from_array(np.load(io.BytesIO(content), allow_pickle=False), path)


def _arrays(content: bytes, path: Path, header: bool) -> pd.DataFrame:
    """The only array of numbers with two dimensions."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        if not hasattr(file, "files"):
            return _from_array(file, path)
        arrays = {name: file[name] for name in file.files}
    tables = {name: array for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "fiub"}
    if len(tables) != 1:
        shapes = _shapes(arrays)
        raise TableError(f"{path.name} holds {len(tables)} arrays of numbers of shape (n, f), of {shapes}; needed one.")
    return _from_array(next(iter(tables.values())), path)


def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:6]) or "none"


def _from_array(array: object, path: Path) -> pd.DataFrame:
    if not isinstance(array, np.ndarray):
        raise TableError(f"{path.name} holds several arrays; needed one of shape (n, f), as np.save writes it.")
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise TableError(
            f"{path.name} holds an array of shape {array.shape} and type {array.dtype}; needed numbers of shape (n, f)."
        )
    return pd.DataFrame(array, columns=[str(column) for column in range(array.shape[1])])


BINARY: Mapping[str, Callable[[bytes, Path, bool], pd.DataFrame]] = {
    ".xlsx": _sheet, ".xlsm": _sheet, ".parquet": _parquet, ".pq": _parquet, ".jsonl": _json, ".ndjson": _json,
    ".json": _json, ".npy": _array, ".npz": _arrays,
}  # fmt: skip
