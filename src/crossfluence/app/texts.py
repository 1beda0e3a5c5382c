"""A corpus before it is read and after: its encoding, files that were left aside, scripts without blanks."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from ..errors import CorpusError
from ..words.corpus.corpus import Corpus
from ..words.corpus.encodings import pieces_of, told_aloud, told_encoding
from ..words.corpus.formats import LIKE_TEXT, TEXT_COLUMNS
from ..words.corpus.readers import found_files
from ..words.corpus.table_rows import told_separator

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How Unicode's names of letters begin in scripts that set no blanks between words."""

TAB = "\t"
TAG = re.compile(r"</?(?:p|br|div|span|a|b|i|em|strong|li|ul|ol|td|tr|table|h[1-6]|body|html)\b[^<>]*>", re.IGNORECASE)
MANY_TAGS = 3

MOST = 0.3  # share of a vocabulary's words in such a script
LONG = 4.0  # letters of such a word in the mean, above which text was hardly cut into words


def encoding_of(source: Path, *, beginning: bool = False) -> tuple[str, list[str]]:
    """The encoding of all text files of a corpus.

    Args:
        source: A file or folder.
        beginning: Whether to look only at the beginning of each file, and not at all of it.

    Returns:
        The encoding, and a sentence if it was guessed.

    Raises:
        CorpusError: If files have different ones.
    """
    paths = [path for path in found_files(source) if path.suffix.lower() not in {".parquet", ".pq", ".xlsx", ".xlsm"}]
    told = {path: _told(path, beginning) for path in paths}
    names = set(told.values()) - {"utf-8", "utf-8-sig"}
    if not names:
        return "utf-8", []
    if len(set(told.values())) > 1:
        other = next(path for path in paths if told[path] in names)
        first = next(path for path in paths if told[path] != told[other])
        raise CorpusError(
            f"{first.name} is {told[first]}, but {other.name} is {told[other]}; needed one encoding for all. Save "
            f"them as UTF-8."
        )
    encoding = names.pop()
    guessed = told_aloud(encoding, source.name)
    return encoding, [guessed] if guessed else []


def _told(path: Path, beginning: bool) -> str:
    from ..words.corpus.packed import DAMAGE

    try:
        pieces = pieces_of(path)
        if beginning:
            first = next(iter(pieces), b"")
            pieces = [first.rpartition(b"\n")[0] or first]  # no letter of several bytes is cut
        return told_encoding(pieces)
    except DAMAGE:
        return "utf-8"  # the reader says where it is damaged


def left_aside(corpus: Corpus) -> list[str]:
    """A sentence about files of a folder that are no text, and were not read.

    Args:
        corpus: As read.

    Returns:
        At most one sentence.
    """
    names = corpus.source.skipped if corpus.source else ()
    if not names:
        return []
    more = f", ... ({len(names)} in all)" if len(names) > 5 else ""
    return [f"Not read, as they are no text or table: {', '.join(names[:5])}{more}."]


def first_row_of(corpus: Corpus) -> list[str]:
    """A warning where a first row was taken for names and reads like text, or the other way, or where tags are words.

    Args:
        corpus: As read.

    Returns:
        At most one sentence.
    """
    if corpus.source is None or not corpus.source.header:
        return []
    for file in corpus.source.files:
        if file.format in {"csv", "tsv", "text"}:
            start = next(iter(pieces_of(Path(file.path), 1 << 12)), b"").decode(corpus.source.encoding, "ignore")
            first = start.replace("\r", "\n").partition("\n")[0]
            cut = "\t" if file.format == "tsv" else told_separator(start.splitlines(keepends=True))
            names = next(csv.reader([first], delimiter=cut, skipinitialspace=True), [])
            name = Path(file.path).name
            if file.format == "text":
                if len(names) > 1 and any(one.strip().lower() in TEXT_COLUMNS for one in names):
                    return [
                        f"Warning: the first line of {name} looks like names of columns, but it is read as plain text, "
                        f"line by line. If it is a table, type --format {'tsv' if cut == TAB else 'csv'}."
                    ]
            elif long := [one for one in names if len(one.split()) >= LIKE_TEXT]:
                return [
                    f"Warning: the first row of {name} was taken for column names, but "
                    f"{long[0].strip()[:40]!r} in it reads like text. If it is, type --no-header: columns are then "
                    f"called 0, 1, 2, ..."
                ]
            if len(TAG.findall(start)) >= MANY_TAGS:
                return [
                    f"Warning: {name} holds tags such as {TAG.findall(start)[0]}, and what stands in them is read as "
                    f"words. Take them out first, or leave their words out of your lists."
                ]
    return []


def of_scripts(corpus: Corpus, tokenizer: str) -> list[str]:
    """Refuses text of a script without blanks between words that nothing has cut.

    Args:
        corpus: As read.
        tokenizer: As named.

    Returns:
        Nothing to say.

    Raises:
        CorpusError: If most words are runs of such letters, too long for words.
    """
    refuse_unspaced(dict(zip(corpus.words, corpus.counts.tolist(), strict=True)), " and type --tokenizer whitespace")
    return []


def refuse_unspaced(counts: Mapping[str, int], then: str = "") -> None:
    """Refuses text of a script without blanks between words that nothing has cut.

    Args:
        counts: Of its words.
        then: The option to type with the text that was cut.

    Raises:
        CorpusError: If most words are runs of such letters, too long for words.
    """
    unspaced = {word: count for word, count in counts.items() if is_unspaced(word)}
    total, those = sum(counts.values()), sum(unspaced.values())
    if those <= MOST * total or sum(map(len, unspaced)) <= LONG * len(unspaced):
        return
    longest = max(unspaced, key=len)
    raise CorpusError(
        f"This text sets no blanks between words, so that {longest[:12]!r} was taken for one. Cut it into words first, "
        f"such as with jieba, MeCab or PyThaiNLP, with a blank between them{',' if then else ''}{then}."
    )


def is_unspaced(word: str) -> bool:
    """True if a word begins with a letter of a script without blanks between words.

    Args:
        word: Of a vocabulary.

    Returns:
        True for Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan.

    Example:
        >>> is_unspaced("我们"), is_unspaced("한국어"), is_unspaced("we")
        (True, False, False)
    """
    return unicodedata.name(word[:1] or " ", "").startswith(UNSPACED)
