"""A corpus as numbers: which word stands where, in which sentence of which document."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from crossfluence.errors import CorpusError, IdError, NewerFileError, ResultFileError

from .readers import File, Sentence, Source

FORMAT = "crossfluence.corpus/2"
FIRST = "crossfluence corpus 1"  # an .npz file
ARRAYS = ("counts", "tokens", "offsets", "document")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Sentences as word numbers; the text itself stays in its files.

    Words outside of the vocabulary are left out before anything else, so words beside them become neighbours.

    Attributes:
        words: The vocabulary, V words by falling count, those of one count in the order of their code points; or as
            they were given.
        counts: Shape `(V,)`, int64: how often each word occurs.
        tokens: Shape `(T,)`, int32: the number of every word of every sentence, in order.
        offsets: Shape `(n + 1,)`, int64: sentence i is `tokens[offsets[i]:offsets[i + 1]]`.
        ids: n unique ids, as in `Sentence.id`.
        documents: Names of the documents, in order of first appearance.
        document: Shape `(n,)`, int32: number of each sentence's document.
        fields: Other columns of the files, n values each; empty where a record has none.
        dropped: Sentences that are left out because no word of theirs is in the vocabulary.
        source: The files, if the corpus knows them.
    """

    words: tuple[str, ...]
    counts: np.ndarray
    tokens: np.ndarray
    offsets: np.ndarray
    ids: tuple[str, ...]
    documents: tuple[str, ...]
    document: np.ndarray
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: int = 0
    source: Source | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        parts = [("counts", self.counts, len(self.words)), ("offsets", self.offsets, n + 1)]
        parts += [("document", self.document, n), *((name, labels, n) for name, labels in self.fields.items())]
        for name, part, needed in parts:
            if (came := len(part)) != needed:
                raise CorpusError(f"{name} has {came} entries; needed {needed} for {n} ids, {len(self.words)} words.")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens):
            raise CorpusError(f"offsets must run from 0 to the {len(self.tokens)} tokens.")

    def __repr__(self) -> str:
        return (
            f"Corpus(sentences={self.n:,}, words={len(self.words):,}, tokens={len(self.tokens):,}, "
            f"documents={len(self.documents):,}, dropped={self.dropped:,})"
        )

    @property
    def n(self) -> int:
        """The number of sentences."""
        return len(self.ids)

    @functools.cached_property
    def index(self) -> Mapping[str, int]:
        """The number of each word."""
        return {word: number for number, word in enumerate(self.words)}

    @functools.cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that change with anything in the corpus, but not with where its files lie."""
        state = hashlib.blake2b(digest_size=16)
        texts = json.dumps([self.words, self.ids, self.documents, dict(self.fields), self.dropped])
        arrays = (self.counts, self.tokens, self.offsets, self.document)
        for part in (texts.encode(), *(item.tobytes() for item in arrays)):
            state.update(len(part).to_bytes(8, "little") + part)
        return state.hexdigest()

    def sentence(self, row: int) -> list[str]:
        """The words of one sentence that are in the vocabulary.

        Args:
            row: From 0.

        Returns:
            Its words in order.
        """
        row = range(self.n)[row]
        return [self.words[number] for number in self.tokens[self.offsets[row] : self.offsets[row + 1]]]

    def sentences_with(self, words: str | Iterable[str]) -> np.ndarray:
        """The sentences that hold at least one of the words.

        Args:
            words: Words of the vocabulary.

        Returns:
            Their rows, ascending, int64.

        Raises:
            IdError: If a word is not in the vocabulary.
        """
        asked = [words] if isinstance(words, str) else list(words)
        unknown = [word for word in asked if word not in self.index]
        if unknown:
            raise IdError(
                f"Not in the vocabulary of {len(self.words):,} words: {', '.join(map(repr, unknown[:5]))}. "
                f"To have rare words in it, read the corpus with keep=[...] or a lower min_count."
            )
        places = np.flatnonzero(np.isin(self.tokens, [self.index[word] for word in asked]))
        return np.unique(np.searchsorted(self.offsets, places, side="right") - 1)

    def groups(self, by: str) -> tuple[str, ...]:
        """One label for each sentence, as `Scores.sum_by` takes them.

        Args:
            by: The name of a field, or "document" if no field is called so.

        Returns:
            n labels.

        Raises:
            IdError: If there is no such field.
        """
        if by in self.fields:
            return self.fields[by]
        if by != "document":
            known = ", ".join(map(repr, ["document", *self.fields]))
            raise IdError(f"The sentences cannot be grouped by {by!r}; they can by {known}.")
        return tuple(self.documents[number] for number in self.document)

    def find(self, ids: Iterable[str]) -> dict[str, Sentence]:
        """Sentences with their text, from the files.

        Args:
            ids: As in `ids`.

        Returns:
            Sentences by id, in the order asked for.

        Raises:
            CorpusError: If the corpus does not know its files.
            IdError: If there is no such sentence.
            StaleError: If a file changed since.
        """
        if self.source is None:
            raise CorpusError(
                "This corpus does not know its files: it was made from sentences, or saved with a split function. "
                "Use find_sentences(files, ids)."
            )
        return self.source.find(ids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically; the texts are JSON inside it.

        Args:
            path: Where to.

        Raises:
            ResultFileError: If it cannot be written.
        """
        import torch

        from crossfluence.extend import write_tensors

        known = self.source if self.source and isinstance(self.source.split, str) else None
        coded = {name: _coded(labels) for name, labels in self.fields.items()}
        texts = {
            "words": self.words, "ids": self.ids, "documents": self.documents, "fields": coded,
            "dropped": self.dropped, "source": asdict(known) if known else None,
        }  # fmt: skip
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in ARRAYS}
        write_tensors(path, FORMAT, tensors, texts=json.dumps(texts, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Corpus:
        """Reads what `save` wrote.

        Args:
            path: From where.

        Returns:
            The corpus.

        Raises:
            ResultFileError: If there is no such file, or it holds something else.
        """
        from crossfluence.extend import fitting

        texts, arrays = _first(path) if zipfile.is_zipfile(path) else _present(path)
        with fitting(path):
            known = texts["source"]
            return cls(
                words=tuple(texts["words"]),
                ids=tuple(texts["ids"]),
                documents=tuple(texts["documents"]),
                fields={
                    name: tuple(map(labels.__getitem__, codes)) for name, (labels, codes) in texts["fields"].items()
                },
                dropped=texts["dropped"],
                source=_source(known) if known else None,
                **arrays,
            )


def _present(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Texts and arrays of a file."""
    from crossfluence.extend import fitting, read_tensors

    if not os.path.exists(path):
        raise ResultFileError(f"There is no file {os.fspath(path)}.")
    try:
        found = read_tensors(path, FORMAT)
    except NewerFileError:
        raise
    except ResultFileError as error:
        raise ResultFileError(f"{os.fspath(path)} is not a corpus that Corpus.save wrote: {error}") from error
    with fitting(path):
        return json.loads(found.texts["texts"]), {name: found.tensors[name].numpy() for name in ARRAYS}


def _first(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Texts and arrays of a file of the first format."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            kind, texts = str(file["kind"]), json.loads(file["texts"].tobytes())
            arrays = {name: file[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ResultFileError(f"{os.fspath(path)} is not a corpus that Corpus.save wrote: {error}.") from error
    if kind != FIRST:
        raise ResultFileError(f"{os.fspath(path)} is a {kind!r}; needed a corpus. Make it again.")
    return texts, arrays


def _source(known: Mapping[str, Any]) -> Source:
    """Files and how to read them; the first files of a corpus have no list of those left aside."""
    files = tuple(File(**file) for file in known["files"])
    return Source(**{**known, "files": files, "skipped": tuple(known.get("skipped", ()))})


def _coded(labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """Different labels, and the number of each: short on disk, since most repeat."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return list(numbers), [numbers[label] for label in labels]
