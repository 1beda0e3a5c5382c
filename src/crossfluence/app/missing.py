"""Cells that hold no number in columns of numbers: refused with all their places, left out by row, or filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from .columns import Column, TableError, place

if TYPE_CHECKING:
    from .._types import Id


Missing: TypeAlias = Literal["refuse", "drop", "mean"]
LONGEST = 40  # characters of a cell that are shown
NAMED = 5  # rows that are named for each column
MOST_FILLED = 0.3  # share of a column's cells, above which filling it is worth a warning


@dataclass(frozen=True, eq=False)
class Complete:
    """Columns without a missing number.

    Attributes:
        columns: By name.
        rows: Numbers of the rows that stay, in order.
        said: Sentences about what was done.
        warnings: Sentences about what may be wrong with it.
    """

    columns: Mapping[str, Column]
    rows: np.ndarray
    said: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def completed(columns: Mapping[str, Column], ids: Sequence[Id], missing: Missing) -> Complete:
    """Columns of finite numbers.

    Args:
        columns: By name.
        ids: n labels.
        missing: "refuse", "drop" leaves out rows, "mean" puts the mean of the column.

    Returns:
        The columns, with sentences about what was done.

    Raises:
        TableError: If cells are missing and that is refused, or no row would stay.
    """
    whole = np.arange(len(ids))
    faulty = {name: column for name, column in columns.items() if column.faults}
    if not faulty:
        return Complete(columns, whole)
    if missing == "refuse":
        raise TableError(_refusal(faulty, ids))
    if missing == "mean":
        return _filled(columns, faulty, whole, ids)
    gone = {row for column in faulty.values() for row in column.faults}
    rows = np.array([row for row in whole if row not in gone], dtype=int)
    if not len(rows):
        raise TableError(
            f"Every row has a cell without a number, so --missing drop leaves none. Most such cells are in "
            f"{_worst(faulty)}: leave it out with --exclude, or type --missing mean."
        )
    kept = {name: replace(column, numbers=column.numbers[rows], faults={}) for name, column in columns.items()}
    said = (
        f"Left out {len(gone):,} of {len(ids):,} rows, as cells of theirs hold no number: "
        f"{_rows_of(sorted(gone), ids)}. Such cells: {_counted(faulty, ids)}."
    )
    few = f"--missing drop left out {len(gone) / len(ids):.0%} of the rows; most such cells are in {_worst(faulty)}."
    return Complete(kept, rows, (said,), (few,) if len(gone) > MOST_FILLED * len(ids) else ())


def _filled(
    columns: Mapping[str, Column], faulty: Mapping[str, Column], rows: np.ndarray, ids: Sequence[Id]
) -> Complete:
    full = {name: replace(column, numbers=_with_mean(column.numbers), faults={}) for name, column in columns.items()}
    said = f"The column's mean stands in cells that hold no number: {_counted(faulty, ids)}."
    warnings = tuple(
        f"{len(column.faults) / len(ids):.0%} of column {name!r} are filled with its mean; to leave it out, type "
        f"--exclude."
        for name, column in faulty.items() if len(column.faults) > MOST_FILLED * len(ids)
    )  # fmt: skip
    return Complete(full, rows, (said,), warnings)


def _with_mean(numbers: np.ndarray) -> np.ndarray:
    """NaN as the mean of all others, also of numbers whose sum is too large."""
    held = numbers[~np.isnan(numbers)]
    scale = np.abs(held).max() or 1.0
    return np.where(np.isnan(numbers), scale * (held / scale).mean(), numbers)


def _refusal(faulty: Mapping[str, Column], ids: Sequence[Id]) -> str:
    name, first = next(iter(faulty.items()))
    row, shown = next(iter(first.faults.items()))
    count = sum(len(column.faults) for column in faulty.values())
    came = f"holds {shown[:LONGEST] + '...' * (len(shown) > LONGEST)!r}" if shown else "is empty"
    all_of_them = "" if count == 1 else f": {_counted(faulty, ids)}"
    rows = len({row for column in faulty.values() for row in column.faults})
    return (
        f"{place(row, name, ids)} {came}; needed {'true or false' if first.truths else 'a finite number'}. There "
        f"{'is' if count == 1 else 'are'} {count:,} such cell{'s' if count > 1 else ''} in all{all_of_them}. Type "
        f"--missing drop to leave out {'that row' if rows == 1 else f'those {rows:,} rows'}, --missing mean to put the "
        f"column's mean there, or leave columns out with --exclude, or name those to use with --columns."
    )


def _counted(faulty: Mapping[str, Column], ids: Sequence[Id]) -> str:
    """Each column with its rows."""
    shown = [f"{len(one.faults):,} in {name!r} ({_rows_of(list(one.faults), ids)})" for name, one in faulty.items()]
    return ", ".join(shown[:20]) + (f", ... ({len(shown)} columns)" if len(shown) > 20 else "")


def _rows_of(rows: Sequence[int], ids: Sequence[Id]) -> str:
    shown = ", ".join(str(ids[row]) for row in rows[:NAMED]) + (", ..." if len(rows) > NAMED else "")
    return f"row{'s' if len(rows) > 1 else ''} {shown}"


def _worst(faulty: Mapping[str, Column]) -> str:
    return repr(max(faulty, key=lambda name: len(faulty[name].faults)))
