"""Sentences from files and folders, one after the other, and the way back from an id to its text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from tqdm.auto import tqdm

from crossfluence.errors import CorpusError, IdError, StaleError

from .binary import binary_format, is_text
from .formats import FORMATS, Record, guess, records
from .packed import plain_name
from .text import Splitter, head, splitter

Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""A file, a folder, or several of them."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A piece of text with its place.

    Attributes:
        text: As in the file, without blanks around it.
        document: What it belongs to: the article in WikiExtractor output, the record in tables and JSONL, else the
            file.
        line: Line of the file at which its record begins, from 1.
        part: Which sentence of the record, from 1; "biased" or "neutral" of a pair; empty if it is the only one.
        file: Name of the file if several are read; empty if there is only one.
        fields: The other columns of its record.
    """

    text: str
    document: str
    line: int
    part: str = ""
    file: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """File, line and part, such as "12", "12.3", "12.biased" or "plots.csv:12.3"; no two sentences share one."""
        return place(self.file, self.line) + (f".{self.part}" if self.part else "")


@dataclass(frozen=True, slots=True)
class File:
    """A file that was looked at.

    Attributes:
        path: Absolute.
        name: What ids call it; empty if it is the only one.
        format: One of `FORMATS`.
        size: In bytes, as it lies on disk.
    """

    path: str
    name: str
    format: str
    size: int


@dataclass(frozen=True)
class Source:
    """Files and how to read them: all that it takes to read them again.

    Attributes:
        files: In the order in which they are read.
        column: The column that holds the text, or None to tell by its name.
        split: How the text of a record becomes sentences.
        encoding: Of all files.
        skipped: Names of files of a folder that are no text or table, and are not read.
        header: Whether the first row of a table holds column names.
    """

    files: tuple[File, ...]
    column: str | None = None
    split: str | Splitter = "lines"
    encoding: str = "utf-8"
    skipped: tuple[str, ...] = ()
    header: bool = True

    def sentences(self, *, progress: bool = False) -> Iterator[Sentence]:
        """Reads all files, one record in memory at a time.

        Args:
            progress: Shows a bar, in bytes on disk, if this is a terminal.

        Yields:
            A sentence.

        Raises:
            CorpusError: If something cannot be read, with file and line; or if there is no sentence at all.
        """
        cut, found = splitter(self.split), False
        total = sum(file.size for file in self.files)
        with tqdm(total=total, unit="B", unit_scale=True, desc="reading", disable=None if progress else True) as bar:
            for file in self.files:
                for record in self._records(file, bar.update):
                    for sentence in _cut(record, file, cut):
                        found = True
                        yield sentence
        if not found:
            names = ", ".join(Path(file.path).name for file in self.files[:3])
            raise CorpusError(
                f"There is no text in {names}{', ...' if len(self.files) > 3 else ''}; needed a sentence."
            )

    def beginning(self, characters: int) -> tuple[list[Sentence], float]:
        """The first sentences, from which the rest can be foretold.

        Args:
            characters: Of text, after which reading stops.

        Returns:
            Sentences, and about which share of all bytes on disk they take; 1 if they are all.
        """
        cut, read, found = splitter(self.split), [0], list[Sentence]()

        def count(size: int) -> None:
            read[0] += size

        left = characters
        for file in self.files:
            for record in self._records(file, count):
                for sentence in _cut(record, file, cut):
                    found.append(sentence)
                    left -= len(sentence.text)
                if left < 0:
                    return found, min(1.0, read[0] / max(1, sum(each.size for each in self.files)))
        return found, 1.0

    def _records(self, file: File, advance: Callable[[int], Any]) -> Iterator[Record]:
        return records(Path(file.path), file.format, self.column, self.encoding, advance, header=self.header)

    def find(self, ids: Iterable[str]) -> dict[str, Sentence]:
        """Reads again until the sentences with these ids are found.

        Args:
            ids: As in `Sentence.id`.

        Returns:
            Sentences by id, in the order asked for.

        Raises:
            IdError: If there is no such sentence.
            StaleError: If a file has another size than when it was looked at.
        """
        wanted = list(dict.fromkeys([ids] if isinstance(ids, str) else ids))
        for file in self.files:
            if (size := _size(Path(file.path))) != file.size:
                raise StaleError(
                    f"{file.path} changed: it had {file.size:,} bytes, now {size:,}, so ids may mean other sentences. "
                    f"Read the corpus again."
                )
        missing, found = set(wanted), {}
        sentences = self.sentences()
        while missing and (sentence := next(sentences, None)):
            if sentence.id in missing:
                missing.remove(sentence.id)
                found[sentence.id] = sentence
        if missing:
            first = next(label for label in wanted if label in missing)
            raise IdError(f"No sentence has the id {first!r} ({len(missing)} of {len(wanted)} ids were not found).")
        return {label: found[label] for label in wanted}


def open_source(
    source: Paths,
    *,
    format: str | None = None,  # noqa: A002  # the plain word for it
    column: str | None = None,
    split: str | Splitter = "lines",
    encoding: str = "utf-8",
    header: bool = True,
) -> Source:
    """Files that were found and looked at, without reading more than the first record of each.

    Args:
        source: A file; a folder, which stands for all files of text below it in sorted order, except those whose name
            begins with "." or "_" (see `Source.skipped`); or several. Files may be packed by gzip, xz, bzip2 or zip.
        format: "text" (a sentence or paragraph a line), "csv", "tsv" (no quoting), "jsonl", "wikiextractor", or "wnc"
            (files of the Wiki Neutrality Corpus's release). By default told from name and content of each file.
        column: Column of CSV, TSV or JSONL that holds the text. By default the one with a usual name, such as "text"
            or "sentence"; columns "biased" and "neutral" together give two sentences a row.
        split: "lines", "records", "sentences" or a function, as in `text.splitter`.
        encoding: Of the text.
        header: Whether the first row of a table holds column names; else they are "0", "1", ...

    Returns:
        The files and how to read them.

    Raises:
        CorpusError: If a file is missing, empty, not text, of another format, or has no such column.
    """
    if format is not None and format not in FORMATS:
        raise CorpusError(f"Got format={format!r}; needed one of {', '.join(map(repr, FORMATS))}.")
    splitter(split)
    paths, skipped = _paths(source)
    names = _names(paths)
    files = []
    for path, name in zip(paths, names, strict=True):
        told = format or binary_format(path) or guess(path, head(path, encoding))
        files.append(File(str(path), name, told, _size(path)))
        next(records(path, files[-1].format, column, encoding, header=header), None)
    return Source(tuple(files), column, split, encoding, skipped, header)


