"""A perceptron on MNIST, 5,000 training and 500 test images, halves left out: LDS by the mean of several models.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=<folder with mnist/> python -m benchmarks.training.ensembles [--models 10]

784-128-64-10, ReLU, 50 epochs of SGD with momentum in batches of 64. The truth: 50 random halves, each trained with a
seed of its own; Spearman's r over the halves between the losses of a test image and summed scores, mean over the
images. Scores: EK-FAC, averaged over 1, 3 and 10 models that differ in their seeds; three dampings. dattri's published
figures for a model of this size and the same protocol: TRAK .333 with 10 models and .448 with 50, CG .26.
Retrained models are kept in --store. Writes benchmarks/results/ensembles.csv; costs are CPU seconds of this process.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

import crossfluence as cf
from benchmarks.common.losses import classification, on_outputs
from benchmarks.common.models import perceptron
from benchmarks.common.options import options
from benchmarks.common.results import line, save
from benchmarks.data.mnist import mnist

TRAIN, TEST, HALVES = 5_000, 500, 50
DAMPINGS = (0.01, 0.1, 1.0)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--store", type=Path, default=Path("runs", "ensembles"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = cf.Recipe(
        perceptron(784, 128, 64, 10, activation=nn.ReLU), on_outputs(), mnist("train", TRAIN),
        optimizer=cf.SGD(0.01, 0.9), epochs=asked.epochs, batch_size=64, at_once=HALVES,
    )  # fmt: skip
    test = mnist("test", TEST)
    questions = cf.each_of(cf.batches(*test), classification)
    asked.store.mkdir(parents=True, exist_ok=True)
    members: dict[float, list[cf.Scores]] = {damping: [] for damping in DAMPINGS}
    bank, table = cf.Bank(recipe, asked.store), []
    started = time.process_time()
    for seed in range(1, asked.models + 1):
        model = recipe.with_seed(seed).train()
        for damping, scores in members.items():
            scores.append(cf.influence(recipe.risk(model), questions, cf.EKFAC(cf.Relative(damping))))
    spent = time.process_time() - started
    for damping, scores in members.items():
        for count in sorted({1, 3, asked.models} & set(range(1, asked.models + 1))):
            mean = scores[0] if count == 1 else cf.ensemble(scores[:count])
            found = cf.lds(mean, bank, questions, protocol="half", subsets=HALVES)
            row = {
                "estimate": f"EK-FAC, damping {damping:g} mean", "models": count, "lds": f"{found.score:.3f}",
                "low": f"{found.score.low:.3f}", "high": f"{found.score.high:.3f}",
                "ceiling": f"{float(found.ceiling):.3f}", "seconds for all models and dampings": f"{spent:.0f}",
            }  # fmt: skip
            table.append(row)
            print(line(row), flush=True)
    save("ensembles", table)


if __name__ == "__main__":
    main()
