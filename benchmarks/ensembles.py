"""A perceptron on MNIST, 5,000 training and 500 test images, halves left out: LDS by the mean of several models.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=<folder with mnist/> python benchmarks/ensembles.py [--models 10]

784-128-64-10, ReLU, 50 epochs of SGD with momentum in batches of 64. The truth: 50 random halves, each trained with a
seed of its own; Spearman's r over the halves between the losses of a test image and summed scores, mean over the
images. Scores: EK-FAC, averaged over 1, 3 and 10 models that differ in their seeds; three dampings. dattri's published
figures for a model of this size and the same protocol: TRAK .333 with 10 models and .448 with 50, CG .26.
Retrained models are kept in --store. Writes benchmarks/results/ensembles.csv; costs are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from mnist import mnist
from results import save
from torch import nn
from torch.nn import functional as F  # noqa: N812

import crossfluence as cf

TRAIN, TEST, HALVES = 5_000, 500, 50
DAMPINGS = (0.01, 0.1, 1.0)


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--store", type=Path, default=Path("runs", "ensembles"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    loss = cf.OnOutputs(
        lambda model, batch: model(batch[0]), lambda z, batch: F.cross_entropy(z, batch[1], reduction="none")
    )
    recipe = cf.Recipe(
        perceptron(), loss, mnist("train", TRAIN), optimizer=cf.SGD(0.01, 0.9), epochs=asked.epochs, batch_size=64,
        at_once=HALVES,
    )  # fmt: skip
    test = mnist("test", TEST)
    questions = cf.each_of(cf.batches(*test), loss.losses)
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
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    save("ensembles", table)


if __name__ == "__main__":
    main()
