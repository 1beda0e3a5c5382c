"""Reading a corpus: words are numbered as they come, then the vocabulary is cut and the numbers are given anew."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from crossfluence.errors import CorpusError

from .corpus import Corpus
from .readers import Paths, Sentence, Source, open_source
from .text import Splitter, Tokenizer, tokenizer_of

Columns: TypeAlias = "dict[str, tuple[defaultdict[str, int], array[int]]]"
"""By field: the number of each different value, and one number a sentence."""


def read_corpus(
    source: Paths,
    *,
    format: str | None = None,  # noqa: A002  # the plain word for it
    column: str | None = None,
    split: str | Splitter = "lines",
    encoding: str = "utf-8",
    header: bool = True,
    tokenizer: str | Tokenizer = "words",
    min_count: int = 5,
    max_words: int | None = 25_000,
    keep: Iterable[str] = (),
    keep_count: int = 1,
    words: Sequence[str] | None = None,
    fields: Sequence[str] | None = None,
) -> Corpus:
    r"""A corpus from files, in one pass and without holding their text; shows a bar in a terminal.

    Args:
        source: A file, a folder or several, as in `open_source`.
        format: Of all files, or None to tell it.
        column: That holds the text, or None to tell it.
        split: How the text of a record becomes sentences: "lines", "records", "sentences" or a function.
        encoding: Of the text.
        header: Whether the first row of a table holds column names; else they are "0", "1", ...
        tokenizer: How a sentence becomes words: "words", "whitespace", "syntok" or a function.
        min_count: Words that occur less often are left out.
        max_words: The most words of the vocabulary, most frequent first; None for all.
        keep: Words that stay if they occur `keep_count` times, even beyond `max_words`; they go through the tokeniser.
        keep_count: See there. The loss bends so little along the vector of a very rare word that estimates fail.
        words: The vocabulary, in this order, in place of the four options above: `model.words`, to explain a model that
            was trained elsewhere. All other words are left out, and so are those of these that never occur.
        fields: Other columns to keep, or None for all; of long ones, keep none.

    Returns:
        The corpus.

    Raises:
        CorpusError: If something cannot be read, or fewer than two words are left.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = Path(folder, "a.txt").write_text("A cat and a dog.\nThe dog sleeps.\nThe end.\n")
        ...     corpus = read_corpus(folder, min_count=2, keep=["cat"])
        >>> corpus
        Corpus(sentences=3, words=4, tokens=7, documents=1, dropped=0)
        >>> corpus.words, corpus.counts.tolist()
        (('a', 'dog', 'the', 'cat'), [2, 2, 2, 1])
        >>> [corpus.ids[row] for row in corpus.sentences_with("dog")], corpus.sentence(1)
        (['1', '2'], ['the', 'dog'])
    """
    files = open_source(source, format=format, column=column, split=split, encoding=encoding, header=header)
    return build_corpus(
        files.sentences(progress=True),
        tokenizer=tokenizer,
        min_count=min_count,
        max_words=max_words,
        keep=keep,
        keep_count=keep_count,
        words=words,
        fields=fields,
        source=files,
    )


def build_corpus(
    sentences: Iterable[Sentence],
    *,
    tokenizer: str | Tokenizer = "words",
    min_count: int = 5,
    max_words: int | None = 25_000,
    keep: Iterable[str] = (),
    keep_count: int = 1,
    words: Sequence[str] | None = None,
    fields: Sequence[str] | None = None,
    source: Source | None = None,
) -> Corpus:
    """A corpus from sentences of any origin; takes one at a time and keeps no text.

    Args:
        sentences: With ids that do not repeat.
        tokenizer: How a sentence becomes words.
        min_count: Words that occur less often are left out.
        max_words: The most words of the vocabulary; None for all.
        keep: Words that stay if they occur `keep_count` times.
        keep_count: See there.
        words: The vocabulary, in this order, in place of the four options above; those that never occur are left out.
        fields: Names of the fields to keep, or None for all.
        source: The files, if the corpus shall be able to read them again.

    Returns:
        The corpus.

    Raises:
        CorpusError: If an option makes no sense, ids repeat, or fewer than two words are left.
    """
    if min_count < 1 or (max_words is not None and max_words < 2):
        raise CorpusError(f"Got min_count={min_count}, max_words={max_words}; needed at least 1 and at least 2.")
    if words is not None and (isinstance(words, str) or len(set(words)) < len(words)):
        raise CorpusError(
            "Got words that are one string, or of which one stands twice; needed a list of different words."
        )
    cut = tokenizer_of(tokenizer)
    kept = {word for given in ([keep] if isinstance(keep, str) else keep) for word in cut(given)}
    numbers, documents = _numbering(), _numbering()
    tokens, lengths, document, ids = array("i"), array("q"), array("i"), list[str]()
    columns: Columns = {}
    named: set[str] = set()
    for sentence in sentences:
        pieces = cut(sentence.text)
        tokens.extend([numbers[word] for word in pieces])
        lengths.append(len(pieces))
        document.append(documents[sentence.document])
        _note(columns, sentence.fields, len(ids), fields)
        named.update(sentence.fields)
        ids.append(sentence.id)
    _check(ids, named, fields or ())
    if not tokens:
        hint = (
            ""
            if tokenizer == "whitespace"
            else " Pass tokenizer='whitespace' to keep all signs, numbers and emoji too."
        )
        raise CorpusError(
            f"None of the {len(ids):,} sentences holds a word as tokenizer={tokenizer!r} finds them.{hint}"
        )
    coded = np.frombuffer(tokens, dtype=np.int32)
    often = np.bincount(coded)
    if words is None:
        always = {number for word, number in numbers.items() if word in kept and often[number] >= keep_count}
        staying = _most_frequent(list(numbers), often, min_count, max_words, always)
    else:
        staying = _given(numbers, words, tokenizer)
    renumbered = np.full(len(numbers), -1, dtype=np.int32)
    renumbered[staying] = np.arange(len(staying), dtype=np.int32)
    coded, offsets, rows = _without(renumbered[coded], np.frombuffer(lengths, dtype=np.int64))
    used, of_sentence = np.unique(np.frombuffer(document, dtype=np.int32)[rows], return_inverse=True)
    seen, names = list(numbers), list(documents)
    return Corpus(
        words=tuple(seen[number] for number in staying),
        counts=often[staying].astype(np.int64),
        tokens=coded,
        offsets=offsets,
        ids=tuple(ids[row] for row in rows),
        documents=tuple(names[number] for number in used),
        document=of_sentence.astype(np.int32),
        fields={name: _decoded(column, len(ids), rows) for name, column in columns.items()},
        dropped=len(ids) - len(rows),
        source=source,
    )


def _numbering() -> defaultdict[str, int]:
    """Gives every new word the next number."""
    return defaultdict(itertools.count().__next__)


def _note(columns: Columns, fields: Mapping[str, str], row: int, wanted: Sequence[str] | None) -> None:
    """Writes down the fields of one sentence; rows that lack one are filled up when it comes next."""
    for name, value in fields.items():
        if wanted is None or name in wanted:
            labels, codes = columns.setdefault(name, (_numbering(), array("i")))
            codes.extend([labels[""]] * (row - len(codes)))
            codes.append(labels[value])


def _decoded(column: tuple[defaultdict[str, int], array[int]], n: int, rows: np.ndarray) -> tuple[str, ...]:
    labels, codes = column
    codes.extend([labels[""]] * (n - len(codes)))
    values = list(labels)
    return tuple(values[codes[row]] for row in rows)


def _check(ids: Sequence[str], named: Iterable[str], wanted: Sequence[str]) -> None:
    if len(set(ids)) < len(ids):
        twice = next(label for label, count in Counter(ids).items() if count > 1)
        raise CorpusError(f"Two sentences have the id {twice!r}; needed an id of its own for each.")
    unknown = sorted(set(wanted) - set(named))
    if unknown:
        known = ", ".join(map(repr, sorted(named))) or "none"
        raise CorpusError(f"No sentence has the field {unknown[0]!r}; there are {known}.")


def _most_frequent(
    words: Sequence[str], counts: np.ndarray, min_count: int, max_words: int | None, kept: set[int]
) -> list[int]:
    """The numbers of the words that stay, by falling count."""
    order = sorted(range(len(words)), key=lambda number: (-counts[number], words[number]))
    always = [number for number in order if number in kept]
    others = (number for number in order if counts[number] >= min_count and number not in kept)
    room = None if max_words is None else max(0, max_words - len(always))
    chosen = {*always, *itertools.islice(others, room)}
    if len(chosen) < 2:
        raise CorpusError(
            f"The vocabulary has {len(chosen)} words; needed at least 2. There are {len(words):,} different words, and "
            f"the most frequent, {words[order[0]]!r}, occurs {counts[order[0]]:,} times. "
            f"Lower min_count={min_count}, or read more text."
        )
    return [number for number in order if number in chosen]


def _given(numbers: Mapping[str, int], words: Sequence[str], tokenizer: str | Tokenizer) -> list[int]:
    """The numbers of the given words that occur, in their order."""
    staying = [numbers[word] for word in words if word in numbers]
    if len(staying) < 2:
        lacking = [word for word in words if word not in numbers][:3]
        raise CorpusError(
            f"{len(staying)} of the {len(words):,} given words occur in the text as tokenizer={tokenizer!r} cuts it; "
            f"needed at least 2. It has words such as {list(numbers)[:3]}, but not {lacking}. Pass the tokenizer, or "
            f"read the text, that the given words come from."
        )
    return staying


def _without(tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and offsets without words numbered -1 and sentences that hold no other, and the rows that stay."""
    stays = tokens >= 0
    before = np.concatenate([[0], np.cumsum(stays)])  # (T + 1,) tokens that stay before each place
    ends = before[np.concatenate([[0], np.cumsum(lengths)])]  # (n + 1,)
    rows = np.flatnonzero(np.diff(ends))
    return tokens[stays], np.concatenate([[0], ends[rows + 1]]).astype(np.int64), rows


def corpus_of(
    texts: Iterable[str], *, min_count: int = 1, words: Sequence[str] | None = None, document: str = "text"
) -> Corpus:
    """A corpus from sentences in memory, for small examples.

    Args:
        texts: One sentence each; their ids are "1", "2", ...
        min_count: Words that occur less often are left out.
        words: The vocabulary, in this order, in place of `min_count`.
        document: The name of the document that they all belong to.

    Returns:
        The corpus.

    Example:
        >>> corpus_of(["he works", "she works"]).words
        ('works', 'he', 'she')
    """
    sentences = (Sentence(text, document, line) for line, text in enumerate(texts, start=1))
    return build_corpus(sentences, min_count=min_count, max_words=None, words=words)
