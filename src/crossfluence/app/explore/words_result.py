"""The folder of a finished answer about words: corpus, vectors, settings, lists and texts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..._storage.archive import fitting, read_tensors, write_tensors
from ..._storage.atomic import write_atomically
from ...errors import ResultFileError
from ...words import Corpus, SkipGram, WordSets, WordsSettings

FORMAT, ABOUT = "crossfluence.words-result/1", "result.json"
CORPUS, VECTORS, TEXTS = "corpus.safetensors", "vectors.safetensors", "texts.json.gz"


@dataclass(frozen=True, eq=False)
class WordsResult:
    """A finished answer about words.

    Attributes:
        folder: Where it is kept.
        corpus: The sentences as word numbers.
        model: The trained vectors.
        settings: Of training.
        texts: Of the sentences.
        shown: The label of each sentence for a person.
        lists: Association tests that were asked.
        word: The word that was asked about; empty if tests were.
        clusters: Of words, for questions about a word.
        title: What the corpus is called.
        verdict: The first sentence of its page.
        level: "sizes", "order" or "unreliable".
        command: The command line that made it.
    """

    folder: Path
    corpus: Corpus = field(repr=False)
    model: SkipGram = field(repr=False)
    settings: WordsSettings
    texts: Sequence[str] = field(repr=False)
    shown: Sequence[str] = field(repr=False)
    lists: tuple[WordSets, ...]
    word: str
    clusters: int
    title: str
    verdict: str
    level: str
    command: str


def keep_words(result: WordsResult) -> None:
    """Writes a result into its folder; the file that says what it is comes last.

    Args:
        result: What to keep.

    Raises:
        ResultFileError: If the folder cannot be written.
    """
    folder, about = result.folder, result.folder / ABOUT
    folder.mkdir(parents=True, exist_ok=True)
    about.unlink(missing_ok=True)  # an older result, whose parts are overwritten now
    result.corpus.save(folder / CORPUS)
    tables = {"words": result.model.word_vectors.detach(), "contexts": result.model.context_vectors.detach()}
    write_tensors(folder / VECTORS, FORMAT, tables)
    texts = json.dumps({"texts": list(result.texts), "shown": list(result.shown)}, ensure_ascii=False)
    write_atomically(folder / TEXTS, gzip.compress(texts.encode(), mtime=0))
    said: dict[str, Any] = {
        "format": FORMAT, "settings": asdict(result.settings), "lists": [asdict(one) for one in result.lists],
        "word": result.word, "clusters": result.clusters, "title": result.title, "verdict": result.verdict,
        "level": result.level, "command": result.command,
    }  # fmt: skip
    write_atomically(about, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())


def read_words(folder: Path, said: Mapping[str, Any]) -> WordsResult:
    """Reads a result.

    Args:
        folder: Where it is kept.
        said: Its `result.json`.

    Returns:
        The result, ready to be asked.

    Raises:
        ResultFileError: If it is damaged.
    """
    corpus = Corpus.load(folder / CORPUS)
    found = read_tensors(folder / VECTORS, FORMAT).tensors
    try:
        texts = json.loads(gzip.decompress((folder / TEXTS).read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise ResultFileError(f"{folder / TEXTS} is damaged. Run crossfluence words again, with --force.") from error
    with fitting(folder / ABOUT):
        model = SkipGram(corpus.words, found["words"], found["contexts"])
        settings = {**said["settings"], "further": tuple(said["settings"]["further"])}
        lists = tuple(WordSets(**{**one, "categories": tuple(one["categories"])}) for one in said["lists"])
        return WordsResult(
            folder, corpus, model, WordsSettings(**settings), texts["texts"], texts["shown"], lists, said["word"],
            int(said["clusters"]), said["title"], said["verdict"], said["level"], said["command"],
        )  # fmt: skip
