"""The command that explains word embeddings: a bias in them, or the cluster of a word."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Hashable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CorpusError
from .options import (
    AsJson,
    Encoding,
    Force,
    Header,
    Out,
    Plan,
    Quiet,
    Seed,
    WriteCleaned,
    amount_of,
    exit_code,
    exit_on_error,
    folder_beside,
    refuse_folder,
    refuse_output,
    refuse_outputs,
    stop_unfinished,
    unfinished_beside,
)
from .output import alone, print_json, quieten, say
from .report.terminal import console, print_word, print_words

if TYPE_CHECKING:
    from ..words.corpus.corpus import Corpus
    from ..words.explain_bias import WordsAnswer
    from ..words.explain_word import WordAnswer
    from ..words.settings import WordsSettings
    from ..words.word_sets import WordSets

EXAMPLE_LISTS = """\
Save one of these as lists.json, and type: crossfluence words FILE --weat lists.json
X and Y are the two groups, A and B what they may stand near; at least 2 words in each, better 8.

{"name": "career", "X": ["he", "him", "his", "man", "men"], "Y": ["she", "her", "hers", "woman", "women"],
 "A": ["office", "salary", "career", "business"], "B": ["home", "family", "children", "marriage"]}

{"name": "Beruf", "X": ["er", "ihm", "sein", "mann", "männer"], "Y": ["sie", "ihr", "ihre", "frau", "frauen"],
 "A": ["büro", "gehalt", "karriere", "geschäft"], "B": ["zuhause", "familie", "kinder", "hochzeit"]}

