"""Tables in text: encoding, separator and header are told, or named; rows that do not fit are named by their line."""

from __future__ import annotations

import codecs
import csv
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from ..words.corpus.encodings import told_aloud, told_encoding
from .columns import TableError
from .numerals import with_decimal_points

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar", ":": "colon", " ": "blank"}
NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|", "blank": " ", "space": " "}
"""Separators as a person types them, beside the sign itself."""

LOOKED_AT = 50  # rows that tell the separator
CELL_LIMIT = 1 << 27  # characters; Python's own limit is 131,072


def from_text(
    content: bytes, name: str, *, header: bool, encoding: str | None, separator: str | None, twins: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """The table in a text.

    Args:
        content: Bytes, unpacked.
        name: Of the file.
        header: Whether the first line holds column names.
        encoding: Of the text; default: told from the bytes.
        separator: Of cells; default: told from the first rows.
        twins: Whether columns of one name are told apart as pandas does: "age", "age.1".

    Returns:
        A frame of text, and sentences about what was guessed.

    Raises:
        TableError: If it cannot be read as a table.
    """
    told = encoding or told_encoding([content])
    text = content.decode(_known(told))
    if not text.strip():
        raise TableError(f"{name} is empty.")
    lines = text.split("\n" if "\n" in text else "\r")
    cut = _named(separator) or _separator(lines, "\t" if name.lower().endswith((".tsv", ".tab")) else ",")
    rows = _rows(lines, cut)
    names = _names(rows[0][1]) if header else [str(place) for place in range(max(len(cells) for _, cells in rows))]
    if header and all(is_number(column) for column in names):
        raise TableError(
            f"The first line of {name} must hold column names, but it is all numbers: {listed(names)}. "
            f"Add a header line, or type --no-header."
        )
    names = _told_apart(names) if twins else names
    body = [_fitted(line, cells, names, name) for line, cells in rows[int(header) :]]
    names, body, dropped = _without_copies(names, body)
    refuse_two_of_one_name(names, name)
    frame = pd.DataFrame(body, columns=pd.Index(names), dtype=object)
    guessed = None if encoding else told_aloud(told, name)
    said = [guessed] if guessed else []
    if dropped:
        said.append(f"Read once, as they stand twice in {name} with the same content: {listed(dropped)}.")
    return with_decimal_points(frame, name, commas_separate=cut == ","), said


def is_number(text: object) -> bool:
    """True if text is a finite or infinite number."""
    try:
        return not math.isnan(float(str(text)))
    except ValueError:
        return False


def listed(names: Iterable[object]) -> str:
    """Up to eight names in quotes."""
    names = list(names)
    return ", ".join(repr(str(name)) for name in names[:8]) + (", ..." if len(names) > 8 else "")


def refuse_two_of_one_name(names: Sequence[str], file: str) -> None:
    """Makes sure that columns can be told apart.

    Args:
        names: Of columns.
        file: Its name.

    Raises:
        TableError: If two are the same.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        hint = " If the first line holds no names, type --no-header." if is_number(twice[0]) else ""
        raise TableError(f"{file} has {names.count(twice[0])} columns named {twice[0]!r}; name each otherwise.{hint}")


def _without_copies(
    names: Sequence[str], body: Sequence[list[str]]
) -> tuple[Sequence[str], Sequence[list[str]], list[str]]:
    """Columns without those that repeat another of their name cell by cell, and the names of these."""
    copies: list[int] = []
    for place, name in enumerate(names):
        first = names.index(name)
        if first < place and body and all(row[first] == row[place] for row in body):
            copies.append(place)
    if not copies:
        return names, body, []
    stay = [place for place in range(len(names)) if place not in copies]
    dropped = list(dict.fromkeys(names[place] for place in copies))
    return [names[place] for place in stay], [[row[place] for place in stay] for row in body], dropped


def _told_apart(names: Sequence[str]) -> list[str]:
    """The second of two columns named "age" is called "age.1"."""
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name}.{count}" if count else name for name, count in zip(names, before, strict=True)]


def _known(encoding: str) -> str:
    try:
        return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    except LookupError:
        raise TableError(f"There is no encoding {encoding!r}. Usual ones are utf-8, latin-1, cp1252, utf-16.") from None


def _named(separator: str | None) -> str | None:
    if separator is None:
        return None
    sign = NAMED.get(separator.lower(), separator)
    if len(sign) != 1 or sign in '"\r\n':
        raise TableError(f"--separator {separator} must be one sign, such as ';' or '|', or tab, comma, bar, blank.")
    return sign


def _names(cells: Sequence[str]) -> list[str]:
    """Column names; those that are missing are called as pandas does."""
    return [cell.strip() or f"Unnamed: {place}" for place, cell in enumerate(cells)]


def _rows(lines: Sequence[str], separator: str, *, strict: bool = True) -> list[tuple[int, list[str]]]:
    """The line at which each row begins, and its cells; blank lines are none."""
    if separator == " ":  # columns are set apart by as many blanks as it takes
        return [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, skipinitialspace=separator != "\t",
                        strict=strict)  # fmt: skip
    rows, begun = [], 1
    limit = csv.field_size_limit(CELL_LIMIT)
    try:
        for cells in reader:
            if len(cells) > 1 or any(map(str.strip, cells)):
                rows.append((begun, cells))
            begun = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)  # it is a setting of the whole program
    return rows


def _separator(lines: Sequence[str], usual: str) -> str:
    """The one that cuts the first rows into equally many cells, more than one; the usual one if several do or none."""
    counted = {one: _lengths(lines[:LOOKED_AT], one) for one in [usual, *SEPARATORS]}
    even = [one for one, lengths in counted.items() if lengths and lengths[0] > 1 and len(set(lengths)) == 1]
    some = [one for one, lengths in counted.items() if lengths and lengths[0] > 1 and one not in ": "]
    return next(iter([*even, *some]), usual)


def _lengths(lines: Sequence[str], separator: str) -> list[int]:
    return [len(cells) for _, cells in _rows(lines, separator, strict=False)]


def _fitted(line: int, cells: list[str], names: Sequence[str], file: str) -> list[str]:
    """Cells of one row, empty ones added at its end."""
    if len(cells) > len(names):
        raise TableError(
            f"Cannot read {file}: line {line} has {len(cells)} cells where the header has {len(names)} column names. "
            f"Mend that line, or quote cells that hold a separator."
        )
    return [*cells, *itertools.repeat("", len(names) - len(cells))]
