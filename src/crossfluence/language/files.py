"""Training texts and questions as they stand in files, read without a model."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossfluence.errors import DataError

from .items import Pair, Template

TEMPLATES, PAIRS = "pronouns", "pairs"  # names of the questions that all templates, and all pairs, make up
TEXTS = ("prompt", "completion", "against", "template", "more", "less")


@dataclass(frozen=True)
class Asked:
    """Questions in words, before there is a model to ask.

    Attributes:
        completions: By name, the line and its object, with prompt and completion, and perhaps against.
        templates: By name, templates such as `"The nurse said that {he/she} was late."`.
        pairs: By name, pairs of texts.
        source: The file.
    """

    completions: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    templates: dict[str, list[Template]] = field(default_factory=dict)
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    source: str = ""

    @property
    def texts(self) -> dict[str, list[str]]:
        """By the name of each question, the texts that a model reads for it."""
        found = {
            name: [record["prompt"] + record[each] for each in ("completion", "against") if each in record]
            for name, (_, record) in self.completions.items()
        }
        found |= {
            name: [each.filled(words)[0] for each in some for words in (each.first, each.second)]
            for name, some in self.templates.items()
        }
        return found | {name: [t for each in some for t in (each.more, each.less)] for name, some in self.pairs.items()}


def read_texts(path: Path, field: str = "text") -> list[str]:
    """The texts of a file: JSONL or a table with a field, or one a line.

    Args:
        path: `.jsonl`, `.json`, `.csv` or `.tsv`, or plain text.
        field: Of each object, or a column.

    Returns:
        In order.

    Raises:
        DataError: If there is no such file or field, or no text.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".json")):
        rows = json_lines(path)
    elif name.endswith((".csv", ".tsv")):
        rows = _cells(path, "\t" if name.endswith(".tsv") else ",")
    else:
        return [row for _, row in _lines(path)]
    texts = []
    for line, record in rows:
        if not isinstance(record.get(field), str):
            raise DataError(
                f"Line {line} of {path} has the fields {list(record)}; needed {field!r}, a text: --field NAME."
            )
        texts.append(record[field])
    return texts


def read_asked(path: Path) -> Asked:
    """The questions of a file, one a line.

    Args:
        path: As for `read_questions`.

    Returns:
        Questions in words.

    Raises:
        DataError: If a line is no question, or two have one name.
    """
    completions = dict[str, tuple[int, dict[str, str]]]()
    templates, pairs, first = list[Template](), list[Pair](), dict[str, int]()
    for line, record in json_lines(path):
        for name in TEXTS:
            if not isinstance(record.get(name, ""), str):
                raise DataError(f"Line {line} of {path} has {name}: {record[name]!r}; needed a text.")
        if "template" in record:
            templates.append(Template.of(record["template"]))
            first.setdefault(TEMPLATES, line)
        elif {"more", "less"} <= set(record):
            pairs.append(Pair(record["more"], record["less"]))
            first.setdefault(PAIRS, line)
        elif {"prompt", "completion"} <= set(record):
            name = str(record.get("name", _named(record)))
            if name in completions:
                raise DataError(
                    f"Lines {completions[name][0]} and {line} of {path} are both the question {name!r}; needed one of "
                    f'them, or other names: {{"name": "first", ...}}.'
                )
            completions[name] = line, record
        else:
            raise DataError(
                f"Line {line} of {path} has the fields {list(record)}; needed prompt and completion (and against), "
                f"template, or more and less."
            )
    for name in completions.keys() & first.keys():
        raise DataError(
            f"Line {completions[name][0]} of {path} is named {name!r}, as the question of line {first[name]} is; "
            f"needed another name."
        )
    named = {TEMPLATES: templates} if templates else {}
    return Asked(completions, named, {PAIRS: pairs} if pairs else {}, str(path))


def _named(record: dict[str, str]) -> str:
    """As `log_probability` and `contrast` name it."""
    both = [record[name] for name in ("completion", "against") if name in record]
    return " - ".join(f"{record['prompt']} -> {each}" for each in both)


def json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, or of a JSON file that holds a list.

    Args:
        path: One object a line; gzipped or not.

    Returns:
        Line numbers from 1 (in a list, places), and objects.

    Raises:
        DataError: If there is no such file, or a line is no object.
    """
    rows = _lines(path)
    if rows[0][1].lstrip().startswith("["):
        return _listed(path, "\n".join(row for _, row in rows))
    return [(line, _object(path, line, row)) for line, row in rows]


def _listed(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} begins as a list, and is no JSON: {str(error)[:200]}.") from error
    if not rows:
        raise DataError(f"{path} holds an empty list; needed an object for each text.")
    return [(place, _checked(path, place, row)) for place, row in enumerate(rows, 1)]


def _cells(path: Path, separator: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a table with a header, and the lines on which they end."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=separator)
    try:
        rows = [(reader.line_num, {key: value for key, value in row.items() if key is not None}) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a table: {error}.") from error
    if not rows:
        raise DataError(f"{path} has no rows below its header; needed a text in each.")
    return rows


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, by their numbers: as editors count them, not at the line separators of Unicode."""
    rows = [(number, row.removesuffix("\r")) for number, row in enumerate(_text(path).split("\n"), 1) if row.strip()]
    if not rows:
        raise DataError(f"{path} is empty; needed a text or an object in each line.")
    return rows


def _text(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path} is a folder; needed a file.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}.") from error
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged, or was not copied to its end: {error}.") from error


def _object(path: Path, line: int, row: str) -> dict[str, Any]:
    try:
        record = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise DataError(f"Line {line} of {path} is no JSON: {error}.") from error
    return _checked(path, line, record)


def _checked(path: Path, line: int, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(
            f"Line {line} of {path} holds {type(record).__name__}; needed an object such as {{'text': ...}}."
        )
    return record
