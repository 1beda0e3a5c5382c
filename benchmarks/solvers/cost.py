"""What an answer costs: passes over the data, products with the curvature, and memory as n grows.

Run: python -m benchmarks.solvers.cost    (prints a table and writes benchmarks/results/cost.csv)
Each figure is a ratio within one process, or a peak of one process; absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import crossfluence as cf
from benchmarks.common.losses import classification
from benchmarks.common.models import perceptron
from benchmarks.common.options import options
from benchmarks.common.process import last_line, run_module
from benchmarks.common.results import save
from benchmarks.common.timing import epoch, median_ratio, peak_gigabytes

FEATURES, CLASSES, BATCH = 64, 10, 256
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


def small_perceptron() -> nn.Module:
    return perceptron(FEATURES, 256, 256, CLASSES)


class FeatureTransformer(nn.Module):
    """Four layers over the 64 features as tokens of size 1."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Linear(4, 32), nn.Linear(32, CLASSES)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, 10)`."""
        return self.head(self.body(self.embed(x.reshape(len(x), -1, 4))).mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {"perceptron": small_perceptron, "transformer": FeatureTransformer}


def ratios(name: str) -> dict[str, float]:
    torch.manual_seed(0)
    model = MODELS[name]()
    data = list(Streamed(2048))
    risk = cf.Risk(model, classification, data, l2=1e-3)
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
    model = perceptron(PIXELS, 512, 256, CLASSES, activation=nn.ReLU)
    data = forms()
    plain, found = list(data["list of batches"]), {}
    for form, batches in data.items():
        risk = cf.Risk(model, classification, batches, l2=1e-3)

        def question(risk: cf.Risk = risk) -> None:
            cf.influence(risk, lambda model: model[4].bias[0] - model[4].bias[1], cf.Identity())

        found[f"one question, {form} / epoch"] = median_ratio(question, lambda: epoch(model, plain))
    return found


def seconds_of_a_million() -> float:
    """From the risk to the scores of a small model on a million samples, in batches of the default size."""
    x, y = torch.randn(1_000_000, 10), torch.randn(1_000_000)
    model = perceptron(10, 16, 1)
    start = time.perf_counter()
    risk = cf.Risk(model, lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square(), cf.batches(x, y), l2=0.1)
    cf.influence(risk, lambda model: model[2].bias[0], cf.Identity())
    return time.perf_counter() - start


def peak_megabytes(n: int) -> float:
    """Peak memory of a process that answers one question over n streamed samples."""
    return float(last_line(run_module("benchmarks.solvers.cost", "--answer", str(n))))


def answer(n: int) -> None:
    torch.manual_seed(0)
    risk = cf.Risk(small_perceptron(), classification, Streamed(n), l2=1e-3)
    cf.influence(risk, lambda model: model[4].bias[0] - model[4].bias[1], cf.Identity())
    print(peak_gigabytes() * 1024)


def main() -> None:
    parser = options(__doc__)
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
