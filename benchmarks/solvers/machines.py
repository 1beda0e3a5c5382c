"""Bytes, seconds and machines for 10^6 and 10^9 samples and a model of 10^9 parameters, from one plan on this machine.

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.solvers.machines

`cf.plan` says how many CPU seconds a pilot of 100 and all pairs of 2,000 sequences and 100 questions take the character
transformer on one thread. Its operations (6 for each parameter and token, 2 for each question, parameter and sample)
give a pace, which carries over to other sizes as operations do. There a pilot of 1,000 samples makes the fit. Llama 3.2
stands for 10^9 parameters (16 layers of 2,048, 8,192 inside, keys and values of 512); its embedding is left out. The
file holds one row for each size.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

import crossfluence as cf
from benchmarks.common.losses import classification
from benchmarks.common.models import Transformer
from benchmarks.common.options import options
from benchmarks.common.results import save
from benchmarks.data.shakespeare import shakespeare
from crossfluence._attribution import plan as planning

QUESTIONS, PILOT, DAY, FLOAT, LABEL = 100, 1_000, 86_400, 4, 36


@dataclass(frozen=True)
class Size:
    """A model: its layers as (in, out), how many of them, tokens in a sample."""

    name: str
    layers: tuple[tuple[int, int, int], ...]
    tokens: int

    @property
    def p(self) -> int:
        """Parameters in layers."""
        return sum(rows * columns * count for rows, columns, count in self.layers)

    @property
    def fit_bytes(self) -> int:
        """Eigenvectors of both sides, eigenvalues, and their inverses."""
        return FLOAT * sum(count * (rows**2 + columns**2 + 2 * rows * columns) for rows, columns, count in self.layers)

    def operations(self, n: int) -> float:
        """Of all pairs of n samples with the questions."""
        return n * self.p * (6 * self.tokens + 2 * QUESTIONS)

    def fit_operations(self, pilot: int = PILOT) -> float:
        """Of a pilot, and of its eigenproblems."""
        eigen = sum(25 * count * (rows**3 + columns**3) for rows, columns, count in self.layers)
        return 20 * pilot * self.p * self.tokens + eigen


SMALL = Size("four layers of 64", ((64, 192, 4), (64, 64, 4), (64, 256, 4), (256, 64, 4), (64, 65, 1)), 64)
BILLION = Size("Llama 3.2 of 10^9", ((2048, 2048, 32), (2048, 512, 32), (2048, 8192, 32), (8192, 2048, 16)), 1024)


def pace() -> float:
    """Operations in a second of one thread, in the pass over all samples that `cf.plan` foresees."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    planning.CLOCK = time.process_time  # not that of a machine as busy as it is
    model, (train, _) = Transformer().eval(), shakespeare(2_000, 100)
    names = [f"{name}.*" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    risk = cf.Risk(model, classification, cf.batches(*train, size=50), params=names)
    foreseen = cf.plan(risk, cf.EKFAC(pilot=100), m=QUESTIONS).seconds
    return (SMALL.operations(risk.n) + SMALL.fit_operations(140)) / foreseen


def row(size: Size, n: int, speed: float) -> dict[str, str]:
    seconds = (size.operations(n) + size.fit_operations()) / speed
    return {
        "model": size.name, "parameters": f"{size.p:.3g}", "samples": f"{n:.0e}", "tokens": f"{n * size.tokens:.1e}",
        "core days": f"{seconds / DAY:.3g}", "cores for a week": f"{max(1, -(-seconds // (7 * DAY))):.0f}",
        "days at 100 TFLOP/s": f"{(size.operations(n) + size.fit_operations()) / 1e14 / DAY:.3g}",
        "fit, GB": f"{size.fit_bytes / 1e9:.3g}", "scores, GB": f"{n * QUESTIONS * FLOAT / 1e9:.3g}",
        "labels and weights, GB": f"{n * (LABEL + FLOAT) / 1e9:.3g}", "index of signs, GB": f"{n * size.p / 8e9:.3g}",
    }  # fmt: skip


def main() -> None:
    options(__doc__).parse_args()
    speed = pace()
    print(f"{speed / 1e9:.1f} GFLOP/s on one thread")
    rows = [
        row(size, n, speed) | {"GFLOP/s, measured": f"{speed / 1e9:.1f}"}
        for size, n in ((SMALL, 10**6), (SMALL, 10**9), (BILLION, 10**6), (BILLION, 10**9))
    ]
    for found in rows:
        print(found)
    save("machines", rows)


if __name__ == "__main__":
    main()
