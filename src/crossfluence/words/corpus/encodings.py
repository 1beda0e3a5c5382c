"""Encodings of text files, told from their bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

from .packed import opened

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
UNDEFINED = b"\x81\x8d\x8f\x90\x9d"
"""Bytes that have no meaning in cp1252."""

LOOKED_AT = 1 << 12  # bytes that tell UTF-16 without a mark
ZEROS = 0.2  # share of zero bytes at the even, or the odd, places of UTF-16


def told_encoding(pieces: Iterable[bytes]) -> str:
    r"""The encoding of a text: by its mark, by zero bytes, UTF-8 if that fits everywhere, else cp1252 or latin-1.

    Args:
        pieces: Its bytes, one piece after the other; of UTF-16 and UTF-32 only the first is looked at.

    Returns:
        The name of a codec.

    Example:
        >>> told_encoding([b"J\xfcrgen"]), told_encoding(["ü".encode()]), told_encoding(["ü".encode("utf-16")])
        ('cp1252', 'utf-8', 'utf-16')
    """
    decoder, fits, undefined = codecs.getincrementaldecoder("utf-8")(), True, False
    for place, piece in enumerate(pieces):
        if not place and (wide := _wide(piece)):
            return wide
        undefined = undefined or any(byte in piece for byte in UNDEFINED)
        if fits:
            try:
                decoder.decode(piece)
            except UnicodeDecodeError:
                fits = False
    try:
        decoder.decode(b"", final=fits)
    except UnicodeDecodeError:
        fits = False
    return "utf-8" if fits else "latin-1" if undefined else "cp1252"


def _wide(start: bytes) -> str | None:
    """Encodings that are told from the beginning alone."""
    marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
    if marked is not None:
        return marked
    start = start[:LOOKED_AT]
    half = len(start) // 2
    if half and start[1::2].count(0) > ZEROS * half and not start[::2].count(0):
        return "utf-16-le"
    if half and start[::2].count(0) > ZEROS * half and not start[1::2].count(0):
        return "utf-16-be"
    return None


def told_aloud(encoding: str, file: str) -> str | None:
    """A sentence about an encoding that was guessed and not marked in the file.

    Args:
        encoding: From `told_encoding`.
        file: Its name.

    Returns:
        The sentence; nothing for UTF-8 and for files that begin with a mark.

    Example:
        >>> told_aloud("cp1252", "names.csv")
        'Read names.csv as cp1252, as it is not UTF-8. If letters look wrong, name its encoding with --encoding.'
    """
    if encoding in {"utf-8", "utf-8-sig", "utf-16", "utf-32"}:
        return None
    return f"Read {file} as {encoding}, as it is not UTF-8. If letters look wrong, name its encoding with --encoding."


def pieces_of(path: Path, size: int = 1 << 20) -> Iterable[bytes]:
    """The bytes of a file, unpacked, in pieces.

    Args:
        path: The file.
        size: Of a piece.

    Yields:
        Bytes.
    """
    with opened(path) as (file, _):
        while piece := file.read(size):
            yield piece
