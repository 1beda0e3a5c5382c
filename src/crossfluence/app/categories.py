"""Columns of text with few values, as columns of 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .columns import Column

MOST_VALUES = 20
EMPTY = "(empty)"


def values_of(cells: pd.Series) -> list[str] | None:
    """The different values of a column of text, if they are few and come again.

    Args:
        cells: As read.

    Returns:
        At most 20 values in order, an empty cell as "(empty)"; nothing for other columns.
    """
    if cells.dtype.kind in "mM":
        return None
    shown = shown_as(cells)
    values = sorted(set(shown))
    return values if 2 <= len(values) <= min(MOST_VALUES, len(shown) // 2) else None


def shown_as(cells: pd.Series) -> list[str]:
    """Cells as text."""
    return [str(cell).strip() or EMPTY if isinstance(cell, str) or not _missing(cell) else EMPTY for cell in cells]


def onehot(frame: pd.DataFrame, text: Sequence[str]) -> tuple[dict[str, Column], dict[str, int]]:
    """Columns such as "kind=dog" of 0 and 1 in place of text; of two values one column says all.

    Args:
        frame: As read.
        text: Columns that hold no numbers.

    Returns:
        The new columns, and how many values each column had that was used.
    """
    made, used = dict[str, Column](), dict[str, int]()
    for name in text:
        values = values_of(frame[name])
        if values is None:
            continue
        used[name] = len(values)
        shown = np.array(shown_as(frame[name]), dtype=object)
        for value in values if len(values) > 2 else values[1:]:
            made[_free(f"{name}={value}", made, frame.columns)] = Column((shown == value).astype(float), {})
    return made, used


def told(used: Mapping[str, int]) -> list[str]:
    """A sentence about what became of text."""
    if not used:
        return []
    shown = ", ".join(f"{name} ({count} values)" for name, count in used.items())
    return [f"Text as columns of 0 and 1, one for each value: {shown}."]


def _missing(cell: object) -> bool:
    found = pd.isna(cell)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return bool(found) if isinstance(found, (bool, np.bool_)) else False


def _free(name: str, made: Mapping[str, Column], columns: Sequence[str] | pd.Index) -> str:
    while name in made or name in columns:
        name += "'"
    return name
