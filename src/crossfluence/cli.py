"""The command line: bad input gets one sentence and exit code 2, and nothing is written."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ._errors import CorpusError, CrossfluenceError, MissingExtraError, ResultFileError

try:
    import typer
    from rich.table import Table as RichTable

    from .report.terminal import console, print_clusters, print_scifi, print_word, print_words
except ImportError as error:
    raise SystemExit(str(MissingExtraError("The command line", "typer", "app"))) from error

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor

    from .report.page import Samples
    from .studies.clusters import ClusterSettings
    from .studies.word import WordAnswer
    from .studies.words import WordsAnswer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
study = typer.Typer(no_args_is_help=True, help="Reproduce an experiment.")
app.add_typer(study, name="study")

Out = Annotated[Path, typer.Option(help="The page to write; the scores go beside it as .csv.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an output that exists already.")]
Seed = Annotated[int, typer.Option(help="Of the weights, k-means and random groups.", min=0)]
Check = Annotated[int, typer.Option(help="Samples to leave out one by one.", min=3)]


@app.callback()
def describe() -> None:
    """Which training samples made a model behave as it does, checked by training again."""


@app.command()
def demo(
    out: Out = Path("crossfluence-demo.html"),
    force: Force = False,
    seed: Seed = 0,
    check: Check = 100,
) -> None:
    """Cluster 1,797 handwritten digits, explain one that lies between two clusters, check the explanation."""
    from .report.page import Samples
    from .studies.digits import SETTINGS, digits

    x = digits()
    samples = Samples("1,797 handwritten digits, clustered without labels", "image", pictures=x.reshape(-1, 8, 8))
    settings = replace(SETTINGS, seed=seed, check=check)
    _answer(x - x.mean(0), tuple(range(len(x))), settings, samples, out=out, force=force)


@app.command()
def clusters(
    table: Annotated[Path, typer.Argument(help="A .csv or .tsv with a header, a .parquet, or a two-dimensional .npy.")],
    k: Annotated[int, typer.Option("--k", help="How many clusters.", min=2)],
    query: Annotated[str, typer.Option(help="The row to explain: its id, or its number from 0 without --id.")],
    id_column: Annotated[str | None, typer.Option("--id", help="The column that names the rows.")] = None,
    out: Out = Path("crossfluence-clusters.html"),
    force: Force = False,
    seed: Seed = 0,
    check: Check = 100,
) -> None:
    """Explain why a row of your table sits in its cluster, and check the explanation by training again."""
    from .report.page import Samples
    from .studies.clusters import ClusterSettings
    from .studies.tables import TableError, read_table

    with _plainly():
        data = read_table(table, id_column=id_column)
        row = data.row(query)
        if k > len(data.ids):
            raise TableError(f"--k {k} is more than the {len(data.ids)} rows of {table.name}.")
        if len(data.ids) < 8:
            raise TableError(f"{table.name} has {len(data.ids)} rows; needed at least 8 to leave some out.")
    if data.ignored:
        console.print(f"Not used, as they hold text or only one value: {', '.join(data.ignored)}.")
    samples = Samples(f"{table.name}: {len(data.ids):,} rows", "row", columns=data.columns, values=data.values)
    settings = ClusterSettings(k=k, seed=seed, check=check)
    _answer(data.standardised(), data.ids, settings, samples, query=row, source=table, out=out, force=force)


@app.command()
def words(
    corpus: Annotated[
        Path, typer.Argument(help="Text (.txt, .csv, .tsv, .jsonl, WikiExtractor; also .gz, .xz), or a folder.")
    ],
    weat: Annotated[
        list[str], typer.Option(help="career, career-terms, math, science, race, or a JSON file; may be repeated.")
    ] = ["career-terms"],  # noqa: B006  # typer copies it
    remove: Annotated[str, typer.Option(help="How many sentences to remove together: 0.5%, or a number.")] = "0.5%",
    column: Annotated[str | None, typer.Option(help="The column that holds the text, in tables and JSONL.")] = None,
    split: Annotated[str, typer.Option(help="lines, sentences (by syntok) or records.")] = "lines",
    encoding: Annotated[str, typer.Option(help="Of the text.")] = "utf-8",
    tokenizer: Annotated[str, typer.Option(help="words, whitespace (text cut before) or syntok.")] = "words",
    model: Annotated[
        Path | None, typer.Option(help="Explain this file of gensim's Word2Vec.save: its words, dimensions and window.")
    ] = None,
    vocabulary: Annotated[int, typer.Option(help="The most words to keep, most frequent first.", min=2)] = 5_000,
    min_count: Annotated[int, typer.Option(help="Rarer words are left out.", min=1)] = 5,
    dimensions: Annotated[int, typer.Option(help="Length of the vectors.", min=1)] = 50,
    window: Annotated[int | None, typer.Option(help="Words on each side; 5, or that of --model.", min=1)] = None,
    prior: Annotated[float, typer.Option(help="Strength of the l2 term, in pairs.", min=1e-3)] = 5.0,
    least: Annotated[float, typer.Option(help="Share of each list that the corpus must have.", min=0, max=1)] = 0.6,
    word: Annotated[str | None, typer.Option(help="Ask why this word is in its cluster, in place of --weat.")] = None,
    clusters: Annotated[int, typer.Option(help="With --word: how many clusters of words.", min=2)] = 8,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how long it will take, and how much memory.")] = False,
    save_vectors: Annotated[
        Path | None, typer.Option(help="Write the word vectors too: .txt or .bin (word2vec), .kv (gensim).")
    ] = None,
    out: Out = Path("crossfluence-words.html"),
    force: Force = False,
    seed: Seed = 0,
) -> None:
    """Find the sentences behind a bias of word embeddings, remove them, and check the answer by training again."""
    from .corpus.vocabulary import read_corpus
    from .models.skipgram.formats import refuse_ending
    from .objectives.word_sets import rows_of, word_sets
    from .studies.forecast import forecast
    from .studies.given import read_given
    from .studies.word import explain_word
    from .studies.words import WordsSettings, explain_words

    sheet, unfinished = out.with_suffix(".csv"), out.with_name(f"{out.name}.unfinished")
    with _plainly():
        if word is not None and (model or save_vectors):
            raise CorpusError("--word asks about vectors of its own; --model and --save-vectors go with --weat.")
        sources = [path for path in (corpus, model) if path is not None and path.is_file()]
        _refuse_outputs(out, sheet, sources, force or plan)
        if save_vectors is not None:
            refuse_ending(save_vectors)
            _refuse_output(save_vectors, sources, force or plan, "--save-vectors")
        settings = WordsSettings(dimensions, prior=prior, remove=_amount(remove), least=least, seed=seed)
        start = None
        if model is not None:
            start, sampling = read_given(model)
            settings = replace(settings, dimensions=start.word_vectors.shape[1], **asdict(sampling))
        settings = replace(settings, window=window or settings.window)
        lists = [one for name in weat for one in word_sets(name)] if word is None else []
        keep = {term for one in lists for part in (one.X, one.Y, one.A, one.B) for term in part} | (
            {word} if word else set()
        )
        text = read_corpus(
            corpus, column=column, split=split, encoding=encoding, tokenizer=tokenizer, min_count=min_count,
            max_words=vocabulary, keep=keep, keep_count=min_count, words=None if start is None else start.words,
        )  # fmt: skip
        console.print(f"{text.n:,} sentences, {len(text.tokens):,} words, vocabulary {len(text.words):,}.")
        if word is not None:
            rows_of([word], text.index)  # refused before any time is foretold
        console.print(str(forecast(text, max(1, len(lists)), settings)))
        if plan:
            return
        try:
            if word is None:
                answer = explain_words(text, lists, settings, start=start, store=unfinished)
                _write_words(answer, corpus.name, out, sheet, save_vectors)
                print_words(answer)
            else:
                moved = explain_word(text, word, clusters=clusters, settings=settings, store=unfinished)
                _write_words(moved, corpus.name, out, sheet, None)
                print_word(moved)
        except KeyboardInterrupt:
            sys.exit(f"\nStopped. What is finished is kept in {unfinished}; the same command goes on from there.")
    shutil.rmtree(unfinished, ignore_errors=True)
    written = [out, sheet, *([save_vectors] if save_vectors else [])]
    console.print(f"Wrote {' and '.join(map(str, written))}.")


@study.command()
def mixture(
    out: Annotated[Path, typer.Option(help="The folder for results.csv and figure.html.")] = Path("study-mixture"),
    force: Force = False,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0.", min=1)] = 5,
) -> None:
    """The paper's first experiment: a mixture of Gaussians, each estimate beside its own leave-one-out."""
    from .studies.mixture import mixture_study

    with _plainly():
        rows = mixture_study(out, seeds=seeds, force=force)
    shown = RichTable(title="Pooled Pearson with leave-one-out, by seed; then means over seeds")
    columns = ["setting", "estimate", *[f"seed {seed}" for seed in range(seeds)], "per point", "slope"]
    for place, column in enumerate(columns):
        shown.add_column(column, justify="left" if place < 2 else "right")
    for setting, estimate in dict.fromkeys((row["setting"], row["estimate"]) for row in rows):
        chosen = [row for row in rows if (row["setting"], row["estimate"]) == (setting, estimate)]
        means = [sum(row[name] for row in chosen) / len(chosen) for name in ("mean_pearson", "slope")]
        figures = [row["pooled_pearson"] for row in chosen] + means
        shown.add_row(setting, estimate, *[f"{value:.3f}" for value in figures])
    console.print(shown)
    console.print(f"Wrote {out / 'results.csv'} and {out / 'figure.html'}.")


