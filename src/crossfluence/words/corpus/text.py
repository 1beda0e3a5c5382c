"""Text from bytes to words: lines of compressed files, sentences of a line, words of a sentence."""

from __future__ import annotations

import codecs
import functools
import io
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from crossfluence.errors import CorpusError, import_optional

from .packed import DAMAGE, ENDINGS, opened

Tokenizer: TypeAlias = Callable[[str], list[str]]
"""A sentence to its words."""

Splitter: TypeAlias = Callable[[str], list[str]]
"""The text of one record to its sentences."""

WIDE = ("utf-16", "utf-32")
HEAD = 1 << 16
"""Bytes that are looked at before a file is read."""

POSSESSIVE = re.compile(r"'s\b")
ASCII_WORD = re.compile("[a-z]+(?:'[a-z]+)*")


def head(path: Path, encoding: str = "utf-8") -> str:
    """The beginning of a text file, after a look at whether it is one.

    Args:
        path: The file, compressed or not.
        encoding: Of its text.

    Returns:
        Up to 65,536 bytes of it as text; what cannot be decoded is left out.

    Raises:
        CorpusError: If the file is empty, is not text, is not what its name says, or cannot be read.
    """
    try:
        wide = codecs.lookup(encoding).name.startswith(WIDE)
    except LookupError:
        raise CorpusError(f"There is no encoding {encoding!r}. Usual ones are 'utf-8', 'latin-1', 'utf-16'.") from None
    with opened(path) as (file, _):
        try:
            start = file.read(HEAD)
        except DAMAGE as error:
            raise CorpusError(_damage(path, 1, error)) from error
    if not start:
        raise CorpusError(f"{path.name} is empty; needed text.")
    if not wide and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CorpusError(f"{path.name} begins with the mark of UTF-16, not {encoding}. Pass encoding='utf-16'.")
    if not wide and b"\0" in start:
        raise CorpusError(
            f"{path.name} holds zero bytes, so it is not text; needed plain text, CSV, TSV, JSONL or WikiExtractor "
            f"output, as it is or packed as {', '.join(ENDINGS)}. If it is UTF-16, pass encoding='utf-16'."
        )
    return start.decode(_signed(encoding), errors="ignore")


def lines(path: Path, encoding: str = "utf-8", advance: Callable[[int], Any] | None = None) -> Iterator[str]:
    r"""The lines of a text file one after the other, each with its end: `\n`, or `\r` in a file that begins without it.

    Args:
        path: The file, as it is or packed by gzip, xz, bzip2 or zip, which is told by its first bytes.
        encoding: Of its text; a mark at the beginning of UTF-8 is left out.
        advance: Is called now and then with the number of bytes read since its last call, before unpacking.

    Yields:
        A line.

    Raises:
        CorpusError: If the file breaks off, or holds something that is not text in this encoding; with the line.
    """
    number, told = 0, 0
    end = _line_end(path, encoding)
    with opened(path) as (file, raw), io.TextIOWrapper(file, encoding=_signed(encoding), newline=end) as text:
        try:
            for number, line in enumerate(text, 1):
                if "\0" in line:
                    raise CorpusError(f"Line {number} of {path.name} holds a zero byte, so the file is not text.")
                yield line
                if advance and not number % 256:
                    advance(raw.tell() - told)
                    told = raw.tell()
        except UnicodeDecodeError as error:
            raise CorpusError(_misfit(path, encoding, number, error)) from None
        except DAMAGE as error:
            raise CorpusError(_damage(path, number + 1, error)) from error
        if advance:
            advance(raw.tell() - told)


def _line_end(path: Path, encoding: str) -> str:
    """The sign that ends a line; a carriage return in files of the first Macs."""
    with opened(path) as (file, _):
        try:
            start = file.read(HEAD).decode(_signed(encoding), errors="ignore")
        except DAMAGE:
            return "\n"
    return "\r" if "\r" in start and "\n" not in start else "\n"


def _signed(encoding: str) -> str:
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _damage(path: Path, number: int, error: Exception) -> str:
    came = "breaks off" if isinstance(error, EOFError) else "is damaged"
    return f"{path.name} {came} at line {number}: {str(error).rstrip('.')}. Fetch or pack the file again."


def _misfit(path: Path, encoding: str, read: int, error: UnicodeDecodeError) -> str:
    """Says where; text is decoded in pieces, so the line is looked up again in bytes."""
    found = None
    if not codecs.lookup(encoding).name.startswith(WIDE):
        with opened(path) as (file, _):
            found = next(((row, flaw) for row, line in enumerate(file, 1) if (flaw := _flaw(line, encoding))), None)
    place = f"line {found[0]}, byte {found[1].start + 1}" if found else f"something after line {read}"
    flaw = found[1] if found else error
    return (
        f"{path.name} is not {encoding}: {place} is 0x{flaw.object[flaw.start]:02x} ({flaw.reason}). "
        f"Pass the encoding it was written in, such as encoding='latin-1' or 'cp1252', or mend that line."
    )


