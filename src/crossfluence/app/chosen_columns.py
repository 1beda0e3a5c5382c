"""Columns and values that a person named: found, or refused with the nearest name; ids that tell rows apart."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..words.corpus.packed import plain_name
from .columns import TableError, empty
from .table_files import SHEETS, TEXT, listed, taken_for_names

if TYPE_CHECKING:
    from .._types import Id


def meant(typed: str, names: Iterable[object]) -> str:
    """A question after the name that was perhaps meant, with a blank before it.

    Args:
        typed: The name that is not there.
        names: Those that are.

    Returns:
        Nothing if none is near.

    Example:
        >>> meant("Hird", ["age", "hired"]), meant("wage", ["town"])
        (" Did you mean 'hired'?", '')
    """
    by_case = {name.casefold(): name for name in map(str, names)}
    near = difflib.get_close_matches(typed.strip().casefold(), by_case, n=1)
    return f" Did you mean {by_case[near[0]]!r}?" if near else ""


def known_columns(use: Iterable[str], frame: pd.DataFrame, path: Path, *, header: bool = True) -> list[str]:
    """The columns asked for, each once.

    Args:
        use: Names.
        frame: The table.
        path: Of the table.
        header: Whether its first line was taken for names.

    Returns:
        The names, in order.

    Raises:
        TableError: If one is not there; with the nearest name, or a hint where the first line looks like data.
    """
    named = list(dict.fromkeys(use))
    for column in named:
        if column not in frame.columns:
            hint = meant(column, frame.columns) or (_no_names(frame, path) if header else "")
            raise TableError(f"{path.name} has no column {column!r}; its columns are {listed(frame.columns)}.{hint}")
    return named


def _no_names(frame: pd.DataFrame, path: Path) -> str:
    text = plain_name(path).lower().endswith((*TEXT, *SHEETS))
    if not (text and taken_for_names(frame)):
        return ""
    return " If its first line holds no names, type --no-header: columns are then called 0, 1, 2, ..."


def ids_of(frame: pd.DataFrame, id_column: str | None, path: Path) -> tuple[Id, ...]:
    """The label of each row: its number from 0, or its own.

    Args:
        frame: The table.
        id_column: The column that names the rows.
        path: Of the table.

    Returns:
        n different labels.

    Raises:
        TableError: If there is no such column, or a label is empty or stands twice.
    """
    if id_column is None:
        return tuple(range(len(frame)))
    known_columns([id_column], frame, path)
    ids = tuple(written(frame[id_column]))
    repeated = next((label for label, count in pd.Series(ids).value_counts().items() if count > 1), None)
    other = "Name another column with --id, or leave --id out: rows are then called by their numbers, from 0."
    if repeated is None and "" in ids:
        raise TableError(f"Column {id_column!r} is empty in row {ids.index('')}. {other}")
    if repeated is not None:
        count = ids.count(str(repeated))
        raise TableError(f"The id {repeated!r} stands in {count} rows of column {id_column!r}. {other}")
    return ids


def written(cells: pd.Series) -> Sequence[str]:
    """Cells as a person would write them: whole numbers without decimals, an empty one as empty text.

    Args:
        cells: As read.

    Returns:
        n texts, without blanks around them.

    Example:
        >>> written(pd.Series([1.0, None, 2.0])), written(pd.Series([" a", 1.5]))
        (['1', '', '2'], ['a', '1.5'])
    """
    whole = cells.dtype.kind == "f" and bool((cells.dropna() % 1 == 0).all())  # of Parquet and pandas with a gap
    return ["" if empty(cell) else str(int(cell) if whole else cell).strip() for cell in cells]
