"""Tables in text: encoding, separator and header are told, or named; rows that do not fit are named by their line."""

from __future__ import annotations

import codecs
import csv
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from ..words.corpus.encodings import told_aloud, told_encoding
from .columns import TableError
from .numerals import dotted, with_decimal_points
from .units import is_amount

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar", ":": "colon", " ": "blank"}
NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|", "blank": " ", "space": " "}
"""Separators as a person types them, beside the sign itself."""

NAMED_FIRST = re.compile(r'"?sep=(\\t|.)"?', re.IGNORECASE)
COMMENT = re.compile(r"(?:#(?!\s*[,;|\t])|%|//)\s?")
ODD_SEPARATORS = re.compile(r"[^\w\s.\-+'\"()\[\]{}<>/\\%$€£?!*=&@#°]|[\x01-\x08\x1c-\x1f]")
"""Signs between cells that are looked for when no usual one is found."""

LOOKED_AT = 50  # rows that tell the separator
MOST_TITLES = 6  # lines above a table
CELL_LIMIT = 1 << 27  # characters; Python's own limit is 131,072


def from_text(
    content: bytes, name: str, *, header: bool, encoding: str | None, separator: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """The table in a text.

    Args:
        content: Bytes, unpacked.
        name: Of the file.
        header: Whether the first line holds column names.
        encoding: Of the text; default: told from the bytes.
        separator: Of cells; default: told from the first rows.

    Returns:
        A frame of text, and sentences about what was guessed.

    Raises:
        TableError: If it cannot be read as a table.
    """
    told = encoding or told_encoding([content])
    text = content.decode(_known(told))
    if not text.strip():
        raise TableError(f"{name} is empty.")
    lines, said_of_cut = _without_marks(text.lstrip("\ufeff").split("\n" if "\n" in text else "\r"), name)
    usual = "\t" if name.lower().endswith((".tsv", ".tab")) else ","
    cut = _named(separator) or said_of_cut or _separator(lines, usual)
    lines = lines if header is False else _with_noted_names(lines, cut)
    try:
        rows = _rows(lines, cut)
    except csv.Error as error:
        raise TableError(f'Cannot read {name}: {error}. Perhaps a quote (") is opened and not closed.') from None
    above = titles([cells for _, cells in rows[:LOOKED_AT]]) if header else 0
    rows = rows[above:]
    names = _names(rows[0][1]) if header else [str(place) for place in range(max(len(cells) for _, cells in rows))]
    if header and all(is_number(column) for column in names):
        raise TableError(
            f"The first line of {name} must hold column names, but it is all numbers: {listed(names)}. "
            f"Add a header line, or type --no-header; if they are names, put a letter before each, such as y{names[0]}."
        )
    body = [_fitted(line, cells, names, name) for line, cells in rows[int(header) :]]
    names, body, dropped = _without_copies(names, body)
    refuse_two_of_one_name(names, name)
    frame = pd.DataFrame(body, columns=pd.Index(names), dtype=object)
    guessed = None if encoding else told_aloud(told, name)
    said = [guessed] if guessed else []
    if dropped:
        said.append(f"Read once, as they stand twice in {name} with the same content: {listed(dropped)}.")
    frame = with_decimal_points(frame, name, commas_separate=cut == ",")
    return frame, [*said, *(dotted(frame) if cut == ";" else [])]


def titles(rows: Sequence[Sequence[str]]) -> int:
    """The number of rows above a header that hold a title, and no column names.

    Args:
        rows: Cells of the first rows.

    Returns:
        How many rows of one cell at the left, or of fewer cells than others, stand above one that holds nothing but
        text, with a row of numbers below it.
    """
    for place, row in enumerate(rows[:-1]):
        held, below = [cell for cell in row if cell.strip()], rows[place + 1]
        if (
            held
            and len(held) == len(row) == len(below)
            and not any(map(is_number, held))
            and any(map(is_number, below))
        ):
            return place  # the header
        short = len(row) < len(rows[-1]) and not any(map(is_number, held))
        if held and not short and not (len(held) == 1 and row[0].strip()):
            return 0
    return 0


def _without_marks(lines: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """Lines without those that are no part of the table, and the separator if the first line names it, for Excel."""
    if "\0" in (zero := next((line for line in lines if "\0" in line), "")):
        raise TableError(
            f"Line {list(lines).index(zero) + 1} of {name} holds a zero byte, so it is damaged, or no text in this "
            f"encoding. Name the encoding, such as --encoding utf-16, or save the file again."
        )
    whole = list(lines)
    while whole and whole[-1].strip("\x1a \r") == "" and "\x1a" in whole[-1]:  # an end mark of DOS
        whole.pop()
    named = NAMED_FIRST.fullmatch(whole[0].strip())
    return (["", *whole[1:]], named[1].replace("\\t", "\t")) if named else (whole, None)


def _with_noted_names(lines: list[str], separator: str) -> list[str]:
    """Lines without comments above the table; the last of these holds the names if it has as many cells as the rows."""
    first = next((place for place, line in enumerate(lines) if line.strip() and not COMMENT.match(line)), 0)
    notes = [place for place in range(first) if lines[place].strip()]
    if not notes:
        return lines
    names = COMMENT.sub("", lines[notes[-1]])
    cells, below = _rows([names, lines[first]], separator, strict=False)[:2]
    fit = len(cells[1]) == len(below[1]) > 1 and not all(map(is_number, cells[1])) and any(map(is_number, below[1]))
    return [*[""] * (first - 1), names if fit else "", *lines[first:]]


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
    return [cell.strip(" \t\r\n\u00a0\u200b\ufeff") or f"Unnamed: {place}" for place, cell in enumerate(cells)]


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
    """The one that cuts the first rows, below titles, into equally many cells; the usual one if several do or none."""
    head = [line for line in lines[:LOOKED_AT] if not COMMENT.match(line)]
    for begin in range(min(MOST_TITLES, len(head))):
        below = head[begin:]
        even = [one for one in [usual, *SEPARATORS] if _is_even(_lengths(below, one))]
        if len(below) > 2 or not begin:
            if even and even[0] == "," and ";" in even and _share(below, ";") > _share(below, ","):
                return ";"  # the commas are decimal ones
            if even:
                return even[0]
    counted = {one: _lengths(head, one) for one in SEPARATORS}
    some = [one for one in [usual, *SEPARATORS] if (counted[one] or [1])[0] > 1 and one not in ": "]
    odd = [one for one in dict.fromkeys(ODD_SEPARATORS.findall(head[0] if head else "")) if one not in SEPARATORS]
    return next(iter([*some, *(one for one in odd if _is_even(_lengths(head, one)))]), usual)


def _is_even(lengths: Sequence[int]) -> bool:
    return len(lengths) > 0 and lengths[0] > 1 and len(set(lengths)) == 1


def _share(lines: Sequence[str], separator: str) -> float:
    """The share of cells that are numbers, with decimal points or commas."""
    cells = [cell.strip() for _, row in _rows(lines, separator, strict=False) for cell in row]
    return sum(map(is_amount, cells)) / len(cells)


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
