"""A user's table: CSV, Parquet or .npy, read with a sentence for everything that can be wrong with it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .._errors import CrossfluenceError
from .._types import Id

NO_NUMBER = {"", "nan", "na", "n/a", "none", "null", "inf", "-inf"}
READERS = (".csv", ".tsv", ".parquet", ".pq", ".npy")


class TableError(CrossfluenceError, ValueError):
    """A table that cannot be used, and what to do about it."""


@dataclass(frozen=True, eq=False)
class Table:
    """The numeric part of a table.

    Attributes:
        values: Shape `(n, f)`, float64, as in the file.
        columns: f names.
        ids: n labels: a named column's, or row numbers from 0.
        ignored: Columns that hold no numbers or only one value.
    """

    values: Float[Tensor, "n f"] = field(repr=False)
    columns: tuple[str, ...]
    ids: tuple[Id, ...] = field(repr=False)
    ignored: tuple[str, ...] = ()

    def standardised(self) -> Float[Tensor, "n f"]:
        """Every column with mean 0 and standard deviation 1."""
        return (self.values - self.values.mean(0)) / self.values.std(0, correction=0)

    def row(self, query: str) -> int:
        """The row of an id as it was typed.

        Args:
            query: An id, or a row number where the table has no id column.

        Returns:
            Its row number.

        Raises:
            TableError: If there is no such row.
        """
        typed = [str(label) for label in self.ids]
        if query in typed:
            return typed.index(query)
        shown = ", ".join(typed[:3])
        raise TableError(f"No row has the id {query!r}; there are {len(typed)} ids: {shown}, ..., {typed[-1]}.")


def read_table(path: Path, *, id_column: str | None = None) -> Table:
    """Reads the numeric columns of a table.

    A column counts as numeric if it holds nothing but numbers and empty cells, or if at least half of its cells are
    numbers; then all must be.

    Args:
        path: `.csv` or `.tsv` with a header, `.parquet`, or a two-dimensional `.npy` array.
        id_column: The column that names the rows.

    Returns:
        Values, column names and ids.

    Raises:
        TableError: If the file is missing or unreadable, or holds text or NaN in a numeric column (with row and
            column), no numeric column, only constant ones, or ids that repeat.
    """
    if not path.exists():
        raise TableError(f"There is no file {path}.")
    if path.suffix.lower() not in READERS:
        raise TableError(f"Cannot read {path.name}: needed a file that ends in {', '.join(READERS)}.")
    frame = _frame(path)
    if not len(frame):
        raise TableError(f"{path.name} holds no rows.")
    ids = _ids(frame, id_column, path)
    columns = [column for column in frame.columns if column != id_column]
    numeric = {column: numbers for column in columns if (numbers := _numbers(frame[column], column, ids)) is not None}
    if not numeric:
        raise TableError(f"{path.name} has no numeric column; its columns are {_listed(columns)}.")
    varying = {column: numbers for column, numbers in numeric.items() if np.ptp(numbers) > 0}
    if not varying:
        raise TableError(f"{path.name} is constant: every numeric column holds one value; nothing to cluster.")
    ignored = tuple(str(column) for column in columns if column not in varying)
    values = torch.from_numpy(np.stack(list(varying.values()), axis=1))
    return Table(values, tuple(str(column) for column in varying), ids, ignored)


def _frame(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".npy":
            return _from_array(np.load(path, allow_pickle=False), path)
        if path.suffix.lower() in {".parquet", ".pq"}:
            return pd.read_parquet(path)
        return _from_text(path)
    except TableError:
        raise
    except pd.errors.EmptyDataError:
        raise TableError(f"{path.name} is empty.") from None
    except (OSError, ValueError, EOFError) as error:
        raise TableError(f"Cannot read {path.name}: {str(error).splitlines()[0].rstrip('.')}.") from error


def _from_text(path: Path) -> pd.DataFrame:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True, index_col=False,
                encoding="utf-8-sig",
            )  # fmt: skip
        except pd.errors.ParserWarning:
            raise TableError(
                f"{path.name} has rows with more cells than its header has column names. "
                f"Mend these rows, quote cells that hold a comma, or write numbers with a decimal point."
            ) from None
    names = [str(column) for column in frame.columns]
    if len(names) == 1 and ";" in names[0]:
        raise TableError(f"{path.name} seems to be separated by semicolons. Save it with commas, or as .tsv with tabs.")
    if names and all(_is_number(name) for name in names):
        raise TableError(
            f"The first line of {path.name} must hold column names, but it is all numbers: {_listed(names)}. "
            f"Add a header line."
        )
    return frame


def _from_array(array: object, path: Path) -> pd.DataFrame:
    if not isinstance(array, np.ndarray):
        raise TableError(f"{path.name} holds several arrays; needed one of shape (n, f), as np.save writes it.")
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise TableError(
            f"{path.name} holds an array of shape {array.shape} and type {array.dtype}; needed numbers of shape (n, f)."
        )
    return pd.DataFrame(array, columns=[str(column) for column in range(array.shape[1])])


def _ids(frame: pd.DataFrame, id_column: str | None, path: Path) -> tuple[Id, ...]:
    if id_column is None:
        return tuple(range(len(frame)))
    if id_column not in frame.columns:
        raise TableError(f"{path.name} has no column {id_column!r}; its columns are {_listed(frame.columns)}.")
    ids = tuple(str(label) for label in frame[id_column])
    repeated = next((label for label, count in pd.Series(ids).value_counts().items() if count > 1), None)
    if repeated is not None:
        raise TableError(f"The id {repeated!r} stands in {ids.count(str(repeated))} rows of column {id_column!r}.")
    return ids


def _numbers(cells: pd.Series, column: str, ids: Sequence[Id]) -> np.ndarray | None:
    """A column as numbers, or nothing if it is text."""
    if cells.dtype.kind in "mM":  # times
        return None
    text = ["" if pd.isna(cell) else str(cell).strip() for cell in cells]
    plain = cells if cells.dtype.kind in "fiub" else pd.Series(text)
    parsed = pd.Series(pd.to_numeric(plain, errors="coerce")).to_numpy(dtype=float, na_value=np.nan)
    good = np.isfinite(parsed)
    words = sum(not ok and cell.lower() not in NO_NUMBER for ok, cell in zip(good, text, strict=True))
    if not good.any() or (words and good.mean() < 0.5):
        return None
    if not good.all():
        row = int(np.argmin(good))
        came = f"holds {text[row]!r}" if text[row] else "is empty"
        raise TableError(
            f"Row {row} (id {ids[row]!r}), column {column!r} {came}; needed a finite number. "
            f"Fill or drop {int((~good).sum())} such cell(s) of that column."
        )
    return parsed


def _is_number(text: object) -> bool:
    try:
        return not math.isnan(float(str(text)))
    except ValueError:
        return False


def _listed(names: Sequence[object] | pd.Index) -> str:
    shown = ", ".join(repr(str(name)) for name in list(names)[:8])
    return shown + (", ..." if len(names) > 8 else "")
