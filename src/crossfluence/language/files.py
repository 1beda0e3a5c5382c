"""Training texts and questions as they stand in files, read without a model."""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossfluence.errors import DataError

from .items import Pair, Template

TEMPLATES, PAIRS = "pronouns", "pairs"  # names of the questions that all templates, and all pairs, make up
NEAR = 0.85  # likeness of a field's name to one of these, above which it is a slip
KINDS = ({"prompt", "completion", "against"}, {"template"}, {"more", "less"})
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


def read_asked(path: Path) -> Asked:
    """The questions of a file, one a line.

    Args:
        path: As for `read_questions`.

    Returns:
        Questions in words.

    Raises:
        DataError: If a line is no question, or two have one name.
    """
    return asked_of(json_lines(path), str(path))


def asked_of(rows: Sequence[tuple[int, Mapping[str, Any]]], source: str) -> Asked:
    """The questions in some objects.

    Args:
        rows: Line numbers and objects.
        source: Of which they come.

    Returns:
        Questions in words.

    Raises:
        DataError: If an object is no question, or two have one name.
    """
    completions = dict[str, tuple[int, dict[str, str]]]()
    templates, pairs, first = list[Template](), list[Pair](), dict[str, int]()
    for line, given in rows:
        record = dict(given)
        _refuse_misspelt(line, record, source)
        for name in TEXTS:
            if not isinstance(record.get(name, ""), str):
                raise DataError(f"Line {line} of {source} has {name}: {record[name]!r}; needed a text.")
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
                    f"Lines {completions[name][0]} and {line} of {source} are both the question {name!r}; needed one "
                    f'of them, or other names: {{"name": "first", ...}}.'
                )
            completions[name] = line, record
        else:
            raise DataError(
                f"Line {line} of {source} has the fields {list(record)}; needed prompt and completion (and against), "
                f"template, or more and less."
            )
    for name in completions.keys() & first.keys():
        raise DataError(
            f"Line {completions[name][0]} of {source} is named {name!r}, as the question of line {first[name]} is; "
            f"needed another name."
        )
    named = {TEMPLATES: templates} if templates else {}
    return Asked(completions, named, {PAIRS: pairs} if pairs else {}, source)


def _refuse_misspelt(line: int, record: Mapping[str, Any], source: str) -> None:
    """A field that is all but one of a question's would be left out without a word; so would a second question."""
    for name in record:
        near = difflib.get_close_matches(name.strip().lower(), TEXTS, n=1, cutoff=NEAR)
        if name not in TEXTS and near:
            raise DataError(f"Line {line} of {source} has the field {name!r}. Did you mean {near[0]!r}?")
    kinds = [kind for kind in KINDS if kind & record.keys()]
    if len(kinds) > 1:
        raise DataError(
            f"Line {line} of {source} has the fields {list(record)}, of several questions; needed one in each line."
        )


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
    return json_objects(_text(path), path)


def json_objects(text: str, path: Path, alone: str = "") -> list[tuple[int, dict[str, Any]]]:
    """The objects in JSONL, in a JSON list, or one over several lines.

    Args:
        text: One object a line, by line ends as editors count them, not at the line separators of Unicode.
        path: Of the file.
        alone: The field that a text which stands in place of an object is taken for.

    Returns:
        Line numbers from 1 (in a list, places), and objects.

    Raises:
        DataError: If there is nothing, or a line is no object.
    """
    rows = [(number, row.removesuffix("\r")) for number, row in enumerate(text.split("\n"), 1) if row.strip()]
    if not rows:
        raise DataError(f"{path} is empty; needed a text or an object in each line.")
    if rows[0][1].lstrip().startswith("["):
        return [(place, _checked(path, place, row, alone)) for place, row in enumerate(_listed(path, text), 1)]
    if rows[0][1].strip() == "{" and (whole := _one_object(text)):
        return [(rows[0][0], whole)]
    return [(line, _checked(path, line, _parsed(path, line, row), alone)) for line, row in rows]


def _listed(path: Path, text: str) -> list[Any]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} begins as a list, and is no JSON: {str(error)[:200]}.") from error
    if not rows:
        raise DataError(f"{path} holds an empty list; needed an object for each text.")
    return rows


def _one_object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


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


def _parsed(path: Path, line: int, row: str) -> Any:
    try:
        return json.loads(row)
    except (ValueError, RecursionError) as error:
        begun = row.lstrip().startswith(("{", "[", '"'))
        hint = "" if begun else " A table needs .csv or .tsv at the end of its name, and plain text .txt."
        raise DataError(
            f"Line {line} of {path} is no JSON ({str(error)[:200]}); needed an object such as {{'text': ...}} in each "
            f"line.{hint}"
        ) from error


def _checked(path: Path, line: int, record: Any, alone: str) -> dict[str, Any]:
    if alone and isinstance(record, str):
        return {alone: record}
    if not isinstance(record, dict):
        raise DataError(
            f"Line {line} of {path} holds {type(record).__name__}; needed an object such as {{'text': ...}}."
        )
    return record
