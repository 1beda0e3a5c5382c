"""Texts with labels, and questions, in whatever file they come: JSONL, lists, tables, one a line; packed or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from ..errors import CorpusError, DataError
from ..language.files import Asked, asked_of, json_objects
from ..words.corpus.encodings import told_aloud, told_encoding
from ..words.corpus.packed import DAMAGE, opened, plain_name
from ..words.corpus.table_rows import LOOKED_AT, told_separator
from .chosen_columns import meant
from .columns import empty
from .table_files import READERS, read_frame

Record: TypeAlias = tuple[int, Mapping[str, Any]]
"""The line at which it stands (in a list, its place; in a table, the row as spreadsheets count), and its fields."""

JSON = (".jsonl", ".ndjson", ".json")
LINES = (".txt", ".text", ".md", "")
BINARY = (".xlsx", ".xlsm", ".parquet", ".pq")
TABLES = tuple(ending for ending in READERS if ending not in (*JSON, *LINES, ".npy", ".npz"))


def read_texts(path: Path, field: str = "text") -> list[str]:
    """The texts of a file.

    Args:
        path: JSONL, a JSON list of objects or of texts, a table, or one text a line.
        field: Of each object, or a column.

    Returns:
        In order.

    Raises:
        DataError: If there is no such file or field, or a record has no text.
    """
    return [_text_of(path, line, record, field, "--field") for line, record in records(path, field)]


def read_labelled(path: Path, text: str, label: str, *, optional: bool = False) -> tuple[list[str], list[str]]:
    """The texts and labels of a file.

    Args:
        path: As for `read_texts`.
        text: The field of the texts.
        label: The field of the labels.
        optional: Whether a file without labels will do.

    Returns:
        As many of both; no labels if there are none and none are needed.

    Raises:
        DataError: If a record lacks a field, or some have labels and some have none.
    """
    texts, labels = list[str](), list[str]()
    for line, record in records(path, text):
        texts.append(_text_of(path, line, record, text, "--text"))
        found = _label_of(record.get(label))
        if found:
            labels.append(found)
        elif not optional or (label in record and found is None and record[label] is not None):
            raise DataError(_without(path, line, record, label, "--label", "a label"))
    if labels and len(labels) != len(texts):
        raise DataError(f"Of the {len(texts)} texts of {path}, {len(labels)} have a label; needed all or none.")
    return texts, labels


def read_questions(path: Path) -> Asked:
    """The questions of a file.

    Args:
        path: JSONL, or a JSON list of objects.

    Returns:
        Questions in words.

    Raises:
        DataError: If there is no such file, it holds no JSON, or a line is no question.
    """
    text = _decoded(path)
    if plain_name(path).lower().endswith(TABLES) or not text.lstrip().startswith(("{", "[", '"')):
        raise DataError(
            f'{path} holds no JSON; needed a question in each line, such as {{"template": "The nurse said that '
            f'{{he/she}} was late."}} or {{"prompt": "The nurse said that", "completion": " he", "against": " she"}}.'
        )
    return asked_of(json_objects(text, path), str(path))


def guessed(*paths: Path | None) -> list[str]:
    """Sentences about files whose encoding was told from their bytes alone.

    Args:
        paths: That were read.

    Returns:
        One for each of them.
    """
    found = list[str]()
    for path in paths:
        if path is not None and Path(plain_name(path)).suffix.lower() not in BINARY:
            with opened(path) as (file, _):
                encoding = told_encoding([file.read()])
            if told_aloud(encoding, path.name):
                found.append(f"Read {path.name} as {encoding}, as it is not UTF-8. If letters look wrong, save it so.")
    return found


def records(path: Path, field: str) -> Sequence[Record]:
    """The records of a file.

    Args:
        path: As for `read_texts`.
        field: That a text which stands alone is called by.

    Returns:
        At least one.

    Raises:
        DataError: If it is missing, damaged, empty, or no JSON or table as its name says.
    """
    try:
        name = plain_name(path).lower()
    except CorpusError as error:
        raise DataError(str(error)) from error
    ending = Path(name).suffix
    if ending in TABLES and path.is_file():
        return _rows(path)
    text = _decoded(path)
    if ending in JSON:
        return json_objects(text, path, field)
    rows = [(number, row.removesuffix("\r")) for number, row in enumerate(text.split("\n"), 1) if row.strip()]
    if not rows:
        raise DataError(f"{path} is empty; needed a text in each line.")
    if rows[0][1].lstrip().startswith("{") and _is_json(rows[0][1]):
        raise DataError(f"{path} holds JSON, and its name says that it is plain text. Name it with .jsonl at its end.")
    return [(number, {field: row}) for number, row in rows]


def _is_json(row: str) -> bool:
    try:
        json_objects(row, Path("row"))
    except DataError:
        return False
    return True


def _rows(path: Path) -> list[Record]:
    """The rows of a table as text, without cells that are empty; the first below the header is the second."""
    frame, _ = read_frame(path, separator=_separator(path))
    if not len(frame):
        raise DataError(f"{path} has no rows below its header; needed a text in each.")
    columns = {str(name): _cells(frame[name]) for name in frame.columns}
    return [
        (row + 2, {name: cells[row] for name, cells in columns.items() if cells[row]})
        for row in range(len(frame))
    ]  # fmt: skip


def _separator(path: Path) -> str | None:
    """Of a text file: the blanks of a text set no cells apart, though they may in a table of numbers."""
    if not plain_name(path).lower().endswith((".csv", ".tsv", ".tab")):
        return None
    return told_separator(_decoded(path).split("\n")[:LOOKED_AT])


def _cells(cells: pd.Series) -> list[str]:
    return ["" if empty(cell) else cell if isinstance(cell, str) else _label_of(cell) or str(cell) for cell in cells]


def _decoded(path: Path) -> str:
    """The text of a file in the encoding that its bytes tell."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; needed a file.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        with opened(path) as (file, _):
            content = file.read()
        return content.decode(told_encoding([content])).removeprefix("\ufeff")
    except CorpusError as error:
        raise DataError(str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: {error}. Save it as UTF-8.") from error
    except DAMAGE as error:
        raise DataError(f"{path} is damaged, or was not copied to its end: {error}.") from error


def _text_of(path: Path, line: int, record: Mapping[str, Any], field: str, option: str) -> str:
    if not isinstance(record.get(field), str):
        raise DataError(_without(path, line, record, field, option, "a text"))
    return record[field]


def _label_of(cell: Any) -> str | None:
    """A label as text: 1.0 as "1"; nothing if it is none."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return str(cell) if isinstance(cell, bool) else None
    return None if cell != cell else str(int(cell)) if cell == round(cell) else str(cell)


def _without(path: Path, line: int, record: Mapping[str, Any], field: str, option: str, needed: str) -> str:
    """Names the fields of a record that lacks one, or its odd content."""
    if field in record:
        shown = "null" if record[field] is None else repr(record[field])[:60]
        return f"Line {line} of {path} holds {shown} in {field!r}; needed {needed}."
    return (
        f"Line {line} of {path} has the fields {list(record)}; needed {field!r}, {needed}: {option} NAME."
        f"{meant(field, record)}"
    )
