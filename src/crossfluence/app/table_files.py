"""Files of tables as frames: text, spreadsheets, Parquet, JSON and arrays, packed or not."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import CorpusError, import_optional
from ..words.corpus.packed import DAMAGE, opened, plain_name
from .columns import TableError
from .json_tables import from_json
from .numerals import with_decimal_points
from .text_tables import LOOKED_AT, from_text, is_number, listed, refuse_two_of_one_name, titles
from .units import is_amount

__all__ = ["READERS", "is_number", "listed", "read_frame", "taken_for_names"]

TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", ".data", ".test")  # the last two: of the UCI repository
SHEETS = (".xlsx", ".xlsm")
OTHER = (".xlsx", ".xlsm", ".parquet", ".pq", ".jsonl", ".ndjson", ".json", ".npy", ".npz")
READERS = (*TEXT, *OTHER)
ADVICE = {
    ".xls": "Save it as .xlsx or .csv", ".ods": "Save it as .xlsx or .csv", ".numbers": "Export it as .xlsx or .csv",
    ".sav": "Export it as .csv", ".dta": "Export it as .csv", ".rds": "Save it with write.csv",
    ".pkl": "Save it as .parquet; a pickle can run a program", ".feather": "Save it as .parquet",
}  # fmt: skip


KINDS = {
    b"pk\x03\x04": "a zip or Excel file", b"\xd0\xcf\x11\xe0": "an Excel file of old", b"par1": "a Parquet file",
    b"%pdf": "a PDF", b"<html": "a web page", b"<!doctype": "a web page", b"<?xml": "XML", b"\x89hdf": "an HDF5 file",
}  # fmt: skip
"""Other kinds of file, by their first bytes in lower case."""

KIND_ADVICE = {
    "a zip or Excel file": "Name it with .xlsx or .zip at its end",
    "a Parquet file": "Name it with .parquet at its end",
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
) -> tuple[pd.DataFrame, list[str]]:
    """The table in a file, text as it stands there.

    Args:
        path: A file with one of the endings `READERS`, also packed as .gz, .xz, .bz2 or .zip.
        header: Whether the first line of a text file or sheet holds column names; else they are "0", "1", ...
        encoding: Of a text file; default: told.
        separator: Of the cells of a text file; default: told.
        beginning: Whether to read only whole lines among the first `HEAD` bytes of a text file.

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
        if not content:
            raise TableError(f"{path.name} is empty." if ending in TEXT else f"Cannot read {path.name}: it is empty.")
        if ending in TEXT:
            _refuse_other_kinds(content, path.name)
            frame, said = from_text(content, path.name, header=header, encoding=encoding, separator=separator)
        else:
            frame, said = with_decimals(BINARY[ending](content, path, header), path.name), []
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


def _refuse_other_kinds(content: bytes, name: str) -> None:
    """Refuses a file that is no text in spite of its name."""
    kind = next((kind for start, kind in KINDS.items() if content[:64].lstrip().lower().startswith(start)), None)
    if kind is not None:
        raise TableError(f"{name} is {kind}, and no text. {KIND_ADVICE.get(kind, 'Save the table in it as .csv')}.")


def with_decimals(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Columns of text with decimal commas as with decimal points; numbers stay as they are."""
    text = [
        column for column, cells in frame.items()
        if cells.dtype.kind == "O" and any(isinstance(cell, str) for cell in cells)
        and all(isinstance(cell, str) or (not np.ndim(cell) and pd.isna(cell)) for cell in cells)
    ]  # fmt: skip
    if not text or not frame.columns.is_unique:
        return frame
    return frame.assign(**with_decimal_points(frame[text].fillna(""), name))


def taken_for_names(frame: pd.DataFrame) -> list[str]:
    """Column names that are numbers: perhaps a first row that was taken for a header.

    Args:
        frame: As read from a text file with a header.

    Returns:
        These names.
    """
    return [name for name in frame.columns if is_number(name) or is_amount(name)]


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
    if header:
        shown = [["" if cell is None else str(cell) for cell in row] for row in rows[:LOOKED_AT]]
        rows = rows[titles(shown) :]
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
    ".xlsx": _sheet, ".xlsm": _sheet, ".parquet": _parquet, ".pq": _parquet, ".jsonl": from_json, ".ndjson": from_json,
    ".json": from_json, ".npy": _array, ".npz": _arrays,
}  # fmt: skip
