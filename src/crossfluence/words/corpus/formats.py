"""Records of files: plain text, tables, JSONL, WikiExtractor output and the Wiki Neutrality Corpus."""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from crossfluence.errors import CorpusError

from .binary import binary_rows
from .packed import plain_name
from .text import lines

FORMATS = ("text", "csv", "tsv", "jsonl", "wikiextractor", "wnc", "xlsx", "parquet")
ENDINGS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
TEXT_COLUMNS = {
    "text", "sentence", "description", "plot", "content", "body", "paragraph", "document", "abstract", "summary",
    "story", "review", "comment",
}  # fmt: skip
"""Names of columns that are taken for the text if there is exactly one of them."""

SIDES = ("biased", "neutral")
WNC_NAME = re.compile(r"(biased\.(full|word)|neutral|unbiased)(\.(train|dev|test))?")
WNC_CELLS = 5
"""id, src_tok, tgt_tok, src_raw, tgt_raw; some rows go on with tags."""

DOC = re.compile(r'(\w+)="(.*?)"(?=\s+\w+="|\s*>$)')
"""An attribute of `<doc ...>`; titles may hold quotes."""

CELL_LIMIT = 1 << 27
"""Characters of one CSV cell: Python's own limit of 131,072 is short of many articles."""

Row: TypeAlias = tuple[int, Mapping[str, str]]
"""The line at which a row begins, and its cells by column."""


class NotText(str):
    """A JSON list, an empty object, true or false, as shown among the other columns; no text column may hold one."""

    __slots__ = ()


class Record(NamedTuple):
    """A record of a file: its line, its texts by side, its other columns, and its document if that is not itself."""

    line: int
    texts: Mapping[str, str]
    fields: Mapping[str, str]
    document: str = ""


def guess(path: Path, start: str) -> str:
    """The format of a file, told from its beginning and its name.

    Args:
        path: The file.
        start: The beginning of its text.

    Returns:
        One of `FORMATS`.

    Raises:
        CorpusError: If it is of a format that must be converted first.

    Example:
        >>> guess(Path("plots.jsonl.gz"), '{"plot": "In space."}'), guess(Path("notes"), "One line.")
        ('jsonl', 'text')
    """
    name, start = plain_name(path).lower(), start.lstrip()
    first = start.partition("\n")[0].strip()
    if first.startswith("<doc id="):
        return "wikiextractor"
    if first.startswith("<mediawiki"):
        raise CorpusError(f"{path.name} is a dump of a wiki as XML. Run WikiExtractor on it, and read what it writes.")
    if name.endswith(".json") and first.startswith("["):
        raise CorpusError(
            f"{path.name} holds one JSON list; needed JSONL, one object a line. "
            f"Type: jq -c '.[]' FILE.json > FILE.jsonl"
        )
    if Path(name).suffix in ENDINGS:
        return ENDINGS[Path(name).suffix]
    if WNC_NAME.fullmatch(name) and first.count("\t") >= WNC_CELLS - 1:
        return "wnc"
    return "jsonl" if first.startswith("{") and first.endswith("}") else "text"


def records(
    path: Path,
    format: str,  # noqa: A002  # the plain word for it
    column: str | None,
    encoding: str,
    advance: Callable[[int], Any] | None = None,
    *,
    header: bool = True,
) -> Iterator[Record]:
    """The records of one file, one after the other.

    Args:
        path: The file.
        format: One of `FORMATS`.
        column: That holds the text, or None to tell it.
        encoding: Of the text.
        advance: Is called with bytes read since its last call.
        header: Whether the first row of a table holds column names; else they are "0", "1", ...

    Returns:
        An iterator; the file is opened at its first record.

    Raises:
        CorpusError: If there is no such column, or a record is malformed; with the line.
    """
    name = path.name
    if format in {"xlsx", "parquet"}:
        return _texts(binary_rows(path, format, header=header), column, name)
    text = lines(path, encoding, advance)
    if format in {"text", "wikiextractor"} and column is not None:
        raise CorpusError(
            f"Got column={column!r}, but {name} is read as {format}, which has no columns. "
            f"Leave column out, or pass format='csv', 'tsv' or 'jsonl'."
        )
    if format == "csv":
        return _texts(_table(_csv_rows(text, name), name, header=header), column, name)
    if format == "tsv":
        return _texts(_table(_tsv_rows(text), name, header=header), column, name)
    if format == "jsonl":
        return _texts(_json_rows(text, name), column, name, sparse=True)
    if format == "wikiextractor":
        return _articles(text, name)
    if format == "wnc":
        return _pairs(text, column, name)
    return (Record(number, {"": line}, {}) for number, line in enumerate(text, 1))


def _texts(rows: Iterable[Row], column: str | None, name: str, *, sparse: bool = False) -> Iterator[Record]:
    """Records of a table; in a sparse one rows may lack the column, so that it is missing is known only at the end."""
    chosen: Mapping[str, str] = {}
    seen: dict[str, None] = {}
    for line, cells in rows:
        seen |= dict.fromkeys(cells)
        if column is not None and column not in seen and not sparse:
            break
        chosen = chosen or _columns(list(cells), column, name)
        for key in chosen.values():
            _refuse_other_than_text(cells, key, line, name)
        texts = {side: cells[key] for side, key in chosen.items() if key in cells}
        yield Record(line, texts, {key: cell for key, cell in cells.items() if key not in chosen.values()})
    if seen and column is not None and column not in seen:
        raise _no_column(column, list(seen), name)