Several at once: a JSON list of such objects. Built in: career, career-terms, math, science, race."""


def words(
    corpus: Annotated[
        Path | None,
        typer.Argument(
            help="Text (.txt, .csv, .tsv, .jsonl, .xlsx, .parquet, WikiExtractor; also packed), or a folder."
        ),
    ] = None,
    weat: Annotated[
        list[str], typer.Option(help="career, career-terms, math, science, race, or a JSON file; may be repeated.")
    ] = ["career-terms"],  # noqa: B006  # typer copies it
    remove: Annotated[
        str | None,
        typer.Option(
            help="How many sentences to remove together: 1%, a number, or several: 10,50; default: 0.5%, with --word "
            "no more than a quarter of those that hold it."
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column that holds the text, in tables and JSONL.")] = None,
    split: Annotated[str, typer.Option(help="lines, sentences (by syntok) or records.")] = "lines",
    header: Header = True,
    encoding: Encoding = None,
    format: Annotated[  # noqa: A002  # the plain word for it
        str | None, typer.Option(help="text, csv, tsv, jsonl, wikiextractor or wnc; default: told.")
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="words, whitespace (text cut before) or syntok.")] = "words",
    model: Annotated[
        Path | None, typer.Option(help="Explain this file of gensim's Word2Vec.save: its words, dimensions and window.")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Open --model: such a file can run a program.")] = False,
    vocabulary: Annotated[int, typer.Option(help="The most words to keep, most frequent first.", min=2)] = 5_000,
    min_count: Annotated[int, typer.Option(help="Rarer words are left out.", min=1)] = 5,
    dimensions: Annotated[int, typer.Option(help="Length of the vectors.", min=1)] = 50,
    window: Annotated[int | None, typer.Option(help="Words on each side; 5, or that of --model.", min=1)] = None,
    prior: Annotated[float, typer.Option(help="Strength of the l2 term, in pairs.", min=1e-3)] = 5.0,
    least: Annotated[float, typer.Option(help="Share of each list that the corpus must have.", min=0, max=1)] = 0.6,
    word: Annotated[str | None, typer.Option(help="Ask why this word is in its cluster, in place of --weat.")] = None,
    clusters: Annotated[int, typer.Option(help="With --word: how many clusters of words.", min=2)] = 8,
    id_column: Annotated[
        str | None, typer.Option("--id", help="The column with the records' own ids; default: told by its name.")
    ] = None,
    plan: Plan = False,
    save_vectors: Annotated[
        Path | None, typer.Option(help="Write the word vectors too: .txt or .bin (word2vec), .kv (gensim).")
    ] = None,
    write_cleaned: WriteCleaned = None,
    example_lists: Annotated[
        bool, typer.Option("--example-lists", help="Print word lists for --weat to copy, and do nothing else.")
    ] = False,
    out: Out = Path("crossfluence-words.html"),
    force: Force = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find the sentences behind a bias of word embeddings, remove them, and check the answer by training again."""
    from ..words.corpus.vocabulary import read_corpus
    from ..words.settings import WordsSettings
    from ..words.word_sets import rows_of, word_sets
    from .cleaned import CORPORA, refuse_cleaned, write_corpus
    from .forecast_words import Extent, beginning, forecast_words
    from .report.sheet import own_ids
    from .texts import encoding_of, first_row_of, left_aside, of_scripts

    if example_lists:
        typer.echo(EXAMPLE_LISTS)
        return
    quieten(quiet, as_json)
    sheet, unfinished = out.with_suffix(".csv"), unfinished_beside(out)
    with exit_on_error():
        if corpus is None:
            raise CorpusError("Name a file or folder with the text: crossfluence words FILE.")
        if word is not None and (model or save_vectors):
            raise CorpusError("--word asks about vectors of its own; --model and --save-vectors go with --weat.")
        sources = [path for path in (corpus, model) if path is not None and path.is_file()]
        force = force or unfinished.is_dir()  # what is there may be of the run that goes on now
        refuse_outputs(out, sheet, sources, force or plan)
        refuse_folder(folder_beside(out), force or plan)
        if save_vectors is not None:
            from ..words.skipgram.formats import refuse_ending

            refuse_ending(save_vectors)
            refuse_output(save_vectors, sources, force or plan, "--save-vectors")
        if write_cleaned is not None:
            refuse_cleaned(write_cleaned, CORPORA)
            refuse_output(write_cleaned, sources, force or plan, "--write-cleaned")
        amounts = [amount_of(part.strip(), "--remove") for part in (remove or "0.5%").split(",")]
        settings = WordsSettings(
            dimensions, prior=prior, remove=amounts[0], further=tuple(amounts[1:]), least=least, seed=seed
        )
        start = None
        if model is not None and model.is_file() and not trust:
            raise CorpusError(
                f"{model.name} is a pickle of Python, and opening it can run a program. If you made it, or trust who "
                f"did, add --trust."
            )
        if model is not None:
            from ..words.pretrained import read_given

            start, sampling = read_given(model)
            settings = replace(settings, dimensions=start.word_vectors.shape[1], **asdict(sampling))
        settings = replace(settings, window=window or settings.window)
        lists = [one for name in weat for one in word_sets(name)] if word is None else []
        keep = {term for one in lists for term in one.words} | ({word} if word else set())
        told, remarks = encoding_of(corpus, beginning=plan) if encoding is None else (encoding, [])
        reading: dict[str, Any] = {
            "format": format, "column": column, "split": split, "encoding": told, "header": header,
        }  # fmt: skip
        if plan and start is None:
            text, extent = beginning(
                corpus, reading=reading, tokenizer=tokenizer, min_count=min_count, max_words=vocabulary, keep=keep
            )
        else:
            text = read_corpus(
                corpus, **reading, tokenizer=tokenizer, min_count=min_count, max_words=vocabulary, keep=keep,
                keep_count=min_count, words=None if start is None else start.words,
            )  # fmt: skip
            extent = Extent.of(text)
        own = own_ids(text, id_column)
        for remark in (*remarks, *left_aside(text), *first_row_of(text), *of_scripts(text, tokenizer)):
            console.print(remark, soft_wrap=True)
        console.print(str(extent))
        if word is not None and remove is None and extent.share == 1.0:
            row = next(iter(rows_of([word], text.index).values()))
            most = max(1, len(text.sentences_with(text.words[row])) // 4)
            settings = replace(settings, remove=min(settings.group(text.n), most))
        if extent.share == 1.0:  # refused before any time is foretold
            if word is not None:
                rows_of([word], text.index)
            for one in lists:
                _refuse_lists(one, text, settings)
        settings.group(extent.sentences)
        if start is not None:
            from .given import compared

            for sentence in compared(start, text, lists, settings):
                console.print(sentence, soft_wrap=True)
        expected = forecast_words(extent, max(1, len(lists)), settings)
        console.print(str(expected))
        if plan:
            if as_json:
                print_json({"seconds": expected.seconds, "gigabytes": expected.gigabytes})
            return
        from ..words.explain_bias import explain_words
        from ..words.explain_word import explain_word
        from ..words.skipgram.formats import write_vectors
        from .report import sheet as sheets
        from .report.as_json import of_cluster_of_word, of_words
        from .report.verdicts import chosen_of, dependable, first_sentence, of_word

        shown_ids = sheets.shown_ids(text, own)
        with alone(out):
            try:
                if word is None:
                    answer = explain_words(text, lists, settings, start=start, store=unfinished)
                    _write_words(answer, corpus.name, out, sheet, own)
                    if save_vectors is not None:
                        write_vectors(answer.model, save_vectors)
                    print_words(answer, shown_ids)
                    reliable, told_json = dependable(answer), of_words(answer, shown_ids, out)
                    verdict = " ".join(first_sentence(answer, one) for one in answer.tests)
                    made: WordsAnswer | WordAnswer = answer
                    gone = {label for one in answer.tests for label in chosen_of(one).ids}
                else:
                    moved = explain_word(text, word, clusters=clusters, settings=settings, store=unfinished)
                    _write_words(moved, corpus.name, out, sheet, own)
                    print_word(moved, shown_ids)
                    reliable, told_json = of_word(moved).dependable, of_cluster_of_word(moved, shown_ids, out)
                    verdict, gone, made = str(of_word(moved)), set(moved.moves[0].ids), moved
            except KeyboardInterrupt:
                stop_unfinished(unfinished, "reads the corpus and computes the scores")
            if write_cleaned is not None:
                count = write_corpus(text, gone, write_cleaned)
                console.print(f"Wrote {write_cleaned}: {count:,} sentences, without the {len(gone):,} found.")
            _keep(out, text, made, tuple(lists), word, clusters, shown_ids, corpus.name, verdict)
            shutil.rmtree(unfinished, ignore_errors=True)
    written = [out, sheet, *([save_vectors] if save_vectors else [])]
    console.print(f"Wrote {' and '.join(map(str, written))}.")
    say(verdict, quiet=quiet, as_json=as_json)
    if as_json:
        print_json(told_json)
    exit_code(reliable)


def _keep(
    out: Path, text: Corpus, made: WordsAnswer | WordAnswer, lists: tuple[WordSets, ...], word: str | None,
    clusters: int, shown: Mapping[Hashable, str], title: str, verdict: str,
) -> None:  # fmt: skip
    """Keeps what the explorer needs."""
    from ..words.explain_word import WordAnswer
    from .explore.words_result import WordsResult, keep_words
    from .report.reliability import LEVELS
    from .report.verdicts import of_test, of_word

    levels = [of_word(made).level] if isinstance(made, WordAnswer) else [of_test(made, one).level for one in made.tests]
    folder, found = folder_beside(out), text.find(text.ids)
    keep_words(WordsResult(
        folder, text, made.model, made.settings, [found[label].text for label in text.ids],
        [shown[label] for label in text.ids], lists, word or "", clusters, title, verdict,
        LEVELS[max(map(LEVELS.index, levels))], f"crossfluence {shlex.join(sys.argv[1:])}",
    ))  # fmt: skip
    typed = f"crossfluence explore {shlex.quote(str(folder))}"
    console.print(f"To ask about other tests and words, type: {typed}", soft_wrap=True)


def _refuse_lists(lists: WordSets, text: Corpus, settings: WordsSettings) -> None:
    """Refuses word lists of which the corpus has too few; those that it has all need no look by PyTorch."""
    if len(set(lists.words) - set(text.index)) or len(lists.words) < 8:
        from ..words.association import weat

        weat(lists, text.index, least=settings.least)


def _write_words(
    answer: WordsAnswer | WordAnswer, title: str, out: Path, sheet: Path, own: tuple[str, ...] | None
) -> None:
    from .._storage.atomic import write_atomically
    from ..words.explain_word import WordAnswer
    from .report.sheet import shown_ids, words_csv
    from .report.word import word_page
    from .report.words import words_page

    corpus = answer.corpus
    texts: dict[Hashable, str] = {label: one.text for label, one in corpus.find(corpus.ids).items()}
    names = shown_ids(corpus, own)
    command = f"crossfluence {shlex.join(sys.argv[1:])}"
    if isinstance(answer, WordAnswer):
        page = word_page(answer, texts, names, title=title, command=command, sheet=sheet.name)
    else:
        page = words_page(answer, texts, names, title=title, command=command, sheet=sheet.name)
    write_atomically(out, page.encode())
    write_atomically(sheet, words_csv(answer.scores, corpus, texts, own))
