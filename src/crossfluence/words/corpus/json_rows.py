"""Rows of JSONL: cells by path, such as "doc.text" and "messages.0.content", of objects and lists inside of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from crossfluence.errors import CorpusError

Row: TypeAlias = tuple[int, Mapping[str, str]]
"""The line at which a row begins, and its cells by column."""


class NotText(str):
    """A JSON list, an empty object, true or false, as shown among the other columns; no text column may hold one."""

    __slots__ = ()


def json_rows(text: Iterator[str], name: str, column: str | None = None) -> Iterator[Row]:
    """The rows of JSONL, one object a line.

    Args:
        text: Lines.
        name: Of the file.
        column: A path that may lead into a list.

    Yields:
        A row; of lists only what the path leads to has a cell of its own.

    Raises:
        CorpusError: If a line is no object, or holds a field twice.
    """
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except CorpusError as error:
            raise CorpusError(f"Line {number} of {name} holds {error}") from None
        except (ValueError, RecursionError) as error:
            raise CorpusError(
                f"Line {number} of {name} is not JSON: {str(error).partition(':')[0]} "
                f'at column {getattr(error, "colno", 1)}. Needed one object a line, such as {{"text": "..."}}; '
                f"for objects over several lines, type: jq -c . FILE > FILE.jsonl"
            ) from None
        if not isinstance(row, dict):
            raise CorpusError(
                f"Line {number} of {name} holds a JSON {type(row).__name__}; "
                f'needed an object, such as {{"text": "..."}}.'
            )
        yield number, cells_of(row, column)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise CorpusError(f"the field {twice!r} twice in one object; name each otherwise.")
    return found


def cells_of(row: Mapping[str, Any], column: str | None = None) -> dict[str, str]:
    """Cells by path of an object; fields of its own come before paths of the same name.

    Args:
        row: As read.
        column: A path that may lead into a list, and then has a cell too.

    Returns:
        Text by path, such as "doc.text".
    """
    cells = _flat(row) | {key: shown(value) for key, value in row.items() if not _inner(value)}
    if column is not None and column not in cells and (inside := at(row, column)) is not None:
        cells[column] = shown(inside)
    return cells


def at(row: object, path: str) -> object:
    """The value at a path through objects and lists, such as "messages.0.content".

    Args:
        row: An object.
        path: Names of fields and numbers of members from 0, with points between them.

    Returns:
        The value; None if the path leads nowhere, or to an object.
    """
    for part in path.split("."):
        if isinstance(row, Mapping) and part in row:
            row = row[part]
        elif isinstance(row, list) and part.isdecimal() and int(part) < len(row):
            row = row[int(part)]
        else:
            return None
    return None if _inner(row) else row


def paths_into(cell: str) -> list[str]:
    """Paths from a list to the texts in its first member, such as "0.content".

    Args:
        cell: A list as JSON.

    Returns:
        At most three paths.
    """
    try:
        first = json.loads(cell)[0]
    except (ValueError, LookupError, TypeError):
        return []
    if isinstance(first, str):
        return ["0"]
    inside = _flat(first) if isinstance(first, dict) else {}
    texts = [key for key, value in inside.items() if not isinstance(value, NotText)]
    return [f"0.{key}" for key in sorted(texts, key=lambda key: -len(inside[key]))][:3]


def _flat(row: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Cells by path, such as "doc.text", of objects inside of objects."""
    found: dict[str, str] = {}
    for key, value in row.items():
        found |= _flat(value, f"{above}{key}.") if _inner(value) else {f"{above}{key}": shown(value)}
    return found


def _inner(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


def shown(value: object) -> str:
    """A value as text; a list, an empty object and true as JSON that is no text.

    Args:
        value: As read.

    Returns:
        Empty text for nothing.
    """
    if isinstance(value, str):
        return value
    text = "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return NotText(text) if isinstance(value, (bool, list, Mapping)) else text
