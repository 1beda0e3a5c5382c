"""Predicted against retrained: what removing sentences does to WEAT effect sizes, on real corpora.

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.words.removals
       [--corpus enwiki2015] [--words 1000000] [--out words.csv]

Every subset is removed, training goes on to convergence from the full model, and the change of every effect size stands
beside what each estimate said: sums of scores (first order), and one Newton step without the subset (`unlearn`).
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

import crossfluence as cf
from benchmarks.common.options import options
from benchmarks.common.results import write
from crossfluence.words.corpus.pairs import Pairs
from crossfluence.words.corpus.vocabulary import build_corpus
from crossfluence.words.explain_bias import unlearned
from crossfluence.words.objectives import WEAT, weat
from crossfluence.words.skipgram import ExpectedTraining, WordBlocks
from crossfluence.words.word_sets import word_sets

from .corpora import LEAST_COUNT, SOURCES, TESTS, some_words, wanted_words


def questions(counts: dict[str, int], index: dict[str, int], tests: Iterable[str] = TESTS) -> dict[str, WEAT]:
    """The WEAT tests half of whose words are not rare in the corpus; rare words would dominate an effect size."""
    known = {word: row for word, row in index.items() if counts[word] >= LEAST_COUNT}
    return {name: question for name in tests if (question := test_or_none(name, known)) is not None}


def test_or_none(name: str, known: dict[str, int]) -> WEAT | None:
    """A test, if the corpus has half of the words of each of its lists."""
    try:
        return weat(word_sets(name)[0], known, least=0.5)
    except cf.CrossfluenceError as error:
        print(f"left out: {str(error)[:80]}...")
        return None


def subsets(n: int, scores: cf.Scores, random: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Random ones of half to two percent, then the strongest that raise or lower each effect size."""
    draw = np.random.default_rng(seed)
    for number in range(random):
        size = int(n * (0.005, 0.01, 0.02)[number % 3])
        yield "random", [scores.ids[row] for row in draw.choice(n, size, replace=False)]
    for name in scores.objectives:
        for share in (0.001, 0.005):
            for effect in ("raises", "lowers"):
                yield f"{effect} {name}", [label for label, _ in scores.top(int(n * share), name, effect=effect)]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--corpus", choices=SOURCES, default="enwiki2015")
    parser.add_argument("--words", type=int, default=1_000_000)
    parser.add_argument("--vocabulary", type=int, default=3_000)
    parser.add_argument("--dimensions", type=int, default=32)
    parser.add_argument("--prior", type=float, default=5.0)
    parser.add_argument("--random", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold", action="store_true", help="train again from random vectors, not from the whole model")
    parser.add_argument("--out", type=Path, default=Path("words.csv"))
    asked = parser.parse_args()
    sentences = some_words(asked.corpus, asked.words)
    corpus = build_corpus(sentences, max_words=asked.vocabulary, keep=wanted_words(), keep_count=LEAST_COUNT)
    print(corpus)
    training = ExpectedTraining(Pairs(corpus), asked.dimensions, prior=asked.prior, seed=asked.seed)
    began = time.perf_counter()
    model, ended = training.fit()
    trained = time.perf_counter() - began
    print(f"trained in {trained:.1f} s, {ended.steps} steps, {ended.evaluations} gradients, l2 {training.l2:.2g}")
    asking = questions(dict(zip(corpus.words, corpus.counts.tolist(), strict=True)), model.index)

    def watch(of):
        return {name: question(of) for name, question in asking.items()}

    before = {name: float(value.detach()) for name, value in watch(model).items()}
    print({name: round(value, 3) for name, value in before.items()})
    risk = training.risk(model)
    solvers = {
        "first order": cf.Auto(),
        "Gauss-Newton": cf.CG(curvature=cf.GaussNewton(), preconditioner=WordBlocks()),
        "word blocks": WordBlocks(),
        "gradient similarity": cf.Identity(),
    }
    began, first = time.perf_counter(), WordBlocks().invert(risk)
    print(f"blocks {time.perf_counter() - began:.1f} s")
    del first
    scores = {}
    for name, solver in solvers.items():
        began = time.perf_counter()
        scores[name] = cf.influence(risk, watch, solver)
        print(f"{name}: {time.perf_counter() - began:.1f} s, steps {scores[name].report.steps}", flush=True)
    again = training if asked.cold else training.starting_from(model)
    rows = []
    for kind, ids in subsets(corpus.n, scores["first order"], asked.random, asked.seed):
        weights = torch.ones(corpus.n)
        weights[[risk.rows[label] for label in ids]] = 0
        began = time.perf_counter()
        rest, ended = again.fit(weights)
        took = time.perf_counter() - began
        began = time.perf_counter()
        outcome = unlearned(risk, ids, watch)
        newton = outcome.after.tolist() if outcome else [float("nan")] * len(asking)
        stepped = time.perf_counter() - began
        after = watch(rest)
        print(f"{kind} {len(ids)}: {took:.0f} s ({ended.evaluations}), Newton {stepped:.0f} s", end="")
        for place, name in enumerate(asking):
            actual = float(after[name].detach()) - before[name]
            guesses = {"one Newton step": newton[place] - before[name]}
            guesses |= {method: -float(found.select(ids).values[:, place].sum()) for method, found in scores.items()}
            print(f" | {name} {actual:+.3f}: {guesses['first order']:+.3f} {guesses['one Newton step']:+.3f}", end="")
            rows += [
                {
                    "corpus": asked.corpus,
                    "subset": kind,
                    "size": len(ids),
                    "test": name,
                    "method": method,
                    "predicted": guess,
                    "actual": actual,
                }
                for method, guess in guesses.items()
            ]
        print(flush=True)
        write(asked.out, rows)
    summary(rows)


def summary(rows: list[dict]) -> None:
    """Pearson and slope by method and test."""
    for method in dict.fromkeys(row["method"] for row in rows):
        for test in dict.fromkeys(row["test"] for row in rows):
            parts = []
            for chosen in ("random", ""):
                some = [
                    row
                    for row in rows
                    if (row["method"], row["test"]) == (method, test) and row["subset"].startswith(chosen)
                ]
                x, y = (np.array([row[name] for row in some]) for name in ("predicted", "actual"))
                parts.append(f"{np.corrcoef(x, y)[0, 1]:.3f} slope {(x * y).sum() / (x * x).sum():.2f}")
            print(f"{method:20} {test:14} random {parts[0]}   all {parts[1]}")


if __name__ == "__main__":
    main()
