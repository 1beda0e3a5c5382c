"""Deletion curves: does the answer fall when its strongest samples go? Representers beside TracIn and influence.

Run: python -m benchmarks.deletion FOLDER [--data mnist,sst2] [--queries 10]
FOLDER holds `mnist/` and `sst2/`. 400 digits (a network of 16 tanh units on 14 x 14 pixels), and 400 sentences (the
same on counts of the 500 most frequent words); SGD .1 with momentum .9, batches of 50, 12 epochs, l2 1e-2. For each of
some test samples the logit of the class that the network gives is asked about; for each method the 1, 2, 5 and 10 % of
the samples that raise it most are left out, together, and the network is trained again. AUC-DEL is the mean change of
the logit over these shares: the lower, the better the samples explain it. 95 % intervals over test samples, and of the
difference from random choice in the same samples. About a CPU minute.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from scipy import stats
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.results import kept, save
from benchmarks.data.mnist import read_mnist
from crossfluence.language.bag_of_words import words_of

N, UNITS, WORDS, SHARES, L2 = 400, 16, 500, (0.01, 0.02, 0.05, 0.1), 1e-2
Data = tuple[Tensor, Tensor]


def digits(folder: Path, queries: int) -> tuple[Data, Tensor]:
    """Training data, and test images."""

    def smaller(images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.view(-1, 1, 28, 28), 2).flatten(1).double()

    images, labels = read_mnist(folder / "mnist", "train", N)
    return (smaller(images), labels), smaller(read_mnist(folder / "mnist", "test", queries)[0])


def sentences(folder: Path, queries: int) -> tuple[Data, Tensor]:
    """The same of SST-2."""

    def rows(part: str, count: int) -> list[list[str]]:
        with gzip.open(folder / "sst2" / f"sentences_{part}.tsv.gz", "rt", encoding="utf-8") as file:
            return [next(file).rstrip("\n").rsplit("\t", 1) for _ in range(count)]

    train, test = rows("train", N), rows("dev", queries)
    seen = Counter(word for text, _ in train for word in words_of(text))
    places = {word: place for place, (word, _) in enumerate(seen.most_common(WORDS))}

    def counted(texts: list[list[str]]) -> Tensor:
        out = torch.zeros(len(texts), WORDS, dtype=torch.float64)
        for row, (text, _) in enumerate(texts):
            for word in words_of(text):
                if word in places:
                    out[row, places[word]] += 1
        return out

    return (counted(train), torch.tensor([int(label) for _, label in train])), counted(test)


def loss(model: nn.Module, batch: Data) -> Tensor:
    """Cross entropy of each sample."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def methods(recipe: cf.Recipe, x: Tensor, seed: int) -> tuple[dict[str, Tensor], Callable[[nn.Module], Tensor]]:
    """The scores of each method for each test sample, `(n, m)`, and the question."""
    model = recipe.train()
    with torch.no_grad():
        targets = model(x).argmax(1)
    risk = recipe.risk(model)
    batches = cf.batches(x, targets)
    question = cf.each_of(batches, lambda net, batch: net(batch[0]).gather(1, batch[1].unsqueeze(1))[:, 0])
    solver = cf.CG(damping=1e-3, curvature=cf.GaussNewton())
    chosen = targets.tolist()

    def represented(kernel: cf.LastLayer | cf.NTK | cf.InfluenceKernel, **how: object) -> Tensor:
        return cf.representers(risk, batches, kernel, targets=chosen, **how).parts  # pyright: ignore[reportArgumentType]

    generator = torch.Generator().manual_seed(seed)
    return {
        "representers, last layer": represented(cf.LastLayer()),
        "representers, last layer, path": represented(cf.LastLayer(), importance="path", recipe=recipe),
        "representers, tangent kernel": represented(cf.NTK()),
        "representers, influence kernel": represented(cf.InfluenceKernel(solver)),
        "influence": cf.influence(risk, question, solver).values,
        "tracin": cf.tracin(recipe, question).values,
        "replay": cf.replay(recipe, question, groups=0).values,
        "random": torch.rand(N, len(x), generator=generator, dtype=torch.float64),
    }, question


def run(name: str, data: Data, x: Tensor) -> list[dict]:
    """All methods on one data set: one row for each method and test sample."""
    started = process_time()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(data[0].shape[1], UNITS), nn.Tanh(), nn.Linear(UNITS, int(data[1].max()) + 1))
    recipe = cf.Recipe(net.double(), loss, data, optimizer=cf.SGD(0.1, 0.9), epochs=12, batch_size=50, l2=L2)
    found, question = methods(recipe, x, seed=0)
    sizes = [round(share * N) for share in SHARES]
    plan = [(method, query, size) for method in found for query in range(len(x)) for size in sizes]
    weights = torch.ones(1 + len(plan), N)
    for row, (method, query, size) in enumerate(plan, 1):
        weights[row, found[method][:, query].argsort(descending=True)[:size]] = 0
    models = recipe.retrain(weights)
    with torch.no_grad():
        before = question(next(models))
        falls: dict[tuple[str, int], list[float]] = {}
        for (method, query, _), model in zip(plan, models, strict=True):
            falls.setdefault((method, query), []).append(float(question(model)[query] - before[query]))
    print(f"{name}: {process_time() - started:.0f} CPU seconds, {len(plan)} trainings", flush=True)
    return [
        {"data": name, "method": method, "query": query, "auc": statistics.mean(values), "at 10%": values[-1]}
        for (method, query), values in falls.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="mnist,sst2")
    parser.add_argument("--queries", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict] = kept("deletion")  # what was done is not done again
    for name in asked.data.split(","):
        if not any(row["data"] == name for row in rows):
            data, x = {"mnist": digits, "sst2": sentences}[name](asked.folder, asked.queries)
            rows.extend(run(name, data, x))
            save("deletion", rows)
    summary(rows)


def summary(rows: list[dict]) -> None:
    """Means with intervals, and differences from random choice."""
    for name in dict.fromkeys(row["data"] for row in rows):
        own: dict[str, list[float]] = {}
        for row in rows:
            if row["data"] == name:
                own.setdefault(row["method"], []).append(float(row["auc"]))
        print(f"\n{name}: AUC-DEL, lower is better")
        for method, values in own.items():
            beside = [one - other for one, other in zip(values, own["random"], strict=True)]
            print(f"  {method}: {interval(values)}; minus random {interval(beside)}")


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):+.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
