"""Corpora in Excel and Parquet files; files of a folder that are no text."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from crossfluence.errors import CorpusError, import_optional

from .json_rows import cells_of, shown
from .packed import DAMAGE, opened, plain_name

BINARY = {".xlsx": "xlsx", ".xlsm": "xlsx", ".parquet": "parquet", ".pq": "parquet"}
NO_TEXT = {
    ".py", ".ipynb", ".sh", ".md", ".html", ".htm", ".css", ".js", ".pdf", ".doc", ".docx", ".odt", ".rtf", ".png",
    ".jpg", ".jpeg", ".gif", ".svg", ".mp3", ".mp4", ".wav", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log", ".lock",
    ".pkl", ".npy", ".npz", ".pt", ".bin", ".db", ".sqlite", ".xls", ".ods", ".tar", ".tgz", ".7z", ".sha256",
}  # fmt: skip
"""Endings of files that lie beside a corpus and are none; a file that is named itself is read whatever its ending."""

LOOKED_AT = 1 << 12


def binary_format(path: Path) -> str | None:
    """The format of a file of rows that is no text, told from its name.

    Args:
        path: The file.

    Returns:
        "xlsx", "parquet" or nothing.

    Example:
        >>> binary_format(Path("plots.parquet")), binary_format(Path("plots.csv"))
        ('parquet', None)
    """
    return BINARY.get(Path(path.name).suffix.lower())


def is_text(path: Path) -> bool:
    """True if a file of a folder is part of its corpus: a known kind of table, or text by its first bytes.

    Args:
        path: The file.

    Returns:
        False for programs, pictures and other files that lie beside a corpus.
    """
    ending = Path(path.name).suffix.lower()
    if ending in NO_TEXT:
        return False
    if ending in BINARY:
        return True
    try:
        if Path(plain_name(path)).suffix.lower() in NO_TEXT:
            return False
        with opened(path) as (file, _):
            start = file.read(LOOKED_AT)
    except (*DAMAGE, CorpusError):
        return True  # the reader says what is wrong with it
    return start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" not in start


def binary_rows(
    path: Path, kind: str, column: str | None = None, *, header: bool = True
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The rows of a file, with their number in the sheet, whose header is row 1.

    Args:
        path: The file.
        kind: "xlsx" or "parquet".
        column: A path that may lead into a list.
        header: Whether the first row of a sheet holds column names; else they are "0", "1", ...

    Yields:
        The number and the cells by column.

    Raises:
        CorpusError: If it cannot be read.
    """
    rows = enumerate(_sheet(path) if kind == "xlsx" else _parquet(path), 1)
    begin, first = next(((number, row) for number, row in rows if any(cell is not None for cell in row)), (0, None))
    if first is None:
        raise CorpusError(f"{path.name} is empty; needed a row of column names, and rows of text.")
    names = [shown(cell).strip() or f"column {place}" for place, cell in enumerate(first, 1)]
    unnamed = kind == "xlsx" and not header
    if unnamed:
        names = [str(place) for place in range(len(first))]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CorpusError(f"{path.name} has {names.count(twice)} columns named {twice!r}; name each otherwise.")
    for number, row in itertools.chain([(begin, first)], rows) if unnamed else rows:
        cells = cells_of(dict(itertools.zip_longest(names, row[: len(names)])), column)
        if any(cells.values()):
            yield number, cells


def _sheet(path: Path) -> Iterator[tuple[object, ...]]:
    openpyxl = import_optional("openpyxl", "Reading Excel files", "app")
    try:
        book = openpyxl.load_workbook(io.BytesIO(path.read_bytes()), read_only=True, data_only=True)
    except Exception as error:
        raise CorpusError(f"Cannot read {path.name}: {str(error).splitlines()[0]}. Save it as .csv.") from error
    filled = [sheet for sheet in book.worksheets if any(map(any, sheet.iter_rows(values_only=True)))]
    if len(filled) > 1:
        titles = ", ".join(sheet.title for sheet in filled)
        raise CorpusError(f"{path.name} holds several sheets: {titles}. Save the one that is meant as a file.")
    for sheet in filled:
        yield from sheet.iter_rows(values_only=True)


def _parquet(path: Path) -> Iterator[tuple[object, ...]]:
    parquet = import_optional("pyarrow.parquet", "Reading Parquet files", "app")
    try:
        file = parquet.ParquetFile(path)
        yield tuple(file.schema_arrow.names)
        for batch in file.iter_batches():
            batch.validate(full=True)
            yield from zip(*[column.to_pylist() for column in batch.columns], strict=True)
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        raise CorpusError(f"Cannot read {path.name}: {str(error).splitlines()[0]}.") from error