def read_sentences(
    source: Paths,
    *,
    format: str | None = None,  # noqa: A002  # the plain word for it
    column: str | None = None,
    split: str | Splitter = "lines",
    encoding: str = "utf-8",
) -> Iterator[Sentence]:
    r"""The sentences of files, one after the other; files are looked at when this is called, not at the first sentence.

    Args:
        source: Files and folders, as in `open_source`.
        format: Of all files, or None to tell it.
        column: That holds the text, or None to tell it.
        split: How the text of a record becomes sentences.
        encoding: Of the text.

    Returns:
        An iterator that holds one record at a time.

    Raises:
        CorpusError: If something cannot be read, with file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "plots.csv")
        ...     size = path.write_text("title,plot\nAlien,In space.\nPsycho,In a shower.\n")
        ...     [(sentence.id, sentence.text, sentence.fields) for sentence in read_sentences(path)]
        [('2', 'In space.', {'title': 'Alien'}), ('3', 'In a shower.', {'title': 'Psycho'})]
    """
    return open_source(source, format=format, column=column, split=split, encoding=encoding).sentences()


def find_sentences(
    source: Paths,
    ids: Iterable[str],
    *,
    format: str | None = None,  # noqa: A002  # the plain word for it
    column: str | None = None,
    split: str | Splitter = "lines",
    encoding: str = "utf-8",
) -> dict[str, Sentence]:
    """The sentences with these ids: reads until all are found, and keeps no other.

    Args:
        source: Files and folders, as when the ids were made.
        ids: As in `Sentence.id`.
        format: Of all files, or None to tell it.
        column: That holds the text, or None to tell it.
        split: How the text of a record becomes sentences.
        encoding: Of the text.

    Returns:
        Sentences by id, in the order asked for.

    Raises:
        IdError: If there is no such sentence.
        CorpusError: If something cannot be read, with file and line.
    """
    return open_source(source, format=format, column=column, split=split, encoding=encoding).find(ids)


def place(file: str, line: int) -> str:
    """The name of a record in ids and documents: its line, after the file's name if there are several."""
    return f"{file}:{line}" if file else str(line)


def _cut(record: Record, file: File, cut: Splitter) -> Iterator[Sentence]:
    """The sentences of a record, numbered if there are several."""
    document = record.document or place(file.name, record.line)
    if file.format == "text":
        document = file.name or plain_name(Path(file.path))
    for side, text in record.texts.items():
        pieces = cut(text)
        fields = {**record.fields, "side": side} if side else record.fields
        for number, piece in enumerate(pieces, 1):
            part = ".".join(filter(None, [side, str(number) if len(pieces) > 1 else ""]))
            yield Sentence(piece, document, record.line, part, file.name, fields)


def found_files(source: Paths) -> list[Path]:
    """The files of a source that are read.

    Args:
        source: A file, a folder or several.

    Returns:
        Absolute paths; those of a folder in sorted order.

    Raises:
        CorpusError: If there is none.
    """
    return _paths(source)[0]


def _paths(source: Paths) -> tuple[list[Path], tuple[str, ...]]:
    """All files of a source, absolute, those of a folder in sorted order; and the names of those left aside."""
    given = [Path(source)] if isinstance(source, (str, os.PathLike)) else [Path(path) for path in source]
    if not given:
        raise CorpusError("Got no files; needed the path of a file or folder, or several.")
    found, aside = list[Path](), list[str]()
    for path in given:
        if not path.exists():
            raise CorpusError(f"There is no file or folder {path}; the working folder is {Path.cwd()}.")
        inside = _inside(path) if path.is_dir() else [path]
        texts = [file for file in inside if not path.is_dir() or is_text(file)]
        aside.extend(file.relative_to(path).as_posix() for file in inside if file not in texts)
        if not texts:
            held = f"; it holds {', '.join(aside[:3])}, which are no text" if aside else ""
            raise CorpusError(
                f"The folder {path} holds no files to read{held}; those that begin with '.' or '_' do not count."
            )
        found.extend(file.absolute() for file in texts)
    twice = next((path for row, path in enumerate(found) if path in found[:row]), None)
    if twice is not None:
        raise CorpusError(f"{twice} is given twice; each of its sentences would count twice. Name it once.")
    return found, tuple(aside)


def _inside(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    shown = [path for path in files if not any(part[0] in "._" for part in path.relative_to(folder).parts)]
    return sorted(shown, key=lambda path: path.relative_to(folder).parts)


def _names(paths: list[Path]) -> list[str]:
    """The shortest names below the common folder that tell the files apart; none for a file that is alone."""
    if len(paths) == 1:
        return [""]
    common = os.path.commonpath([path.parent for path in paths])
    full = [path.relative_to(common).as_posix() for path in paths]
    plain = [path.relative_to(common).with_name(plain_name(path)).as_posix() for path in paths]
    return plain if len(set(plain)) == len(plain) else full


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}.") from error
