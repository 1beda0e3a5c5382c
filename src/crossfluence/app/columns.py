"""Columns of a table: which hold quantities, which only number or name the rows, and cells that hide all others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import CrossfluenceError
from ..words.corpus.names import counts_rows, is_code, is_identifier, is_unnamed
from .units import without_units

if TYPE_CHECKING:
    from .._types import Id


NO_NUMBER = {
    "", "nan", "na", "n/a", "n.a.", "none", "null", "nil", "inf", "-inf", "?", "-", "--", ".", "#n/a", "<na>",
    "missing", "unknown",
}  # fmt: skip
"""Cells that say that nothing is known, in lower case."""

YES = "true yes y t on ja wahr oui vrai sí si verdadero vero sim verdadeiro да ano tak kyllä はい 是 예"
NO = "false no n f off nein falsch non faux falso não нет ne nie ei nej いいえ 否 아니요"
TRUTH = {**dict.fromkeys(YES.split(), "1"), **dict.fromkeys(NO.split(), "0")}
BITS = {"0", "1", "0.0", "1.0"}
ENOUGH = 8  # rows from which a column that counts 0, 1, 2, ... is no coincidence
MANY = 30  # columns that are listed by name
FAR = 30.0  # typical distances from the median
FEW_CELLS, FEW_OF_ALL = 3, 0.1  # far cells and their share, above which they are a group of their own
STAND_IN = re.compile("-?(9|99|999+)|-1|-?8888?|-?7777?")
"""Numbers that stand for missing ones by custom."""

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
        example: A cell with a unit that was left out, if there are any.
    """

    numbers: np.ndarray
    faults: Mapping[int, str]
    truths: bool = False
    example: str = ""


def numbers_of(cells: pd.Series) -> Column | None:
    """A column as numbers, true and yes as 1, false and no as 0; nothing if it is text or times.

    Args:
        cells: As read.

    Returns:
        The numbers, if all cells but empty ones are numbers, or all true or false, or at least half of them numbers.
    """
    if cells.dtype.kind in "mM":  # times
        return None
    shown = ["" if empty(cell) else str(cell).strip() for cell in cells]
    truths = truths_of(shown)
    plain = without_units(["" if cell.lower() in NO_NUMBER else cell for cell in shown]) if truths is None else None
    text = truths or plain or shown
    if cells.dtype.kind in "fiub":
        parsed = cells.to_numpy(dtype=float, na_value=np.nan)
    else:
        parsed = np.array([_parsed(cell) for cell in text], dtype=float)
    good = np.isfinite(parsed)
    words = sum(not ok and cell.lower() not in NO_NUMBER for ok, cell in zip(good, text, strict=True))
    if not good.any() or (words and good.mean() < 0.5):
        return None
    faults = {int(row): shown[row] for row in np.flatnonzero(~good)}
    example = "" if plain is None else next(shown[row] for row in np.flatnonzero(good) if shown[row] != plain[row])
    return Column(np.where(good, parsed, np.nan), faults, truths is not None, example)


def _parsed(cell: str) -> float:
    """The nearest float64; pandas's own reading may miss it by a bit, and Python's takes 1_000 for a number."""
    try:
        return float(cell) if "_" not in cell else np.nan
    except ValueError:
        return np.nan


def empty(cell: object) -> bool:
    """True if a cell holds nothing; false for a list."""
    missing = pd.isna(cell)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return bool(missing) if isinstance(missing, (bool, np.bool_)) else False


def truths_of(text: Sequence[str]) -> list[str] | None:
    """0 and 1 for a column of true and false, or yes and no in several languages.

    Args:
        text: Cells.

    Returns:
        Cells that say nothing as they are; nothing for any other column.
    """
    lowered = [cell.lower() for cell in text]
    held = set(lowered) - NO_NUMBER
    if not held & TRUTH.keys() or not held <= TRUTH.keys() | BITS:
        return None
    return [TRUTH.get(cell, cell) for cell in lowered]


