"""A user's table: CSV, Parquet or .npy, read with a sentence for everything that can be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Id
from .columns import TableError, far_cells, no_quantity, numbers_of
from .table_files import READERS, listed, read_frame, taken_for_names

__all__ = ["Table", "TableError", "read_table"]

MANY = 30  # columns that are listed by name


@dataclass(frozen=True, eq=False)
class Table:
    """The numeric part of a table.

    Attributes:
        values: Shape `(n, f)`, float64, as in the file.
        columns: f names.
        ids: n labels: a named column's, or row numbers from 0.
        ignored: Columns that hold no numbers or only one value.
        left_out: Numeric columns that hold no quantity, and what they hold: "ids" or "row numbers".
        warnings: Sentences about what may be wrong with the table, with row and column.
    """

    values: Float[Tensor, "n f"] = field(repr=False)
    columns: tuple[str, ...]
    ids: tuple[Id, ...] = field(repr=False)
    ignored: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def standardised(self) -> Float[Tensor, "n f"]:
        """Every column with mean 0 and standard deviation 1."""
        _, exponents = torch.frexp(self.values.abs().max(0).values)
        scaled = self.values / 2.0 ** (exponents.double() - 1)  # rounds nothing, and 1e200 has a square
        return (scaled - scaled.mean(0)) / scaled.std(0, correction=0)

    def used(self) -> list[str]:
        """Sentences about which columns are used, and which are not."""
        said = []
        if self.ignored:
            said.append(f"Not used, as they hold text or only one value: {_shown(self.ignored)}.")
        if self.left_out:
            kinds = _shown([f"{column} ({kind})" for column, kind in self.left_out.items()])
            said.append(f"Left out, as they say which row it is: {kinds}. To use them, name columns with --columns.")
        return [*said, f"Columns used: {_shown(self.columns)}."]

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


def read_table(
    path: Path,
    *,
    id_column: str | None = None,
    use: Sequence[str] | None = None,
    header: bool = True,
    encoding: str = "utf-8",
) -> Table:
    """Reads the quantities of a table.

    A column counts as numeric if it holds nothing but numbers and empty cells, if it holds nothing but true and false
    (or yes and no), or if at least half of its cells are numbers; then all must be. Ids and row numbers are left out.

    Args:
        path: `.csv` or `.tsv`, `.parquet`, or a two-dimensional `.npy` array.
        id_column: The column that names the rows.
        use: The columns to use, whatever they seem to hold; default: all that hold quantities.
        header: Whether the first line of a text file holds column names.
        encoding: Of a text file.

    Returns:
        Values, column names and ids.

    Raises:
        TableError: If the file is missing or unreadable, or holds text or NaN in a numeric column (with row and
            column), no numeric column, only constant ones, two columns of one name, or ids that repeat.
    """
    if not path.exists():
        raise TableError(f"There is no file {path}.")
    if path.suffix.lower() not in READERS:
        raise TableError(f"Cannot read {path.name}: needed a file that ends in {', '.join(READERS)}.")
    frame = read_frame(path, header=header, encoding=encoding)
    if not len(frame):
        raise TableError(f"{path.name} holds no rows.")
    ids = _ids(frame, id_column, path)
    columns = [column for column in frame.columns if column != id_column] if use is None else _known(use, frame, path)
    numeric = {column: numbers for column in columns if (numbers := numbers_of(frame[column], column, ids)) is not None}
    if use is not None and (text := [column for column in use if column not in numeric]):
        raise TableError(f"Column {text[0]!r} of {path.name} holds no numbers. Leave it out of --columns.")
    left_out = {} if use is not None else _no_quantities(numeric)
    quantities = {column: numbers for column, numbers in numeric.items() if column not in left_out}
    if not quantities:
        raise TableError(_no_numeric_column(path, columns, left_out))
    varying = {column: numbers for column, numbers in quantities.items() if np.ptp(numbers) > 0}
    if not varying:
        raise TableError(f"{path.name} is constant: every numeric column holds one value; nothing to cluster.")
    ignored = tuple(column for column in columns if column not in varying and column not in left_out)
    values = torch.from_numpy(np.stack(list(varying.values()), axis=1))
    warnings = _header_warning(path, frame, ids) if header and path.suffix.lower() in {".csv", ".tsv"} else []
    warnings += [found for name, numbers in varying.items() if (found := far_cells(name, numbers, ids))]
    return Table(values, tuple(varying), ids, ignored, left_out, tuple(warnings))


def _known(use: Sequence[str], frame: pd.DataFrame, path: Path) -> list[str]:
    """The columns asked for, all of which must be there."""
    for column in use:
        if column not in frame.columns:
            raise TableError(f"{path.name} has no column {column!r}; its columns are {listed(frame.columns)}.")
    return list(dict.fromkeys(use))


def _no_quantities(numeric: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What columns hold that are no quantities."""
    found = {column: no_quantity(column, numbers) for column, numbers in numeric.items()}
    return {column: kind for column, kind in found.items() if kind is not None}


def _no_numeric_column(path: Path, columns: Sequence[str], left_out: Mapping[str, str]) -> str:
    held = "; ".join(f"{column!r} holds {kind}" for column, kind in left_out.items())
    hint = f" ({held}; to use them all the same, name them with --columns)" if held else ""
    return f"{path.name} has no numeric column; its columns are {listed(columns)}{hint}."


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


def _shown(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


def _ids(frame: pd.DataFrame, id_column: str | None, path: Path) -> tuple[Id, ...]:
    if id_column is None:
        return tuple(range(len(frame)))
    if id_column not in frame.columns:
        raise TableError(f"{path.name} has no column {id_column!r}; its columns are {listed(frame.columns)}.")
    ids = tuple(str(label) for label in frame[id_column])
    repeated = next((label for label, count in pd.Series(ids).value_counts().items() if count > 1), None)
    if repeated is not None:
        raise TableError(f"The id {repeated!r} stands in {ids.count(str(repeated))} rows of column {id_column!r}.")
    return ids
