"""Columns of a table: which hold quantities, which only number or name the rows, and cells that hide all others."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from .._types import Id
from ..errors import CrossfluenceError
from ..words.corpus.names import counts_rows, is_identifier

NO_NUMBER = {"", "nan", "na", "n/a", "none", "null", "inf", "-inf"}
TRUTH = {
    "true": "1", "yes": "1", "y": "1", "t": "1", "on": "1", "false": "0", "no": "0", "n": "0", "f": "0", "off": "0",
}  # fmt: skip
BITS = {"0", "1", "0.0", "1.0"}
ENOUGH = 8  # rows from which a column that counts 0, 1, 2, ... is no coincidence
FAR = 30.0  # typical distances from the median
FEW_CELLS, FEW_OF_ALL = 3, 0.1  # far cells and their share, above which they are a group of their own
FLATTENED = 0.2  # share of its deviation that a column has without its far cells
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


class TableError(CrossfluenceError, ValueError):
    """A table that cannot be used, and what to do about it."""


def numbers_of(cells: pd.Series, column: str, ids: Sequence[Id]) -> np.ndarray | None:
    """A column as numbers, true and yes as 1, false and no as 0; nothing if it is text or times.

    Args:
        cells: As read.
        column: Its name.
        ids: Of the rows.

    Returns:
        Shape `(n,)`, float64, or None.

    Raises:
        TableError: If most cells are numbers, or all are true or false, and one is neither or is empty.
    """
    if cells.dtype.kind in "mM":  # times
        return None
    shown = ["" if pd.isna(cell) else str(cell).strip() for cell in cells]
    truths = _truths(shown)
    text = truths or shown
    plain = cells if cells.dtype.kind in "fiub" else pd.Series(text)
    parsed = pd.Series(pd.to_numeric(plain, errors="coerce")).to_numpy(dtype=float, na_value=np.nan)
    good = np.isfinite(parsed)
    words = sum(not ok and cell.lower() not in NO_NUMBER for ok, cell in zip(good, text, strict=True))
    if not good.any() or (words and good.mean() < 0.5):
        return None
    if not good.all():
        row = int(np.argmin(good))
        came = f"holds {shown[row]!r}" if shown[row] else "is empty"
        raise TableError(
            f"{_place(row, column, ids)} {came}; needed {'true or false' if truths else 'a finite number'}. "
            f"Fill or drop {int((~good).sum())} such cell(s) of that column, or name the columns to use with --columns."
        )
    return parsed


def _truths(text: Sequence[str]) -> list[str] | None:
    """0 and 1 for a column of true and false; nothing for any other."""
    lowered = [cell.lower() for cell in text]
    held = set(lowered) - NO_NUMBER
    if not held & TRUTH.keys() or not held <= TRUTH.keys() | BITS:
        return None
    return [TRUTH.get(cell, cell) for cell in lowered]


def with_decimal_points(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Cells such as "0,126" as "0.126"; for files whose cells are not separated by commas.

    Args:
        frame: Of text.
        name: Of the file.

    Returns:
        The frame, or a changed copy.

    Raises:
        TableError: If cells such as "1,304" may be 1.304 or 1304, and no other cell of the file tells.
    """
    with_comma = {column: _with_comma(frame[column]) for column in frame.columns}
    found = [cell for cells in with_comma.values() for cell in cells]
    if found and all(THOUSANDS.fullmatch(cell) for cell in found):
        raise TableError(
            f"{name} holds {found[0]!r}, which may be {found[0].replace(',', '.')} or {found[0].replace(',', '')}, and "
            f"no other cell tells which. Write it without the comma."
        )
    changed = {
        column: frame[column].str.strip().str.replace(",", ".", regex=False)
        for column, cells in with_comma.items()
        if cells
    }
    return frame.assign(**changed)


def _with_comma(cells: pd.Series) -> list[str]:
    """Cells with a decimal comma of a column that holds nothing but them, whole numbers and empty cells."""
    held = [cell for cell in cells.str.strip() if cell.lower() not in NO_NUMBER]
    found = [cell for cell in held if "," in cell]
    all_numbers = all(DECIMAL_COMMA.fullmatch(cell) or THOUSANDS.fullmatch(cell) or cell.lstrip("+-").isdecimal()
                      for cell in held)  # fmt: skip
    return found if all_numbers else []


def no_quantity(column: str, numbers: np.ndarray) -> str | None:
    """What a column holds instead of a quantity: ids, or row numbers.

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
        f"{_place(int(rows[0]), column, ids)} holds {numbers[rows[0]]:g}{more}, so far from all others that they look "
        f"alike beside it: the column has lost its meaning. Mend or drop the cell if it is an error, or leave the "
        f"column out with --columns."
    )


def _place(row: int, column: str, ids: Sequence[Id]) -> str:
    return f"Row {row} (id {ids[row]!r}), column {column!r}"
