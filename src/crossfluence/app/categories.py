"""Columns of text with few values, as columns of 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .columns import Column, empty, truths_of

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
    return [str(cell).strip() or EMPTY if isinstance(cell, str) or not empty(cell) else EMPTY for cell in cells]


def joined(cells: pd.Series) -> tuple[pd.Series, list[list[str]]]:
    """Values that differ only in capitals, blanks or the spelling of a number or of yes and no, as one value.

    Args:
        cells: Text; empty where nothing stands.

    Returns:
        The cells with the most frequent spelling of each value, and the spellings of each that has several. Unchanged
        if one value alone would be left: "A" and "a" are then two.

    Example:
        >>> cells, alike = joined(pd.Series(["Yes", "no", "yes", "yes", "NO", "no"]))
        >>> cells.tolist(), alike
        (['yes', 'no', 'yes', 'yes', 'no', 'no'], [['NO', 'no'], ['Yes', 'yes']])
    """
    counts = pd.Series([cell for cell in cells if cell], dtype=object).value_counts()
    groups = dict[str, list[str]]()
    for spelling, key in zip(counts.index, _keys(list(counts.index)), strict=True):
        groups.setdefault(key, []).append(spelling)
    alike = [group for group in groups.values() if len(group) > 1]
    if len(groups) < 2 or not alike:
        return cells, []
    return cells.replace({other: group[0] for group in alike for other in group[1:]}), sorted(map(sorted, alike))


def _keys(values: Sequence[str]) -> list[str]:
    """The same for values that mean the same."""
    if (truths := truths_of(values)) is not None:
        return [str(float(truth)) for truth in truths]
    try:
        return [str(float(value)) for value in values]
    except ValueError:
        return [" ".join(value.casefold().split()) for value in values]


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


def _free(name: str, made: Mapping[str, Column], columns: Sequence[str] | pd.Index) -> str:
    while name in made or name in columns:
        name += "'"
    return name