def spelled(columns: Mapping[str, Column]) -> list[str]:
    """A sentence about columns with units that were left out.

    Args:
        columns: By name.

    Returns:
        At most one sentence.
    """
    shown = [f"{name} (as in {one.example!r})" for name, one in columns.items() if one.example]
    more = f", ... ({len(shown)} in all)" if len(shown) > MANY else ""
    return [f"Read as numbers: {', '.join(shown[:MANY])}{more}."] if shown else []


def no_quantity(column: str, numbers: np.ndarray) -> str | None:
    """The content of a column that holds no quantity: ids, codes, or row numbers.

    A column is taken for ids or codes by its name ("id", "user_id"; "isbn"), for row numbers by its name
    ("Unnamed: 0", "customer_no") if no number comes twice, or by its content if it holds each number from 0 or 1 on
    once, in any order; all numbers must be whole.

    Args:
        column: Its name.
        numbers: What it holds.

    Returns:
        "ids", "codes" or "row numbers"; nothing for a quantity.

    Example:
        >>> no_quantity("Unnamed: 0", np.array([3.0, 7.0, 5.0])), no_quantity("height", np.array([3.0, 7.0, 5.0]))
        ('row numbers', None)
    """
    if (numbers != np.round(numbers)).any() or len(different := np.unique(numbers)) < 3:
        return None
    if is_identifier(column):
        return "ids"
    if is_code(column):
        return "codes"
    once = len(different) == len(numbers)
    counts = once and len(numbers) >= ENOUGH and numbers.min() in (0, 1) and np.ptp(numbers) == len(numbers) - 1
    counts = counts and "rank" not in column.lower()
    again = is_unnamed(column) and np.isin(np.diff(numbers)[np.diff(numbers) > 0], 1).all()  # tables put together
    return "row numbers" if counts or again or (once and counts_rows(column)) else None


def goes_up(column: str, numbers: np.ndarray) -> str | None:
    """A sentence about a column that goes up or down in equal whole steps, as numbers of rows do.

    Args:
        column: Its name.
        numbers: What it holds.

    Returns:
        The sentence; nothing for other columns.
    """
    steps = np.diff(numbers / 2)
    if len(numbers) < ENOUGH or (numbers != np.round(numbers)).any() or not steps[0] or (steps != steps[0]).any():
        return None
    way = f"{'up' if steps[0] > 0 else 'down'} by {2 * abs(steps[0]):g}"
    return (
        f"Column {column!r} goes {way} from row to row, as numbers of rows do. It is used; if it only says which row "
        f"it is, leave it out with --exclude."
    )


def far_cells(column: str, numbers: np.ndarray, ids: Sequence[Id]) -> str | None:
    """A sentence about cells so far away that in their column all other rows look alike.

    Args:
        column: Its name.
        numbers: What it holds; not all the same.
        ids: Of the rows.

    Returns:
        The sentence, with row and column; nothing for most columns.
    """
    distance = np.abs(numbers / 2 - np.median(numbers / 2))  # halves: 1e308 and its opposite have a difference
    far = distance / FAR > np.median(distance[distance > 0])
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


def stand_ins(column: str, numbers: np.ndarray) -> str | None:
    """A sentence about a number such as -999 that seems to stand for cells without one.

    Args:
        column: Its name.
        numbers: What it holds; not all the same.

    Returns:
        The sentence, if the smallest or largest number is of that kind and further from all others than they from one
        another; nothing for most columns.
    """
    for value in (numbers.min(), numbers.max()):
        others, count = numbers[numbers != value], int((numbers == value).sum())
        known = bool(STAND_IN.fullmatch(f"{value:g}")) or (value == 0 and count > 1)
        if known and len(np.unique(others)) > 2 and np.abs(others / 2 - value / 2).min() > np.ptp(others / 2):
            return (
                f"Column {column!r} holds {value:g} in {count:,} of {len(numbers):,} rows, far from all others: it "
                f"seems to stand for a number that is not known, and is used as it is. If so, empty these cells."
            )
    return None


def place(row: int, column: str, ids: Sequence[Id]) -> str:
    """A cell by row, id and column."""
    return f"Row {row} (id {ids[row]!r}), column {column!r}"
