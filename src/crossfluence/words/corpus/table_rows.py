"""Rows of tables in text: CSV with any usual separator, and TSV."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence

from crossfluence.errors import CorpusError

from .json_rows import Row

CELL_LIMIT = 1 << 27
"""Characters of one CSV cell: Python's own limit of 131,072 is short of many articles."""

SEPARATORS = (",", ";", "\t", "|")
NAMED_FIRST = re.compile(r'\ufeff?"?sep=(\\t|.)"?\s*', re.IGNORECASE)
"""A first line that tells Excel the separator."""

LOOKED_AT = 50  # lines that tell the separator


def table_rows(rows: Iterator[tuple[int, list[str]]], name: str, *, header: bool) -> Iterator[Row]:
    """Cells by column.

    Args:
        rows: Lines and cells.
        name: Of the file.
        header: Whether the first row holds the names of the columns; else they are "0", "1", ...

    Yields:
        The line at which a row begins, and its cells.

    Raises:
        CorpusError: If two columns have one name, or a row has more or fewer cells than the first.
    """
    names = list[str]()
    for line, cells in rows:
        if not names and not header:
            names = [str(place) for place in range(len(cells))]
        if not names:
            names = [cell.strip() for cell in cells]
            twice = next((cell for cell in names if names.count(cell) > 1), None)
            if twice is not None:
                raise CorpusError(f"{name} has {names.count(twice)} columns named {twice!r}; name each otherwise.")
            continue
        if len(cells) != len(names):
            first = "header" if header else "first row"
            title = " If line 1 is a title or a comment, take it out." if len(names) == 1 else ""
            raise CorpusError(
                f"Line {line} of {name} has {len(cells)} cells, but its {first} has {len(names)}: {listed(names)}. "
                f"Mend that line; a cell that holds the separator must be quoted, which only .csv allows.{title}"
            )
        yield line, dict(zip(names, cells, strict=True))


def listed(names: Sequence[str]) -> str:
    """Up to twelve names in quotes, each up to 40 letters long."""
    shown = ", ".join(f"{name:.40}".join("''") for name in names[:12])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 12 else "")


def csv_rows(text: Iterator[str], name: str, separator: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Rows of CSV, whatever separates its cells.

    Args:
        text: Lines.
        name: Of the file.
        separator: Of cells; default: told from the first lines.

    Yields:
        The line at which a row begins, and its cells.

    Raises:
        CorpusError: If quotes do not match.
    """
    begin = list(itertools.islice(text, LOOKED_AT))
    named = NAMED_FIRST.fullmatch(begin[0]) if begin else None
    cut = separator or (named[1].replace("\\t", "\t") if named else told_separator(begin))
    lines = itertools.chain(begin[1:] if named else begin, text)
    reader = csv.reader(lines, delimiter=cut, skipinitialspace=cut != "\t", strict=True)
    while True:
        line = reader.line_num + 1 + bool(named)
        limit = csv.field_size_limit(CELL_LIMIT)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise CorpusError(
                f"Cannot read the row that begins at line {line} of {name}: {error}. Mend its quotes: a cell with a "
                f"quote in it must stand in quotes, with the inner one doubled. If nothing is quoted, save as .tsv."
            ) from None
        finally:
            csv.field_size_limit(limit)  # it is a setting of the whole program
        if cells:
            yield line, cells


def told_separator(lines: Sequence[str]) -> str:
    """The sign that cuts the first line and all rows below it into equally many cells, more than one.

    Args:
        lines: The first ones.

    Returns:
        A comma if none does, unless only another sign cuts the first line.

    Example:
        >>> told_separator(["id;text", "1;Yes, we can."]), told_separator(["text", "Yes, we can."])
        (';', ',')
    """
    lengths = {one: _lengths(lines, one) for one in SEPARATORS}
    even = [one for one, found in lengths.items() if found and found[0] > 1 and len(set(found)) == 1]
    first = {one: found[0] for one, found in lengths.items() if found}
    if even or first.get(",", 2) > 1:
        return next(iter(even), ",")
    return max(first, key=lambda one: first[one])


def _lengths(lines: Sequence[str], separator: str) -> list[int]:
    """Cells of each row; not of the last one, which may go on below these lines."""
    limit = csv.field_size_limit(CELL_LIMIT)
    try:
        found = [len(row) for row in csv.reader(lines, delimiter=separator, skipinitialspace=True) if row]
    except csv.Error:
        return []
    finally:
        csv.field_size_limit(limit)
    return found[:-1] if len(lines) == LOOKED_AT else found


def tsv_rows(text: Iterator[str], name: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of TSV: no cell is quoted, unless all names are.

    Args:
        text: Lines.
        name: Of the file.

    Yields:
        The line at which a row begins, and its cells.
    """
    numbered = ((number, line) for number, line in enumerate(text, 1) if line.strip())
    for number, line in numbered:
        cells = line.rstrip("\r\n").split("\t")
        if number == 1 and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells):
            yield from csv_rows(itertools.chain([line], text), name, "\t")
            return
        yield number, cells