@study.command()
def planted(
    out: Annotated[Path, typer.Option(help="The folder for planted.txt and results.csv.")] = Path("study-planted"),
    force: Force = False,
    seeds: Annotated[int, typer.Option(help="How many corpora, with seeds from 0.", min=1)] = 5,
) -> None:
    """A corpus whose culprits are known: are they found, and is the bias gone without them?"""
    from .studies.planted import planted_study

    with _plainly():
        rows = planted_study(out, seeds=seeds, force=force)
    shown = RichTable(title="60 of 2,060 sentences were planted; effect sizes of the test career-terms")
    for column in rows[0]:
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(*[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()])
    console.print(shown)
    console.print(f"Wrote {out / 'planted.txt'} (seed 0) and {out / 'results.csv'}.")


@study.command()
def weat(
    data_dir: Annotated[
        Path, typer.Option(envvar="CROSSFLUENCE_DATA", help="The folder with wnc_parts/, wikibias/ and enwiki/.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for results.csv and figure.html.")] = Path("study-weat"),
    force: Force = False,
    words: Annotated[int, typer.Option(help="Of plain Wikipedia.", min=1)] = 1_500_000,
    vocabulary: Annotated[int, typer.Option(help="The most words to keep.", min=2)] = 1_500,
    dimensions: Annotated[int, typer.Option(help="Length of the vectors.", min=1)] = 32,
    sizes: Annotated[str, typer.Option(help="How many sentences are acted on; the paper: 5,10,100,1000.")] = "10,100",
    steps: Annotated[str, typer.Option(help="Of undo and amplify; the paper: 5,10,100,1000.")] = "10,100",
    seeds: Annotated[int, typer.Option(help="Of the sampled trainer, which takes the largest size.", min=0)] = 2,
) -> None:
    """The paper's experiment on bias in word embeddings: every action, predicted, found, and what it cost."""
    from .report.terminal import print_weat
    from .studies.weat import WeatSettings, summary, weat_study

    with _plainly():
        settings = WeatSettings(
            words, vocabulary, dimensions, _numbers("sizes", sizes), _numbers("steps", steps), seeds
        )
        try:
            rows, notes = weat_study(data_dir, out, settings=settings, force=force)
        except KeyboardInterrupt:
            sys.exit(f"\nStopped. What is finished is kept in {out}; the same command goes on from there.")
    print_weat(summary(rows), notes)
    console.print(f"Wrote {out / 'results.csv'} and {out / 'figure.html'}.")


