"""What an answer costs: passes over the data, products with the curvature, and memory as n grows.

Run: python benchmarks/cost.py            (prints a table and writes benchmarks/results/cost.csv)
Each figure is a ratio within one process, or a peak of one process; absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from results import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import crossfluence as cf

FEATURES, CLASSES, BATCH, REPEATS = 64, 10, 256, 7
IMAGES, PIXELS = 20_000, 784


class Streamed:
    """n samples that are made batch by batch, so that the data itself takes no memory."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.n, BATCH):
            generator = torch.Generator().manual_seed(start)
            b = min(BATCH, self.n - start)
            yield torch.randn(b, FEATURES, generator=generator), torch.randint(CLASSES, (b,), generator=generator)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, CLASSES))


class Transformer(nn.Module):
    """Four layers over the 64 features as tokens of size 1."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Linear(4, 32), nn.Linear(32, CLASSES)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, 10)`."""
        return self.head(self.body(self.embed(x.reshape(len(x), -1, 4))).mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {"perceptron": perceptron, "transformer": Transformer}


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def epoch(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    """Forward and backward over all batches, as in training."""
    for batch in data:
        model.zero_grad()
        cross_entropy(model, batch).mean().backward()


def median_ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
    """Median over pairs that run one after the other, so that drifts of the machine cancel."""
    first(), second()
    ratios = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(ratios)


def ratios(name: str) -> dict[str, float]:
    torch.manual_seed(0)
    model = MODELS[name]()
    data = list(Streamed(2048))
    risk = cf.Risk(model, cross_entropy, data, l2=1e-3)
    direction = torch.randn(1, risk.p)

    def question() -> None:
        risk.derivatives_along(direction)

    def product() -> None:
        cf.Hessian().product(risk, direction)

    return {
        "one question over all samples / epoch": median_ratio(question, lambda: epoch(model, data)),
        "H v / gradient": median_ratio(product, lambda: epoch(model, data)),
    }


def forms() -> dict[str, Iterable[tuple[Tensor, Tensor]]]:
    """20,000 images of 784 numbers in the forms that data comes in."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(IMAGES, PIXELS, generator=generator), torch.randint(CLASSES, (IMAGES,), generator=generator)
    return {
        "list of batches": list(zip(x.split(BATCH), y.split(BATCH), strict=True)),
        "DataLoader": DataLoader(TensorDataset(x, y), BATCH),
        "Batches": cf.batches(x, y),
    }


def question_ratios() -> dict[str, float]:
    """One question by plain gradients, the data compared with its first reading and the risk's own gradient known."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(PIXELS, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    data = forms()
    plain, found = list(data["list of batches"]), {}
    for form, batches in data.items():
        risk = cf.Risk(model, cross_entropy, batches, l2=1e-3)

        def question(risk: cf.Risk = risk) -> None:
            cf.influence(risk, lambda model: model[4].bias[0] - model[4].bias[1], cf.Identity())

        found[f"one question, {form} / epoch"] = median_ratio(question, lambda: epoch(model, plain))
    return found


def seconds_of_a_million() -> float:
    """From the risk to the scores of a small model on a million samples, in batches of the default size."""
    x, y = torch.randn(1_000_000, 10), torch.randn(1_000_000)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
    start = time.perf_counter()
    risk = cf.Risk(model, lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(), cf.batches(x, y), l2=0.1)
    cf.influence(risk, lambda model: model[2].bias[0], cf.Identity())
    return time.perf_counter() - start


def peak_megabytes(n: int) -> float:
    """Peak memory of a process that answers one question over n streamed samples."""
    command = [sys.executable, __file__, "--answer", str(n)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def answer(n: int) -> None:
    torch.manual_seed(0)
    risk = cf.Risk(perceptron(), cross_entropy, Streamed(n), l2=1e-3)
    cf.influence(risk, lambda model: model[4].bias[0] - model[4].bias[1], cf.Identity())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answer", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.answer:
        answer(chosen.answer)
        return
    rows = [
        {"figure": f"{figure} ({name})", "measured": f"{value:.2f}", "target": "2" if "question" in figure else "6"}
        for name in MODELS
        for figure, value in ratios(name).items()
    ]
    rows += [
        {"figure": figure, "measured": f"{value:.2f}", "target": "1.7"} for figure, value in question_ratios().items()
    ]
    million = seconds_of_a_million()
    rows.append({"figure": "a million samples, default batches (s)", "measured": f"{million:.1f}", "target": "4"})
    small, large = peak_megabytes(10_000), peak_megabytes(100_000)
    rows.append({"figure": "peak memory, n = 10,000 (MB)", "measured": f"{small:.0f}", "target": ""})
    rows.append({"figure": "peak memory, n = 100,000 (MB)", "measured": f"{large:.0f}", "target": "the same"})
    save("cost", rows)
    for row in rows:
        print(f"{row['figure']:58s} {row['measured']:>8s}   at most {row['target']}")


if __name__ == "__main__":
    main()
