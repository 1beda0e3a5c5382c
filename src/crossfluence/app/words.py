"""The command that explains word embeddings: a bias in them, or the cluster of a word."""

from __future__ import annotations

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
)
from .output import alone, print_json, quieten, say
from .report.terminal import console

if TYPE_CHECKING:
    from ..words.corpus.corpus import Corpus
    from ..words.settings import WordsSettings
    from ..words.skipgram.module import SkipGram
    from .forecast_words import Extent

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
    from ..words.settings import WordsSettings
    from ..words.word_sets import word_sets
    from .forecast_words import forecast_words
    from .report.sheet import own_ids
    from .texts import encoding_of, first_row_of, left_aside, of_scripts
    from .word_answers import Asked, Files, answered

    if example_lists:
        typer.echo(EXAMPLE_LISTS)
        return
    quieten(quiet, as_json)
    files = Files(out, save_vectors, write_cleaned)
    with exit_on_error(out):
        corpus = _given(corpus, model, trust=trust, alone=word is not None, saved=save_vectors is not None)
        files.refuse([path for path in (corpus, model) if path is not None and path.is_file()], force, plan)
        amounts = [amount_of(part.strip(), "--remove") for part in (remove or "0.5%").split(",")]
        settings = WordsSettings(
            dimensions, prior=prior, remove=amounts[0], further=tuple(amounts[1:]), least=least, seed=seed
        )
        start, settings = _started(model, settings)
        settings = replace(settings, window=window or settings.window)
        lists = [one for name in weat for one in word_sets(name)] if word is None else []
        told, remarks = encoding_of(corpus, beginning=plan) if encoding is None else (encoding, [])
        text, extent = _read(
            corpus, start, beginning=plan, tokenizer=tokenizer, min_count=min_count, max_words=vocabulary,
            keep={term for one in lists for term in one.words} | ({word} if word else set()),
            reading={"format": format, "column": column, "split": split, "encoding": told, "header": header},
        )  # fmt: skip
        own = own_ids(text, id_column)
        for remark in (*remarks, *left_aside(text), *first_row_of(text), *of_scripts(text, tokenizer), str(extent)):
            console.print(remark, soft_wrap=True)
        if word is not None and remove is None and extent.share == 1.0:
            settings = _few_of(word, text, settings)
        asked = Asked(text, lists, word, clusters, settings, start, own, corpus.name)
        asked.refuse(extent)
        expected = forecast_words(extent, max(1, len(lists)), settings)
        console.print(str(expected))
        if plan:
            if as_json:
                print_json({"seconds": expected.seconds, "gigabytes": expected.gigabytes})
            return
        with alone(out):
            found = answered(asked, files, expected)
    console.print(f"Wrote {' and '.join(map(str, files.written()))}.")
    say(found.verdict, quiet=quiet, as_json=as_json)
    if as_json:
        print_json(found.told)
    exit_code(found.reliable)


def _given(corpus: Path | None, model: Path | None, *, trust: bool, alone: bool, saved: bool) -> Path:
    """The corpus, if the options go together."""
    if corpus is None:
        raise CorpusError("Name a file or folder with the text: crossfluence words FILE.")
    if alone and (model or saved):
        raise CorpusError("--word asks about vectors of its own; --model and --save-vectors go with --weat.")
    if model is not None and model.is_file() and not trust:
        raise CorpusError(
            f"{model.name} is a pickle of Python, and opening it can run a program. If you made it, or trust who "
            f"did, add --trust."
        )
    return corpus


def _started(model: Path | None, settings: WordsSettings) -> tuple[SkipGram | None, WordsSettings]:
    """A given model, and settings with its dimensions and sampling."""
    if model is None:
        return None, settings
    from ..words.pretrained import read_given

    start, sampling = read_given(model)
    return start, replace(settings, dimensions=start.word_vectors.shape[1], **asdict(sampling))


def _read(
    path: Path, start: SkipGram | None, *, reading: dict[str, Any], beginning: bool, min_count: int, **options: Any
) -> tuple[Corpus, Extent]:
    """The corpus, or its beginning where that is enough to foretell from, and the size of it all."""
    from ..words.corpus.vocabulary import read_corpus
    from .forecast_words import Extent
    from .forecast_words import beginning as read_beginning

    if beginning and start is None:
        return read_beginning(path, reading=reading, min_count=min_count, **options)
    words = None if start is None else start.words
    text = read_corpus(path, **reading, min_count=min_count, keep_count=min_count, words=words, **options)
    return text, Extent.of(text)


def _few_of(word: str, text: Corpus, settings: WordsSettings) -> WordsSettings:
    """No more sentences removed than a quarter of those that hold the word."""
    from ..words.word_sets import rows_of

    row = next(iter(rows_of([word], text.index).values()))
    most = max(1, len(text.sentences_with(text.words[row])) // 4)
    return replace(settings, remove=min(settings.group(text.n), most))
