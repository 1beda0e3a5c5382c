"""Tables in JSON: one object a line, a list of objects, or columns, rows and cells as pandas writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..words.corpus.encodings import told_encoding
from .columns import TableError


def from_json(content: bytes, path: Path, header: bool) -> pd.DataFrame:
    """The table in a file of JSON; fields of objects inside of objects are named by their path.

    Args:
        content: Bytes, unpacked.
        path: Of the file.
        header: Is of no account: JSON names its fields.

    Returns:
        A frame of what the fields hold.

    Raises:
        TableError: If it is not JSON, holds other things than objects, or a field twice in one object.
    """
    text = content.decode(told_encoding([content])).lstrip("\ufeff").strip()
    if not text:
        raise TableError(f"{path.name} is empty.")
    rows = _objects(text, path.name)
    wrong = next((row for row in rows if not isinstance(row, dict)), None)
    if wrong is not None:
        raise TableError(f'{path.name} holds {wrong!r:.40} where an object such as {{"height": 1.8}} was needed.')
    return pd.DataFrame([_flat(row, path.name) for row in rows], dtype=object)


def _objects(text: str, name: str) -> Sequence[Any]:
    if text.startswith("[") or "\n{" not in text.replace("\r", "\n"):
        return _rows(_parsed(text, name, 1))
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_parsed(line, name, number) for number, line in lines]


def _parsed(text: str, name: str, number: int) -> Any:
    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
            raise TableError(f"{name} holds the field {twice!r} twice in one object; name each otherwise.")
        return found

    try:
        return json.loads(text, object_pairs_hook=object_of)
    except TableError:
        raise
    except (ValueError, RecursionError) as error:
        line = number + getattr(error, "lineno", 1) - 1
        raise TableError(
            f"Line {line} of {name} is not JSON: {str(error).partition(':')[0]}. Needed one object a line, or one list."
        ) from None


def _rows(found: Any) -> Sequence[Any]:
    """The rows in one value: a list, or an object as `DataFrame.to_json` writes it in any of its orientations."""
    if not isinstance(found, dict) or not found:
        return found if isinstance(found, list) else [found] if found else []
    values = list(found.values())
    if {"columns", "data"} <= found.keys() and all(isinstance(row, list) for row in found["data"]):
        return [dict(zip(map(str, found["columns"]), row, strict=False)) for row in found["data"]]
    lists = [value for value in values if isinstance(value, list) and value and isinstance(value[0], dict)]
    if isinstance(found.get("data"), list) and found["data"] in lists:
        return found["data"]
    if len(lists) == 1:
        return lists[0]
    if all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        return [dict(zip(found, row, strict=True)) for row in zip(*values, strict=True)]
    if len(values) > 1 and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        if all(map(str.isdecimal, values[0])) and not all(map(str.isdecimal, found)):
            return [{name: column[row] for name, column in found.items()} for row in values[0]]
        return values
    return [found]


def _flat(row: Mapping[str, Any], name: str, above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        inner = _flat(value, name, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
        if twice := found.keys() & inner.keys():
            raise TableError(f"{name} holds two fields {min(twice)!r} in one row; name each otherwise.")
        found |= inner
    return found
