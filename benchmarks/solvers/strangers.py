"""Ordinary trainings, asked with their own data and with data that is not theirs: when does the verdict notice?

Run: OMP_NUM_THREADS=1 python -m benchmarks.solvers.strangers      (writes benchmarks/results/strangers.csv)
Not theirs: permuted labels, a held-out set, texts of another chain. The trainings are those of `defaults`, on which the
limit was chosen. Losses that couple samples, or stop gradients, are not looked at.
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import crossfluence as cf
from crossfluence.errors import UnreliableWarning

from .trainings import TRAININGS, Training, digits, markov

RESULTS = Path(__file__).parents[1] / "results" / "strangers.csv"
FIELDS = ("training", "data", "noticed", "verdict")
NOTICED = "does not belong to these samples"


def kinds(training: Training) -> Iterator[tuple[str, Any]]:
    """The training's data, and others of its shape."""
    data = training.recipe.data
    yield "own", data
    if isinstance(data, tuple) and data[1].dim() == 1:
        yield "permuted labels", (data[0], data[1][torch.randperm(len(data[1]), generator=generator())])
        if data[0].shape[-1] in (8, 64):
            x, y = digits(data[0].dim() == 4)
            yield "held out", (x[400:], y[400:])
    elif isinstance(data, torch.Tensor) and not data.is_floating_point():
        yield "held out", markov(160, 3)[0]
        yield "another chain", markov(160, 3, chain=9)[0]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def row(training: Training, model: nn.Module, name: str, data: Any) -> dict[str, Any]:
    """The verdict on one question, by the cheapest solver: what it says of the data does not depend on the solver."""
    parts = data if isinstance(data, tuple) else (data,)
    risk = cf.Risk(model, training.recipe.loss, cf.batches(*parts, size=len(parts[0])), l2=training.recipe.l2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableWarning)
        verdict = cf.influence(risk, lambda m: next(iter(training.ask(m).values())), cf.Identity()).verdict
    assert verdict is not None
    return {"training": training.name, "data": name, "noticed": NOTICED in str(verdict), "verdict": str(verdict)}


def main() -> None:
    """Writes the table, and prints how often data of each kind was noticed."""
    if "--help" in sys.argv[1:]:
        print(__doc__)
        raise SystemExit(0)
    rows = []
    for name, make in TRAININGS.items():
        training = make(name)
        if isinstance(training.recipe.loss, (cf.FieldLoss, cf.WeightedLoss)):
            continue
        model = training.recipe.train()
        for kind, data in kinds(training):
            rows.append(row(training, model, kind, data))
            print(f"{name}: {kind}: {'noticed' if rows[-1]['noticed'] else 'nothing noticed'}", flush=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    for kind in dict.fromkeys(one["data"] for one in rows):
        found = [one["noticed"] for one in rows if one["data"] == kind]
        print(f"{kind}: noticed in {sum(found)} of {len(found)}")


if __name__ == "__main__":
    main()
