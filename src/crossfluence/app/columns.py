"""Columns of a table: which hold quantities, which only number or name the rows, and cells that hide all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import CrossfluenceError
from ..words.corpus.names import counts_rows, is_identifier

if TYPE_CHECKING:
    from .._types import Id


NO_NUMBER = {"", "nan", "na", "n/a", "none", "null", "inf", "-inf"}
TRUTH = {
    "true": "1", "yes": "1", "y": "1", "t": "1", "on": "1", "false": "0", "no": "0", "n": "0", "f": "0", "off": "0",
}  # fmt: skip
BITS = {"0", "1", "0.0", "1.0"}
ENOUGH = 8  # rows from which a column that counts 0, 1, 2, ... is no coincidence
FAR = 30.0  # typical distances from the median
FEW_CELLS, FEW_OF_ALL = 3, 0.1  # far cells and their share, above which they are a group of their own
FLATTENED = 0.2  # share of its deviation that a column has without its far cells


class TableError(CrossfluenceError, ValueError):
    """A table that cannot be used, and what to do about it."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column as numbers.

    Attributes:
        numbers: Shape `(n,)`, float64; NaN where a cell is none.
        faults: What stands in such cells, by row; empty text where nothing does.
        truths: Whether it holds true and false.
    """

    numbers: np.ndarray
    faults: Mapping[int, str]
    truths: bool = False


def numbers_of(cells: pd.Series) -> Column | None:
    """A column as numbers, true and yes as 1, false and no as 0; nothing if it is text or times.

    Args:
        cells: As read.

    Returns:
        The numbers, if all cells but empty ones are numbers, or all true or false, or at least half of them numbers.
    """
    if cells.dtype.kind in "mM":  # times
        return None
    shown = ["" if _empty(cell) else str(cell).strip() for cell in cells]
    truths = _truths(shown)
    text = truths or shown
    if cells.dtype.kind in "fiub":
        parsed = cells.to_numpy(dtype=float, na_value=np.nan)
    else:
        parsed = np.array([_parsed(cell) for cell in text], dtype=float)
    good = np.isfinite(parsed)
    words = sum(not ok and cell.lower() not in NO_NUMBER for ok, cell in zip(good, text, strict=True))
    if not good.any() or (words and good.mean() < 0.5):
        return None
    faults = {int(row): shown[row] for row in np.flatnonzero(~good)}
    return Column(np.where(good, parsed, np.nan), faults, truths is not None)


def _parsed(cell: str) -> float:
    """The nearest float64; pandas's own reading may miss it by a bit, and Python's takes 1_000 for a number."""
    try:
        return float(cell) if "_" not in cell else np.nan
    except ValueError:
        return np.nan


def _empty(cell: object) -> bool:
    missing = pd.isna(cell)  # pyright: ignore[reportCallIssue, reportArgumentType]  # of a list, one for each member
    return bool(missing) if isinstance(missing, (bool, np.bool_)) else False


def _truths(text: Sequence[str]) -> list[str] | None:
    """0 and 1 for a column of true and false; nothing for any other."""
    lowered = [cell.lower() for cell in text]
    held = set(lowered) - NO_NUMBER
    if not held & TRUTH.keys() or not held <= TRUTH.keys() | BITS:
        return None
    return [TRUTH.get(cell, cell) for cell in lowered]


def no_quantity(column: str, numbers: np.ndarray) -> str | None:
    """The content of a column that holds no quantity: ids, or row numbers.

    A column is taken for ids by its name ("id", "user_id"), for row numbers by its name ("Unnamed: 0", "index") if no
    number comes twice, or by its content if it counts from 0 or 1; all numbers must be whole.

    Args:
        column: Its name.
        numbers: What it holds.

    Returns:
        "ids" or "row numbers"; nothing for a quantity.

    Example:
        >>> no_quantity("Unnamed: 0", np.array([3.0, 7.0, 5.0])), no_quantity("height", np.array([3.0, 7.0, 5.0]))
        ('row numbers', None)
    """
    if (numbers != np.round(numbers)).any() or len(different := np.unique(numbers)) < 3:
        return None
    if is_identifier(column):
        return "ids"
    counts = len(numbers) >= ENOUGH and numbers[0] in (0, 1) and (np.diff(numbers) == 1).all()
    named = counts_rows(column) and len(different) == len(numbers)
    return "row numbers" if counts or named else None


def far_cells(column: str, numbers: np.ndarray, ids: Sequence[Id]) -> str | None:
    """A sentence about cells so far away that in their column all other rows look alike.

    Args:
        column: Its name.
        numbers: What it holds; not all the same.
        ids: Of the rows.

    Returns:
        The sentence, with row and column; nothing for most columns.
    """
    distance = np.abs(numbers / 2 - np.median(numbers) / 2)  # halves: 1e308 and its opposite have a difference
    far = distance > FAR * np.median(distance[distance > 0])
    if not 1 <= far.sum() <= max(FEW_CELLS, FEW_OF_ALL * len(far)):
        return None
    rest = _deviation(numbers[~far])
    return _far_sentence(column, numbers, far, ids) if 0 < rest <= FLATTENED * _deviation(numbers) else None


def _deviation(numbers: np.ndarray) -> float:
    """The standard deviation, also of numbers whose squares are too large or too small."""
    scale = np.abs(numbers).max()
    return float(scale * (numbers / scale).std()) if scale else 0.0


def _far_sentence(column: str, numbers: np.ndarray, far: np.ndarray, ids: Sequence[Id]) -> str:
    rows = np.flatnonzero(far)
    more = f" (and {len(rows) - 1} more cells of that column)" if len(rows) > 1 else ""
    return (
        f"{place(int(rows[0]), column, ids)} holds {numbers[rows[0]]:g}{more}, so far from all others that they look "
        f"alike beside it: the column has lost its meaning. Mend or drop the cell if it is an error, or leave the "
        f"column out with --exclude."
    )


def place(row: int, column: str, ids: Sequence[Id]) -> str:
    """A cell by row, id and column."""
    return f"Row {row} (id {ids[row]!r}), column {column!r}"
