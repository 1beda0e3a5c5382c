"""Records of files: plain text, tables, JSONL, WikiExtractor output and the Wiki Neutrality Corpus."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crossfluence.errors import CorpusError

from .binary import binary_rows
from .json_rows import NotText, Row, json_rows, paths_into
from .packed import plain_name
from .table_rows import csv_rows, listed, table_rows, tsv_rows
from .text import lines

FORMATS = ("text", "csv", "tsv", "jsonl", "wikiextractor", "wnc", "xlsx", "parquet")
ENDINGS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
TEXT_COLUMNS = {
    "text", "sentence", "description", "plot", "content", "body", "paragraph", "document", "abstract", "summary",
    "story", "review", "comment",
}  # fmt: skip
"""Names of columns that are taken for the text if there is exactly one of them."""

LIKE_TEXT = 5
"""Words of a cell, from which it is hardly the name of a column."""

SIDES = ("biased", "neutral")
WNC_NAME = re.compile(r"(biased\.(full|word)|neutral|unbiased)(\.(train|dev|test))?")
WNC_CELLS = 5
"""id, src_tok, tgt_tok, src_raw, tgt_raw; some rows go on with tags."""

LIST_INSIDE = re.compile(r'\{\s*"(\w+)"\s*:\s*\[\s*\{')
NO_TEXT = {
    "<html": "a web page", "<!doctype": "a web page", "<?xml": "XML", "%pdf": "a PDF",
    "{\\rtf": "a file of a word processor",
}  # fmt: skip
"""Files with marks between the words, by how they begin."""

DOC = re.compile(r'(\w+)="(.*?)"(?=\s+\w+="|\s*>$)')
"""An attribute of `<doc ...>`; titles may hold quotes."""


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
    other = next((kind for mark, kind in NO_TEXT.items() if first.lower().startswith(mark)), None)
    if other is not None:
        raise CorpusError(
            f"{path.name} is {other}, and no plain text. Save its text, or pass format='text' to read it as it is."
        )
    if name.endswith(".json") and first.startswith("["):
        raise CorpusError(
            f"{path.name} holds one JSON list; needed JSONL, one object a line. "
            f"Type: jq -c '.[]' FILE.json > FILE.jsonl"
        )
    if name.endswith(".json") and (inside := LIST_INSIDE.match(start)):
        raise CorpusError(
            f"{path.name} holds one JSON object with a list in {inside[1]!r}; needed JSONL, one object a line. "
            f"Type: jq -c '.{inside[1]}[]' FILE.json > FILE.jsonl"
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
        return _texts(binary_rows(path, format, column, header=header), column, name)
    text = lines(path, encoding, advance)
    if format in {"text", "wikiextractor"} and column is not None:
        raise CorpusError(
            f"Got column={column!r}, but {name} is read as {format}, which has no columns. "
            f"Leave column out, or pass format='csv', 'tsv' or 'jsonl'."
        )
    if format == "csv":
        return _texts(table_rows(csv_rows(text, name), name, header=header), column, name)
    if format == "tsv":
        return _texts(table_rows(tsv_rows(text, name), name, header=header), column, name)
    if format == "jsonl":
        return _texts(json_rows(text, name, column), column, name, sparse=True)
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
        chosen = chosen or _columns(cells, column, name, named=not sparse)
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
        fields = listed([path.removeprefix(f"{key}.") for path in inner])
        raise CorpusError(
            f"Line {line} of {name} holds an object in {key!r}, with the fields {fields}; needed text. "
            f"Name one of them: {_option(inner[0])}."
        )
    if isinstance(cell, NotText):
        inside = paths_into(cell)
        advice = f"Name one of its members: {_option(f'{key}.{inside[0]}')}" if inside else "Name another column"
        raise CorpusError(
            f"Line {line} of {name} holds {_kind(cell)} in {key!r}: {cell:.60}; needed text in quotes. "
            f"{advice}, or write it as text."
        )


def _kind(cell: str) -> str:
    return {"[": "a list", "{": "an empty object"}.get(cell[0], "true or false")


def _option(column: str) -> str:
    return f"column={column!r}, or --column {shlex.quote(column)} on the command line"


def _columns(cells: Mapping[str, str], column: str | None, name: str, *, named: bool) -> Mapping[str, str]:
    """The columns that hold the text, by side; the side is empty if there is only one text in a row."""
    if column is not None:
        return {"": column}
    names = list(cells)
    if set(SIDES) <= set(names):
        return {side: side for side in SIDES}
    usual = [key for key in names if key.lower() in TEXT_COLUMNS]
    if len(usual) == 1 or len(names) == 1:
        return {"": (usual or names)[0]}
    came = f"{len(usual)} of its columns may be it" if usual else "no column has a usual name for it"
    wordy = max(usual or names, key=lambda key: len(cells[key].split()))
    first = "; if these are no names but a first row, pass header=False" if named and not _numbered(names) else ""
    if len(wordy.split()) >= LIKE_TEXT:
        first, wordy = ", and pass header=False, as the first row reads like text", str(names.index(wordy))
    raise CorpusError(
        f"Which column of {name} holds the text? {came[0].upper()}{came[1:]}; its columns are {listed(names)}. "
        f"Pass column={wordy!r} or another{first}."
    )


def _numbered(names: Sequence[str]) -> bool:
    return list(names) == [str(place) for place in range(len(names))]


def _no_column(column: str, names: Sequence[str], name: str) -> CorpusError:
    return CorpusError(f"{name} has no column {column!r}; its columns are {listed(names)}.")


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
    for line, cells in tsv_rows(text, name):
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