@study.command()
def scifi(
    data_dir: Annotated[Path, typer.Option(envvar="CROSSFLUENCE_DATA", help="The folder with scifi/.")],
    out: Annotated[Path, typer.Option(help="The folder for the tables and figure.html.")] = Path("study-scifi"),
    force: Force = False,
    full: Annotated[
        bool, typer.Option("--all", help="1, 2, 5 and 10 sentences, 5 to 1,000 steps; default: 10, and 5 to 100.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """The paper's second experiment: what moved a word, what holds it in its cluster, does it leave without that?"""
    from .studies.scifi import SciFi, scifi_study

    settings = SciFi(seed=seed)
    if full:
        settings = replace(settings, sentences=(1, 2, 5, 10), steps=(5, 10, 100, 1000))
    with _plainly():
        found = scifi_study(data_dir / "scifi", out, settings, force=force)
    print_scifi(found)
    console.print(f"Wrote results.csv, clusters.csv, determined.csv and figure.html into {out}.")


def _answer(
    x: Tensor,
    ids: tuple[Hashable, ...],
    settings: ClusterSettings,
    samples: Samples,
    *,
    query: int | None = None,
    source: Path | None = None,
    out: Path,
    force: bool,
) -> None:
    """Explains, prints the table and writes page and scores; a stopped run goes on when it is started again."""
    from ._files import write_atomically
    from .report.page import cluster_page, frame_csv
    from .studies.clusters import explain

    sheet = out.with_suffix(".csv")
    unfinished = out.with_name(f"{out.name}.unfinished")
    with _plainly():
        _refuse_outputs(out, sheet, [] if source is None else [source], force)
        try:
            found = explain(x, ids, settings, query=query, store=unfinished)
        except KeyboardInterrupt:
            kept = f" Finished retrainings are kept in {unfinished}; the same command goes on from there."
            sys.exit("\nStopped." + (kept if unfinished.exists() else " Nothing was written."))
        page = cluster_page(found, samples, command=f"crossfluence {shlex.join(sys.argv[1:])}")
        write_atomically(out, page.encode())
        write_atomically(sheet, frame_csv(found.scores))
    shutil.rmtree(unfinished, ignore_errors=True)
    print_clusters(found, settings, samples)
    console.print(f"Wrote {out} and {sheet}.")


def _amount(remove: str) -> float:
    """A share from "1%", a number from "300"."""
    try:
        value = float(remove.removesuffix("%")) / (100 if remove.endswith("%") else 1)
    except ValueError:
        raise CorpusError(f"--remove {remove} is not a share such as 1% or a number such as 300.") from None
    if not remove.endswith("%") and (value < 1 or value != round(value)):
        raise CorpusError(f"--remove {remove} is not a share such as 1% or a number such as 300.")
    return value


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers from "10,100"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise CorpusError(f"--{name} {text} is not a list of numbers such as 10,100.") from None


def _write_words(answer: WordsAnswer | WordAnswer, title: str, out: Path, sheet: Path, vectors: Path | None) -> None:
    from ._files import write_atomically
    from .models.skipgram.formats import write_vectors
    from .report.page import frame_csv
    from .report.word import word_page
    from .report.words import words_page
    from .studies.word import WordAnswer

    shown = {label for name in answer.scores.objectives for effect in ("raises", "lowers")
             for label, _ in answer.scores.top(20, name, effect=effect)}  # fmt: skip
    texts: dict[Hashable, str] = {label: one.text for label, one in answer.corpus.find(map(str, shown)).items()}
    command = f"crossfluence {shlex.join(sys.argv[1:])}"
    if isinstance(answer, WordAnswer):
        page = word_page(answer, texts, title=title, command=command)
    else:
        page = words_page(answer, texts, title=title, command=command)
    write_atomically(out, page.encode())
    write_atomically(sheet, frame_csv(answer.scores))
    if vectors is not None and not isinstance(answer, WordAnswer):
        write_vectors(answer.model, vectors)


def _refuse_outputs(out: Path, sheet: Path, sources: list[Path], force: bool) -> None:
    if out.suffix.lower() not in {".html", ".htm"}:
        raise ResultFileError(f"--out {out} must end in .html; the scores go beside it as .csv.")
    for path in (out, sheet):
        _refuse_output(path, sources, force)


def _refuse_output(path: Path, sources: list[Path], force: bool, option: str = "--out") -> None:
    if path.is_dir():
        raise ResultFileError(f"{path} is a folder. Choose another {option}.")
    if path.exists() and any(path.samefile(source) for source in sources):
        raise ResultFileError(f"{path} is what is read. Choose another {option}.")
    if path.exists() and not force:
        raise ResultFileError(f"{path} exists already. Choose another {option}, or add --force to overwrite it.")
    if not path.parent.is_dir():
        raise ResultFileError(f"The folder {path.parent} does not exist. Make it first, or choose another {option}.")


@contextmanager
def _plainly() -> Iterator[None]:
    """One sentence and exit code 2 for what a person can mend."""
    try:
        yield
    except (CrossfluenceError, OSError) as error:
        typer.echo(f"crossfluence: {error}", err=True)
        raise typer.Exit(2) from error


def main(argv: list[str] | None = None) -> None:
    """The console script."""
    app(argv)
