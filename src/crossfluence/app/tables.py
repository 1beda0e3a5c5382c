"""A user's table, whatever file it is in, read with a sentence for everything that can be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..words.corpus.packed import plain_name
from .categories import onehot, told, values_of
from .chosen_columns import ids_of, known_columns
from .columns import Column, TableError, no_quantity, numbers_of, spelled
from .missing import Missing, completed
from .oddities import oddities
from .table_files import SHEETS, TEXT, listed, read_frame, taken_for_names

if TYPE_CHECKING:
    from torch import Tensor

    from .._types import Id

__all__ = ["Table", "TableError", "read_table"]

MANY = 30  # columns that are listed by name


@dataclass(frozen=True, eq=False)
class Table:
    """The numeric part of a table.

    Attributes:
        numbers: Shape `(n, f)`, float64, as in the file.
        columns: f names.
        ids: n labels: a named column's, or row numbers from 0.
        ignored: Columns that hold no numbers or only one value.
        left_out: Numeric columns that hold no quantity, and what they hold: "ids", "codes" or "row numbers".
        warnings: Sentences about what may be wrong with the table, with row and column.
        remarks: Sentences about what was done with it.
        constant: Those ignored columns that hold one value.
        categorical: Those that hold text of few values.
        rows: Numbers in the file of the rows that are used.
        dropped: Ids of the others.
    """

    numbers: Float[np.ndarray, "n f"] = field(repr=False)
    columns: tuple[str, ...]
    ids: tuple[Id, ...] = field(repr=False)
    ignored: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    rows: tuple[int, ...] = field(default=(), repr=False)
    dropped: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def values(self) -> Float[Tensor, "n f"]:
        """The numbers as a tensor; to foretell a time they need not be one."""
        import torch

        return torch.from_numpy(self.numbers)

    def standardised(self) -> Float[Tensor, "n f"]:
        """Every column with mean 0 and standard deviation 1."""
        import torch

        _, exponents = torch.frexp(self.values.abs().max(0).values)
        scaled = self.values / 2.0 ** (exponents.double() - 1)  # rounds nothing, and 1e200 has a square
        return (scaled - scaled.mean(0)) / scaled.std(0, correction=0)

    def different_rows(self, enough: int) -> int:
        """The number of rows that differ, at most so many."""
        found = set[bytes]()
        for row in self.numbers:
            found.add(row.tobytes())
            if len(found) >= enough:
                break
        return len(found)

    def used(self) -> list[str]:
        """Sentences about which columns are used, and which are not."""
        said = list(self.remarks)
        if text := [column for column in self.ignored if column not in self.constant]:
            few = f" To use {_shown(self.categorical)}, type --categories onehot." if self.categorical else ""
            said.append(f"Not used, as they hold text: {_shown(text)}.{few}")
        if self.constant:
            said.append(f"Not used, as they hold only one value: {_shown(self.constant)}.")
        if self.left_out:
            kinds = _shown([f"{column} ({kind})" for column, kind in self.left_out.items()])
            said.append(f"Left out, as they say which row it is: {kinds}. To use them, name columns with --columns.")
        return [*said, f"Columns used: {_shown(self.columns)}."]

    def sampled(self, count: int, seed: int, *, keep: Sequence[int] = ()) -> Table:
        """The same table with some of its rows, drawn at random, in their order.

        Args:
            count: How many; all, if there are fewer or it is 0.
            seed: Of the draw.
            keep: Rows that stay in any case.

        Returns:
            A table that says so.
        """
        n = len(self.ids)
        if not 0 < count < n:
            return self
        others = np.setdiff1d(np.arange(n), keep)
        drawn = np.random.default_rng(seed).permutation(others)[: max(0, count - len(set(keep)))]
        rows = np.sort(np.concatenate([np.unique(np.array(keep, dtype=int)), drawn]))
        varying = [place for place, column in enumerate(self.numbers[rows].T) if column.min() < column.max()]
        said = f"A random {len(rows):,} of {n:,} rows are used, here and in every figure. All rows: --sample 0."
        return replace(
            self, numbers=self.numbers[rows][:, varying], columns=tuple(self.columns[place] for place in varying),
            ids=tuple(self.ids[row] for row in rows), remarks=(said, *self.remarks),
            rows=tuple(self.rows[row] for row in rows),
        )  # fmt: skip

    def row(self, query: str) -> int:
        """The row of an id as it was typed.

        Args:
            query: An id, or a row number where the table has no id column.

        Returns:
            Its row number.

        Raises:
            TableError: If there is no such row.
        """
        typed, query = [str(label) for label in self.ids], query.strip()
        if query in typed:
            return typed.index(query)
        if f"{query}.0" in typed:  # ids that are numbers with decimals
            return typed.index(f"{query}.0")
        if query in self.dropped:
            raise TableError(f"Row {query} was left out, as a cell of it holds no number. Ask for another row.")
        shown = ", ".join(typed[:3])
        raise TableError(f"No row has the id {query!r}; there are {len(typed)} ids: {shown}, ..., {typed[-1]}.")


def read_table(
    path: Path,
    *,
    id_column: str | None = None,
    use: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    header: bool = True,
    encoding: str | None = None,
    separator: str | None = None,
    categories: Literal["drop", "onehot"] = "drop",
    missing: Missing = "refuse",
    beginning: bool = False,
) -> Table:
    """Reads the quantities of a table.

    A column counts as numeric if it holds nothing but numbers and empty cells, if it holds nothing but true and false
    (or yes and no), or if at least half of its cells are numbers. Ids and row numbers are left out.

    Args:
        path: A file as `read_frame` reads it.
        id_column: The column that names the rows.
        use: The columns to use, whatever they seem to hold; default: all that hold quantities.
        exclude: Columns not to use.
        header: Whether the first line of a text file holds column names.
        encoding: Of a text file; default: told.
        separator: Of the cells of a text file; default: told.
        categories: "drop" uses no text; "onehot" makes a column of 0 and 1 of each value of text with few values.
        missing: "refuse", "drop" or "mean": what becomes of cells without a number in a column of numbers.
        beginning: Whether to read only the beginning of a large text file.

    Returns:
        Values, column names and ids.

    Raises:
        TableError: If the file is missing or unreadable, or holds text or NaN in a numeric column (with all rows and
            columns), no numeric column, only constant ones, two columns of one name, or ids that repeat.
    """
    if not path.exists():
        raise TableError(f"There is no file {path}.")
    frame, guessed = read_frame(path, header=header, encoding=encoding, separator=separator, beginning=beginning)
    if not len(frame):
        raise TableError(f"{path.name} holds no rows.")
    ids = ids_of(frame, id_column, path)
    named = known_columns([*(use or frame.columns), *exclude], frame, path, header=header)
    columns = [column for column in named if column not in exclude and (use is not None or column != id_column)]
    numeric = {column: found for column in columns if (found := numbers_of(frame[column])) is not None}
    text = [column for column in columns if column not in numeric]
    made, used = onehot(frame, text) if categories == "onehot" else ({}, {})
    if use is not None and (unused := [column for column in text if column not in used]):
        hint = "" if values_of(frame[unused[0]]) is None else " To use its values, type --categories onehot."
        raise TableError(f"Column {unused[0]!r} of {path.name} holds no numbers. Leave it out of --columns.{hint}")
    left_out = {} if use is not None else _no_quantities(numeric)
    quantities = {column: found for column, found in numeric.items() if column not in left_out} | made
    if not quantities:
        raise TableError(_no_numeric_column(path, frame, columns, left_out))
    whole = completed(quantities, ids, missing)
    varying = {name: one.numbers for name, one in whole.columns.items() if np.ptp(one.numbers / 2) > 0}
    if not varying:
        raise TableError(f"{path.name} is constant: every numeric column holds one value; nothing to cluster.")
    same = {column for column in columns if column in whole.columns and column not in varying}
    same |= {column for column in text if frame[column].astype(str).nunique() < 2}
    ignored = tuple(column for column in columns if column not in (*varying, *left_out, *used))
    stay = tuple(ids[row] for row in whole.rows)
    named = header and plain_name(path).lower().endswith((*TEXT, *SHEETS))
    warnings = _header_warning(path, frame, ids) if named else []
    return Table(
        np.stack(list(varying.values()), axis=1), tuple(varying), stay, ignored, left_out,
        warnings=(*warnings, *whole.warnings, *oddities(varying, stay)),
        remarks=(*guessed, *spelled(quantities), *told(used), *whole.said),
        constant=tuple(column for column in ignored if column in same), rows=tuple(whole.rows.tolist()),
        dropped=tuple(str(ids[row]) for row in set(range(len(ids))) - set(whole.rows.tolist())),
        categorical=tuple(column for column in ignored if column in text and values_of(frame[column]) is not None),
    )  # fmt: skip


def _no_quantities(numeric: Mapping[str, Column]) -> dict[str, str]:
    """Sentences about columns that hold no quantities."""
    found = {column: no_quantity(column, one.numbers) for column, one in numeric.items() if not one.faults}
    return {column: kind for column, kind in found.items() if kind is not None}


def _no_numeric_column(path: Path, frame: pd.DataFrame, columns: Sequence[str], left_out: Mapping[str, str]) -> str:
    held = "; ".join(f"{column!r} holds {kind}" for column, kind in left_out.items())
    hint = f" ({held}; to use them all the same, name them with --columns)" if held else ""
    hint = hint or (_first_cells(frame, columns) if columns else "")
    return f"{path.name} has no numeric column; its columns are {listed(columns)}{hint}."


def _first_cells(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """A hint about a separator or a spelling of numbers that is not known."""
    cells = f", and its first row holds {listed(frame[column].iloc[0] for column in columns)}"
    several = ". If that is several cells, type --separator and the sign between them"
    return cells + (several if len(columns) == 1 else "")


def _header_warning(path: Path, frame: pd.DataFrame, ids: Sequence[Id]) -> list[str]:
    """A warning if the first line may be the first row of a table without a header."""
    numbers = taken_for_names(frame)
    if not numbers:
        return []
    return [
        f"The first line of {path.name} was taken for column names, but {listed(numbers)} in it look like data. If it "
        f"is the first row, type --no-header (columns are then called 0, 1, 2, ...); now it is not among the "
        f"{len(ids)} rows."
    ]


def _shown(names: Sequence[str] | tuple[str, ...]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more
