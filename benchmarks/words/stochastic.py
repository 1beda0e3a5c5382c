"""Stochastic skip-gram: what removing sentences does on average over seeds, beside each estimate and the noise.

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.words.stochastic
       [--words 500000] [--seeds 4] [--out stochastic.csv]

Every subset is removed from trainings by samples with several seeds; one with a seed and one without the subset draw
the same random numbers. The mean change of an effect size stands beside the estimates: at each run's own solution, and
at the one solution of training in expectation. Two halves of the seeds say how well the truth agrees with itself.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import crossfluence as cf
from benchmarks.common.options import options
from crossfluence.words.corpus.pairs import Pairs
from crossfluence.words.corpus.vocabulary import build_corpus
from crossfluence.words.explain_bias import newton_step
from crossfluence.words.skipgram import ExpectedTraining, SampledTraining, WordBlocks

from .corpora import SOURCES, some_words, wanted_words
from .removals import questions, subsets


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--corpus", choices=SOURCES, default="enwiki2018")
    parser.add_argument("--words", type=int, default=500_000)
    parser.add_argument("--vocabulary", type=int, default=1_500)
    parser.add_argument("--dimensions", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--tests", nargs="+", default=["career-terms"])
    parser.add_argument("--random", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("stochastic.csv"))
    asked = parser.parse_args()
    sentences = some_words(asked.corpus, asked.words)
    corpus = build_corpus(sentences, max_words=asked.vocabulary, keep=wanted_words(asked.tests), keep_count=20)
    pairs = Pairs(corpus)
    expected = ExpectedTraining(pairs, asked.dimensions)
    centre = expected.train()
    tests = questions(dict(zip(corpus.words, corpus.counts.tolist(), strict=True)), centre.index, asked.tests)
    if not tests:
        raise SystemExit(
            "The corpus lacks too many words of these tests. Read more --words, or keep a larger --vocabulary."
        )

    def watch(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: test(model) for name, test in tests.items()}

    scores = cf.influence(expected.risk(centre), watch)
    chosen = list(subsets(corpus.n, scores, asked.random, 0))
    print(corpus, f"{len(chosen)} subsets", flush=True)
    at_centre = {name: float(test(centre).detach()) for name, test in tests.items()}
    in_expectation = {
        (number, name): newton_step(expected.risk(centre), ids, test) - at_centre[name]
        for number, (_, ids) in enumerate(chosen)
        for name, test in tests.items()
    }
    sampled = SampledTraining(pairs, asked.dimensions, epochs=asked.epochs)
    rows = []
    for seed in range(asked.seeds):
        training = replace(sampled, seed=seed)
        whole = training.train()
        risk = training.risk(whole, l2=expected.l2)
        blocks = cf.influence(risk, watch, WordBlocks())
        for number, (kind, ids) in enumerate(chosen):
            weights = torch.ones(corpus.n)
            weights[[risk.rows[label] for label in ids]] = 0
            rest = training.train(weights)
            for place, (name, test) in enumerate(tests.items()):
                before = float(test(whole).detach())
                row = {"test": name, "subset": number, "kind": kind, "size": len(ids), "seed": seed, "before": before}
                row["retrained"] = float(test(rest).detach()) - before
                row["Newton step at its own solution"] = newton_step(risk, ids, test) - before
                row["word blocks at its own solution"] = -float(blocks.select(ids).values[:, place].sum())
                row["Newton step in expectation"] = in_expectation[number, name]
                rows.append(row)
                print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
        pd.DataFrame(rows).to_csv(asked.out, index=False)
    summary(pd.DataFrame(rows))


def summary(table: pd.DataFrame) -> None:
    """Agreement of the means over seeds, of one half of the seeds with the other, and the spread over seeds."""
    estimates = [name for name in table if "step" in str(name) or "blocks" in str(name)]
    for test, rows in table.groupby("test"):
        effects = rows.groupby("seed").before.first()
        print(f"{test}: effect size {effects.mean():.2f}, sd over seeds {effects.std():.2f}")
        means = rows.groupby("subset")[["retrained", *estimates]].mean()
        spread = rows.groupby("subset").retrained.std().mean()
        print(
            f"  sd of a retrained change over seeds {spread:.3f}, of its mean over subsets {means.retrained.std():.3f}"
        )
        halves = [rows[rows.seed % 2 == part].groupby("subset").retrained.mean() for part in (0, 1)]
        print(f"  one half of the seeds against the other: Pearson {np.corrcoef(*halves)[0, 1]:.3f}")
        for name in estimates:
            x, y = means[name].to_numpy(), means.retrained.to_numpy()
            slope = (x * y).sum() / (x * x).sum()
            print(f"  {name}: Pearson {np.corrcoef(x, y)[0, 1]:.3f}, slope {slope:.2f}", flush=True)


if __name__ == "__main__":
    main()
