"""The paper's experiment on bias in word embeddings: what was predicted, what happened, and what it cost."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from crossfluence._storage.atomic import kept_json, write_atomically
from crossfluence._storage.hashing import content_hash
from crossfluence.errors import CorpusError, ResultFileError, WordError
from crossfluence.words.association import WEAT, weat
from crossfluence.words.corpus.pairs import Pairs
from crossfluence.words.quality import held_out_loss, measured
from crossfluence.words.skipgram import ExpectedTraining, SampledTraining, SkipGram
from crossfluence.words.word_sets import word_sets

from .mitigation import PRIOR, Bench, Case, cases
from .neutrality import Mix, mixed

QUESTIONS = {
    "career": ("career", "career-terms"), "math": ("math",), "science": ("science",), "race": ("race", "race-terms"),
}  # fmt: skip
"""The lists of each question in order of preference: with names, where the corpus has them."""
LEAST = 0.6  # share of each list that the corpus must have
IDENTITY = ("trainer", "test", "action", "of", "size", "steps", "guarded", "debiased")
"""Columns that say what was done; the others are results."""


@dataclass(frozen=True)
class WeatSettings:
    """How large the experiment is.

    Attributes:
        words: Of plain Wikipedia, beside about 180,000 of each version of the pairs.
        vocabulary: The most words to keep.
        dimensions: Length of the vectors.
        sizes: How many sentences are acted on.
        steps: Of undo and amplify as in the paper; guarded ones take at most the largest.
        seeds: Of the sampled trainer.
        epochs: Of the sampled trainer.
        held: Share of plain Wikipedia that is held out.
    """

    words: int = 1_500_000
    vocabulary: int = 1_500
    dimensions: int = 32
    sizes: tuple[int, ...] = (10, 100)
    steps: tuple[int, ...] = (10, 100)
    seeds: int = 2
    epochs: int = 3
    held: float = 0.05

    def __post_init__(self) -> None:
        for name in ("sizes", "steps"):
            if min(getattr(self, name), default=0) < 1:
                raise CorpusError(f"Got {name}={getattr(self, name)}; needed at least one number, and none below 1.")


def weat_study(
    data: Path, out: Path, *, settings: WeatSettings | None = None, force: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Trains on biased sentences, acts on the strongest ones in every way, writes `results.csv` and `figure.html`.

    Args:
        data: The folder of the corpora, see `neutrality.mixed`.
        out: A folder; made if it is not there. Finished rows are kept in it, a stopped run goes on from them.
        settings: Sizes.
        force: Overwrite results that exist.

    Returns:
        One row for each trainer, seed, test and action; and what had to be left out, as sentences.

    Raises:
        ResultFileError: If there are results already and `force` is not set.
        CorpusError: If a file is missing, or the corpus has the words of no test.
    """
    import pandas as pd

    from .weat_figure import weat_figure

    settings = settings or WeatSettings()
    table, picture, unfinished = out / "results.csv", out / "figure.html", out / "unfinished"
    if (table.exists() or picture.exists()) and not force:
        raise ResultFileError(f"{out} holds results already. Choose another --out, or add --force to overwrite them.")
    lists = [one for names in QUESTIONS.values() for name in names for one in word_sets(name)]
    keep = [word for one in lists for word in one.words]
    mix = mixed(data, words=settings.words, vocabulary=settings.vocabulary, keep=keep, held=settings.held)
    tests, notes = questions(mix.corpus.index)
    unfinished.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(mix, tests, data, settings, unfinished))
    write_atomically(table, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())
    write_atomically(picture, weat_figure(summary(rows)).to_html(include_plotlyjs=True).encode())
    shutil.rmtree(unfinished)
    if not _has_wefe():
        notes.append("Hard debiasing was left out: it needs wefe. Type: pip install --no-deps wefe semantic_version")
    return rows, notes


def questions(index: Mapping[str, int]) -> tuple[tuple[WEAT, ...], list[str]]:
    """The association tests whose words the corpus has, and why others are not asked.

    Args:
        index: Word to row.

    Returns:
        At most one test for each question; sentences about what is missing.

    Raises:
        CorpusError: If there is no test at all.
    """
    found, notes = list[WEAT](), list[str]()
    for names in QUESTIONS.values():
        refused = list[str]()
        for name in names:
            try:
                found.append(weat(word_sets(name)[0], index, least=LEAST))
            except WordError as error:  # noqa: PERF203  # two turns
                refused.append(f"{str(error).partition('. ')[0]}.")
            else:
                break
        if refused:
            instead = f"{names[len(refused)]} is asked instead." if len(refused) < len(names) else "It is left out."
            notes.append(" ".join([*refused, instead]))
    if not found:
        raise CorpusError(f"The corpus has too few words of every test. {notes[0]} Take more --words.")
    return tuple(found), notes


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, with the standard deviation of the effect size before and after.

    Args:
        rows: Of the study.

    Returns:
        One row for each trainer, test and action.
    """
    grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(tuple(row[name] for name in IDENTITY), []).append(row)
    found = []
    for same in grouped.values():
        mean = {
            name: float(np.mean([row[name] for row in same]))
            for name, value in same[0].items()
            if name not in {*IDENTITY, "seed", "stopped"} and isinstance(value, (int, float))
        }
        deviations = {f"sd {name}": float(np.std([row[name] for row in same])) for name in ("before", "after")}
        found.append({**same[0], **mean, **deviations, "seeds": len(same)})
    return found


def _rows(
    mix: Mix, tests: tuple[WEAT, ...], data: Path, settings: WeatSettings, store: Path
) -> Iterator[dict[str, Any]]:
    """All rows; finished ones are read, the others made and kept."""
    pairs = Pairs(mix.corpus)
    loss = held_out_loss(pairs, mix.held)

    def cost(model: SkipGram) -> dict[str, float]:
        return {**measured(model, data=data), "held-out loss": loss(model)}

    names = [test.sets.name for test in tests]
    several = list(_trainings(pairs, names, settings))
    with tqdm(total=sum(len(asked) for *_, asked in several), desc="actions", unit="action", disable=None) as bar:
        for name, seed, training, asked in several:
            bench = Bench(training, mix, tests, cost)
            decides = mix.corpus.digest, mix.held, settings.dimensions, settings.epochs, names, name, seed
            for case in asked:
                file = store / f"{content_hash(*decides, case)}.json"
                made = kept_json(file, lambda bench=bench, case=case: bench.rows(case))
                yield from ({"trainer": name, "seed": seed, **row} for row in made)
                bar.update()


def _trainings(
    pairs: Pairs, names: Sequence[str], settings: WeatSettings
) -> Iterator[tuple[str, int, ExpectedTraining | SampledTraining, list[Case]]]:
    """Name, seed, trainer, and what is tried on its model: the sampled one takes only the largest sizes."""
    hard = _has_wefe()
    expected = ExpectedTraining(pairs, settings.dimensions, prior=PRIOR)
    yield "expected", 0, expected, list(cases(names, settings.sizes, settings.steps, hard=hard))
    for seed in range(settings.seeds):
        sampled = SampledTraining(pairs, settings.dimensions, epochs=settings.epochs, seed=seed)
        yield "sampled", seed, sampled, list(cases(names, [max(settings.sizes)], [max(settings.steps)], hard=hard))


def _has_wefe() -> bool:
    return importlib.util.find_spec("wefe") is not None
