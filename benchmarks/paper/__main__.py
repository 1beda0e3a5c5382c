"""The paper's experiments: `python -m benchmarks.paper mixture`, `planted`, `weat` or `scifi`."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from crossfluence.app.options import Force, Seed, exit_on_error, stop
from crossfluence.app.report.terminal import console
from crossfluence.errors import CorpusError, UnreliableWarning

from .tables import print_scifi, print_weat


def mixture(
    out: Annotated[Path, typer.Option(help="The folder for results.csv and figure.html.")] = Path("study-mixture"),
    force: Force = False,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0.", min=1)] = 5,
) -> None:
    """The paper's first experiment: a mixture of Gaussians, each estimate beside its own leave-one-out."""
    from .mixture import mixture_study

    with exit_on_error():
        rows = mixture_study(out, seeds=seeds, force=force)
    shown = Table(title="Pooled Pearson with leave-one-out, by seed; then means over seeds")
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


def planted(
    out: Annotated[Path, typer.Option(help="The folder for planted.txt and results.csv.")] = Path("study-planted"),
    force: Force = False,
    seeds: Annotated[int, typer.Option(help="How many corpora, with seeds from 0.", min=1)] = 5,
) -> None:
    """A corpus whose culprits are known: are they found, and is the bias gone without them?"""
    from crossfluence.words.planted import planted_study

    with exit_on_error():
        rows = planted_study(out, seeds=seeds, force=force)
    shown = Table(title="60 of 2,060 sentences were planted; effect sizes of the test career-terms")
    for column in rows[0]:
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(*[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()])
    console.print(shown)
    console.print(f"Wrote {out / 'planted.txt'} (seed 0) and {out / 'results.csv'}.")


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
    from .weat import WeatSettings, summary, weat_study

    with exit_on_error():
        settings = WeatSettings(
            words, vocabulary, dimensions, _numbers("sizes", sizes), _numbers("steps", steps), seeds
        )
        try:
            rows, notes = weat_study(data_dir, out, settings=settings, force=force)
        except KeyboardInterrupt:
            stop(f"Finished rows are kept in {out / 'unfinished'}; the same command goes on with the others.")
    print_weat(summary(rows), notes)
    console.print(f"Wrote {out / 'results.csv'} and {out / 'figure.html'}.")


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
    from .scifi import SciFi, scifi_study

    settings = SciFi(seed=seed)
    if full:
        settings = replace(settings, sentences=(1, 2, 5, 10), steps=(5, 10, 100, 1000))
    with exit_on_error():
        found = scifi_study(data_dir / "scifi", out, settings, force=force)
    print_scifi(found)
    console.print(f"Wrote results.csv, clusters.csv, determined.csv and figure.html into {out}.")


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers from "10,100"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise CorpusError(f"--{name} {text} is not a list of numbers such as 10,100.") from None


app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (mixture, planted, weat, scifi):
    app.command()(command)


@app.callback()
def describe() -> None:
    """Reproduces an experiment of the paper."""
    warnings.filterwarnings("ignore", category=UnreliableWarning)  # what the tables compare with training again


if __name__ == "__main__":
    app()
