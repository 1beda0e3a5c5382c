"""The answers that the words command computes, prints and writes."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import (
    folder_beside,
    refuse_folder,
    refuse_output,
    refuse_outputs,
    stop_unfinished,
    unfinished_beside,
)
from .report.terminal import console, print_word, print_words

if TYPE_CHECKING:
    from ..words.corpus.corpus import Corpus
    from ..words.explain_bias import WordsAnswer
    from ..words.explain_word import WordAnswer
    from ..words.settings import WordsSettings
    from ..words.skipgram.module import SkipGram
    from ..words.word_sets import WordSets
    from .forecast import Forecast
    from .forecast_words import Extent


@dataclass(frozen=True)
class Files:
    """The files that are written.

    Attributes:
        page: The page; scores, the result and what is unfinished stand beside it.
        vectors: For the word vectors.
        cleaned: For the corpus without the sentences that were found.
    """

    page: Path
    vectors: Path | None = None
    cleaned: Path | None = None

    @property
    def sheet(self) -> Path:
        """For the scores."""
        return self.page.with_suffix(".csv")

    @property
    def unfinished(self) -> Path:
        """For what a stopped run goes on from."""
        return unfinished_beside(self.page)

    def refuse(self, sources: list[Path], force: bool, plan: bool) -> None:
        """Makes sure, before the work, that all can be written.

        Args:
            sources: What is read.
            force: Whether to write over what is there.
            plan: Whether nothing will be written.

        Raises:
            CrossfluenceError: If not.
        """
        again = force or plan or self.unfinished.is_dir()  # what is there may be of the run that goes on now
        refuse_outputs(self.page, self.sheet, sources, again)
        refuse_folder(folder_beside(self.page), again)
        if self.vectors is not None:
            from ..words.skipgram.formats import refuse_ending

            refuse_ending(self.vectors)
            refuse_output(self.vectors, sources, again, "--save-vectors")
        if self.cleaned is not None:
            from .cleaned import CORPORA, refuse_cleaned

            refuse_cleaned(self.cleaned, CORPORA)
            refuse_output(self.cleaned, sources, again, "--write-cleaned")

    def written(self) -> list[Path]:
        """Page, scores and vectors."""
        return [self.page, self.sheet, *([self.vectors] if self.vectors else [])]


@dataclass(frozen=True, eq=False)
class Asked:
    """A corpus and what is asked of it.

    Attributes:
        corpus: All of it, or its beginning where time is only foretold.
        lists: Of words, for tests; or
        word: whose cluster is asked about.
        clusters: How many clusters of words.
        settings: Of training and of removals.
        start: A given model.
        own: The records' own ids.
        title: Of the page.
    """

    corpus: Corpus
    lists: Sequence[WordSets]
    word: str | None
    clusters: int
    settings: WordsSettings
    start: SkipGram | None
    own: tuple[str, ...] | None
    title: str

    @cached_property
    def shown(self) -> dict[Hashable, str]:
        """How the ids of sentences are printed."""
        from .report.sheet import shown_ids

        return shown_ids(self.corpus, self.own)

    @cached_property
    def texts(self) -> dict[Hashable, str]:
        """The sentences."""
        return {label: one.text for label, one in self.corpus.find(self.corpus.ids).items()}

    def refuse(self, extent: Extent) -> None:
        """Makes sure, before any time is foretold, that the corpus has the words and sentences that are asked about.

        Args:
            extent: Of the corpus.

        Raises:
            CrossfluenceError: If not.
        """
        if extent.share == 1.0:
            if self.word is not None:
                from ..words.word_sets import rows_of

                rows_of([self.word], self.corpus.index)
            for one in self.lists:
                _refuse_lists(one, self.corpus, self.settings)
        self.settings.group(extent.sentences)
        if self.start is not None:
            from .given import compared

            for sentence in compared(self.start, self.corpus, self.lists, self.settings):
                console.print(sentence, soft_wrap=True)


@dataclass(frozen=True, eq=False)
class Found:
    """An answer, whatever was asked.

    Attributes:
        answer: With its scores and model.
        verdict: Its first sentences.
        level: Its least.
        reliable: Whether to exit with 0.
        told: For `--json`.
        gone: The sentences that `--write-cleaned` leaves out.
    """

    answer: WordsAnswer | WordAnswer
    verdict: str
    level: str
    reliable: bool
    told: dict[str, Any]
    gone: frozenset[Hashable]


def answered(asked: Asked, files: Files, expected: Forecast) -> Found:
    """Computes, prints and writes everything; a stopped run goes on when it is started again.

    Args:
        asked: The corpus and the question.
        files: What to write.
        expected: How long it will take.

    Returns:
        The answer.
    """
    try:
        found = _bias(asked, files, expected) if asked.word is None else _word(asked, asked.word, files, expected)
    except KeyboardInterrupt:
        stop_unfinished(files.unfinished, "reads the corpus and computes the scores")
    if files.cleaned is not None:
        from .cleaned import write_corpus

        count = write_corpus(asked.corpus, found.gone, files.cleaned)
        console.print(f"Wrote {files.cleaned}: {count:,} sentences, without the {len(found.gone):,} found.")
    _keep(asked, found, folder_beside(files.page))
    shutil.rmtree(files.unfinished, ignore_errors=True)
    return found


def _bias(asked: Asked, files: Files, expected: Forecast) -> Found:
    from ..words.explain_bias import explain_words
    from ..words.skipgram.formats import write_vectors
    from .report.as_json import of_words
    from .report.verdicts import chosen_of, dependable, first_sentence, of_test
    from .report.words import words_page
    from .whole import whole

    with whole(expected):
        answer = explain_words(asked.corpus, asked.lists, asked.settings, start=asked.start, store=files.unfinished)
    _write(answer, words_page, asked, files)
    if files.vectors is not None:
        write_vectors(answer.model, files.vectors)
    print_words(answer, asked.shown)
    return Found(
        answer, " ".join(first_sentence(answer, one) for one in answer.tests),
        _least(of_test(answer, one).level for one in answer.tests), dependable(answer),
        of_words(answer, asked.shown, files.page),
        frozenset(label for one in answer.tests for label in chosen_of(one).ids),
    )  # fmt: skip


def _word(asked: Asked, word: str, files: Files, expected: Forecast) -> Found:
    from ..words.explain_word import explain_word
    from .report.as_json import of_cluster_of_word
    from .report.verdicts import of_word
    from .report.word import word_page
    from .whole import whole

    with whole(expected):
        answer = explain_word(
            asked.corpus, word, clusters=asked.clusters, settings=asked.settings, store=files.unfinished
        )
    _write(answer, word_page, asked, files)
    print_word(answer, asked.shown)
    verdict = of_word(answer)
    return Found(
        answer, str(verdict), verdict.level, verdict.dependable, of_cluster_of_word(answer, asked.shown, files.page),
        frozenset(answer.moves[0].ids),
    )  # fmt: skip


def _least(levels: Iterable[str]) -> str:
    from .report.reliability import LEVELS

    return LEVELS[max(map(LEVELS.index, levels))]


def _keep(asked: Asked, found: Found, folder: Path) -> None:
    """Keeps what the explorer needs."""
    from .explore.words_result import WordsResult, keep_words

    ids = asked.corpus.ids
    keep_words(WordsResult(
        folder, asked.corpus, found.answer.model, found.answer.settings, [asked.texts[label] for label in ids],
        [asked.shown[label] for label in ids], tuple(asked.lists), asked.word or "", asked.clusters, asked.title,
        found.verdict, found.level, _command(),
    ))  # fmt: skip
    typed = f"crossfluence explore {shlex.quote(str(folder))}"
    console.print(f"To ask about other tests and words, type: {typed}", soft_wrap=True)


def _refuse_lists(lists: WordSets, text: Corpus, settings: WordsSettings) -> None:
    """Refuses word lists of which the corpus has too few; those that it has all need no look by PyTorch."""
    if len(set(lists.words) - set(text.index)) or len(lists.words) < 8:
        from ..words.association import weat

        weat(lists, text.index, least=settings.least)


def _write(answer: Any, page_of: Any, asked: Asked, files: Files) -> None:
    from .._storage.atomic import write_atomically
    from .report.sheet import words_csv

    page = page_of(answer, asked.texts, asked.shown, title=asked.title, command=_command(), sheet=files.sheet.name)
    write_atomically(files.page, page.encode())
    write_atomically(files.sheet, words_csv(answer.scores, asked.corpus, asked.texts, asked.own))


def _command() -> str:
    return f"crossfluence {shlex.join(sys.argv[1:])}"