def _refuse_other_than_text(cells: Mapping[str, str], key: str, line: int, name: str) -> None:
    """A column of JSONL may hold an object in one row and text in the next."""
    cell = cells.get(key)
    if cell is None and (inner := [path for path in cells if path.startswith(f"{key}.")]):
        fields = _listed([path.removeprefix(f"{key}.") for path in inner])
        raise CorpusError(
            f"Line {line} of {name} holds an object in {key!r}, with the fields {fields}; needed text. "
            f"Name one of them: {_option(inner[0])}."
        )
    if isinstance(cell, NotText):
        raise CorpusError(
            f"Line {line} of {name} holds {_kind(cell)} in {key!r}: {cell:.60}; needed text in quotes. "
            f"Name another column, or write it as text."
        )


def _kind(cell: str) -> str:
    return {"[": "a list", "{": "an empty object"}.get(cell[0], "true or false")


def _option(column: str) -> str:
    return f"column={column!r}, or --column {shlex.quote(column)} on the command line"


def _columns(names: Sequence[str], column: str | None, name: str) -> Mapping[str, str]:
    """The columns that hold the text, by side; the side is empty if there is only one text in a row."""
    if column is not None:
        return {"": column}
    if set(SIDES) <= set(names):
        return {side: side for side in SIDES}
    usual = [key for key in names if key.lower() in TEXT_COLUMNS]
    if len(usual) == 1 or len(names) == 1:
        return {"": (usual or names)[0]}
    came = f"{len(usual)} of its columns may be it" if usual else "no column has a usual name for it"
    raise CorpusError(
        f"Which column of {name} holds the text? {came[0].upper()}{came[1:]}; its columns are {_listed(names)}. "
        f"Pass column={names[-1]!r} or another; if these are no names but a first row, pass header=False."
    )


def _no_column(column: str, names: Sequence[str], name: str) -> CorpusError:
    hint = " It seems to be separated by semicolons: save it with commas." if _semicolons(names) else ""
    return CorpusError(f"{name} has no column {column!r}; its columns are {_listed(names)}.{hint}")


def _semicolons(names: Sequence[str]) -> bool:
    return len(names) == 1 and ";" in names[0]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name:.40}".join("''") for name in names[:12])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 12 else "")


def _table(rows: Iterable[tuple[int, list[str]]], name: str, *, header: bool) -> Iterator[Row]:
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
            raise CorpusError(
                f"Line {line} of {name} has {len(cells)} cells, but its {first} has {len(names)}: {_listed(names)}. "
                f"Mend that line; a cell that holds the separator must be quoted, which only .csv allows."
            )
        yield line, dict(zip(names, cells, strict=True))


def _csv_rows(text: Iterator[str], name: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(text, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
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


def _tsv_rows(text: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text, 1):
        if line.strip():
            yield number, line.rstrip("\r\n").split("\t")


def _json_rows(text: Iterator[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
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
        yield number, _flat(row) | {key: _shown(value) for key, value in row.items() if not _inner(value)}


def _flat(row: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Cells by path, such as "doc.text", of objects inside of objects."""
    found: dict[str, str] = {}
    for key, value in row.items():
        found |= _flat(value, f"{above}{key}.") if _inner(value) else {f"{above}{key}": _shown(value)}
    return found


def _inner(value: object) -> bool:
    return isinstance(value, dict) and bool(value)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    shown = "" if value is None else json.dumps(value, ensure_ascii=False)
    return NotText(shown) if isinstance(value, (bool, list, dict)) else shown


def _articles(text: Iterator[str], name: str) -> Iterator[Record]:
    """Lines of WikiExtractor output, except each article's title, which stands above its text."""
    article: dict[str, str] = {}
    title, number = "", 0
    for number, raw in enumerate(text, 1):
        line = raw.strip()
        if line.startswith("<doc id="):
            if article:
                raise _cut_off(article, number, name)
            article = {key: html.unescape(value) for key, value in DOC.findall(line)}
            title = article.get("title", "")
        elif line == "</doc>":
            article = {}
        elif line and not article:
            raise CorpusError(
                f"Line {number} of {name} stands outside of <doc ...> and </doc>: {line[:60]!r}. "
                f"If it is not WikiExtractor output, pass format='text'."
            )
        elif line:
            shown = html.unescape(line) if "&" in line else line
            if shown != title:
                yield Record(number, {"": shown}, article, article.get("title") or article["id"])
            title = ""  # only the first line can be it
    if article:
        raise _cut_off(article, number, name)


def _cut_off(article: Mapping[str, str], number: int, name: str) -> CorpusError:
    label = article.get("title") or article["id"]
    return CorpusError(
        f"The article {label!r} has no </doc> before line {number} of {name}; the file seems to be cut off. "
        f"Fetch or make it again."
    )


def _pairs(text: Iterator[str], column: str | None, name: str) -> Iterator[Record]:
    """Rows of the corpus as released; a row whose two sides are the same is a neutral sentence."""
    if column is not None and column not in SIDES:
        raise _no_column(column, SIDES, name)
    for line, cells in _tsv_rows(text):
        if len(cells) < WNC_CELLS:
            raise CorpusError(
                f"Line {line} of {name} has {len(cells)} cells; needed id, src_tok, tgt_tok, src_raw, tgt_raw, "
                f"separated by tabs. To drop such lines, type: awk -F'\\t' 'NF >= 5' FILE > WHOLE"
            )
        sides = dict(zip(SIDES, cells[3:5], strict=True))
        if sides["biased"].strip() == sides["neutral"].strip():
            del sides["biased"]
        texts = {side: sentence for side, sentence in sides.items() if column in {None, side}}
        yield Record(line, texts, {"id": cells[0]})
