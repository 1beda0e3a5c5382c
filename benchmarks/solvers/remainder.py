"""What to do with the directions that `LowRank` does not keep: three ways, against the exact scores.

Run: python -m benchmarks.solvers.remainder
Logistic regression on digits (650 parameters, 1,000 samples, l2 1e-3), the losses of 200 test images. Prints Pearson's
r with the exact scores over all pairs, and the slope of these on it, by rank.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

import crossfluence as cf
from benchmarks.common.losses import classification
from benchmarks.common.models import zeroed
from benchmarks.common.options import options
from benchmarks.data.digits import digits
from crossfluence._solvers.low_rank import LowRankInverse

L2, N, TEST = 1e-3, 1_000, 200


def main() -> None:
    options(__doc__).parse_args()
    torch.set_num_threads(1)
    pixels, labels = digits()
    x, y, test = pixels[:N], labels[:N], (pixels[N : N + TEST], labels[N : N + TEST])
    start = zeroed(nn.Linear(64, 10).double())
    recipe = cf.Recipe(start, classification, (x, y), optimizer=cf.SGD(1.0, 0.9), epochs=400, l2=L2)
    risk = recipe.risk(recipe.train())
    question = cf.each_of(cf.batches(*test), classification)
    exact = cf.influence(risk, question, cf.Exact()).values
    for rank in (10, 30, 100, 300):
        kept = cf.LowRank(rank).invert(risk)
        assert isinstance(kept, LowRankInverse)
        ways = {"smallest kept": kept.outside, "l2": L2, "left out": float("inf")}
        found = []
        for name, outside in ways.items():
            values = cf.influence(risk, question, replace(kept, outside=outside)).values
            pair = torch.stack([values.flatten(), exact.flatten()])
            slope = float((values * exact).sum() / values.square().sum())
            found.append(f"{name}: r {float(torch.corrcoef(pair)[0, 1]):.3f}, slope {slope:.2f}")
        print(f"rank {rank:3d}   {'   '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