def _flaw(line: bytes, encoding: str) -> UnicodeDecodeError | None:
    try:
        line.decode(encoding)
    except UnicodeDecodeError as error:
        return error
    return None


def splitter(split: str | Splitter) -> Splitter:
    r"""A function that cuts the text of a record into sentences.

    Args:
        split: "lines" takes every line as a sentence; "records" the whole text of a record; "sentences" cuts every
            line by syntok's rules; or a function of your own.

    Returns:
        Text to sentences, none of them blank.

    Raises:
        CorpusError: If there is no such way.
        MissingExtraError: If "sentences" is asked for and syntok is not installed.

    Example:
        >>> splitter("lines")("One line. Two sentences.\n\nAnother line.")
        ['One line. Two sentences.', 'Another line.']
    """
    if callable(split):
        return lambda text: [piece for part in _listed(split(text), "split") if (piece := part.strip())]
    if split == "records":
        return lambda text: [text.strip()] if text.strip() else []
    if split == "lines":
        return _lines
    if split == "sentences":
        analyze = import_optional("syntok.segmenter", "split='sentences'", "words").analyze
        return functools.partial(_sentences, analyze)
    raise CorpusError(f"Got split={split!r}; needed 'lines', 'records', 'sentences' or a function from text to a list.")


def _lines(text: str) -> list[str]:
    return [line for piece in text.split("\n") if (line := piece.strip())]


def _sentences(analyze: Callable[[str], Any], text: str) -> list[str]:
    return [
        line[tokens[0].offset : tokens[-1].offset + len(tokens[-1].value)]
        for line in _lines(text)
        for paragraph in analyze(line)
        for tokens in paragraph
        if tokens
    ]


def _listed(found: object, option: str) -> list[str]:
    if not isinstance(found, (list, tuple)) or not all(isinstance(piece, str) for piece in found):
        raise CorpusError(f"The {option} function returned {found!r:.80}; needed a list of strings.")
    return list(found)


def tokenizer_of(tokenizer: str | Tokenizer) -> Tokenizer:
    """A function that cuts a sentence into words.

    Args:
        tokenizer: "words" takes runs of letters of any script in lower case, with apostrophes inside them: digits,
            hyphens and punctuation separate words, and a possessive 's is dropped, so "Vader's" counts as "vader".
            "whitespace" is for text that is tokenised already: all between blanks, in lower case. "syntok" takes
            syntok's tokens that hold a letter, in lower case. Or a function of your own; scripts without blanks
            between words, such as Chinese, need one.

    Returns:
        A sentence to its words.

    Raises:
        CorpusError: If there is no such tokeniser.
        MissingExtraError: If "syntok" is asked for and not installed.

    Example:
        >>> tokenizer_of("words")("Don't trust Vader's 2 science-fiction droids!")
        ["don't", 'trust', 'vader', 'science', 'fiction', 'droids']
        >>> tokenizer_of("whitespace")("Don't trust it .")
        ["don't", 'trust', 'it', '.']
    """
    if callable(tokenizer):
        return lambda text: _listed(tokenizer(text), "tokenizer")
    if tokenizer == "words":
        return _words
    if tokenizer == "whitespace":
        return lambda text: text.lower().split()
    if tokenizer == "syntok":
        tokenize = import_optional("syntok.tokenizer", "tokenizer='syntok'", "words").Tokenizer().tokenize
        return lambda text: [
            token.value.lower() for token in tokenize(text) if any(map(str.isalpha, token.value))
        ]  # fmt: skip
    raise CorpusError(
        f"Got tokenizer={tokenizer!r}; needed 'words', 'whitespace', 'syntok' or a function from a sentence to a list."
    )


def _words(text: str) -> list[str]:
    text = text.lower()
    plain = text.isascii()
    if not plain:  # other apostrophes are apostrophes; a soft hyphen neither is a letter nor ends a word
        text = unicodedata.normalize("NFC", text).replace("\u2019", "'").replace("\u02bc", "'").replace("\u00ad", "")
    if "'s" in text:
        text = POSSESSIVE.sub(" ", text)
    return ASCII_WORD.findall(text) if plain else _word().findall(text)


@functools.cache
def _word() -> re.Pattern[str]:
    r"""Letters and their marks: for `\w`, vowel signs of Indic scripts are no part of a word, but fractions are."""
    kinds = [(chr(code), unicodedata.category(chr(code))) for code in range(0x80, 0x10000)]
    marks = "".join(sign for sign, kind in kinds if kind[0] == "M")
    numbers = "".join(sign for sign, kind in kinds if kind in {"No", "Nl"})
    letter = rf"[^\W\d_{numbers}]"
    letters = f"{letter}+(?:[{marks}]+{letter}*)*"
    return re.compile(f"{letters}(?:'{letters})*")
