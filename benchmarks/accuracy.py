"""How far each estimate is from training again: the linear datamodelling score of estimators on six tasks.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=<folder with mnist/ and tinyshakespeare/> python benchmarks/accuracy.py
       [--tasks MLP DEC]

Tasks: logistic regression (trained until it stands still), a small MLP and an autoencoder on 1,000 images of MNIST;
Deep Embedded Clustering with its moving target on the mixture of Gaussians; in-batch contrastive training on noisy
pairs of the same images, asked for the loss of a linear probe that is fitted to the embedding in closed form; a
transformer of two layers on Shakespeare. Ten questions each (six for the clusters). Two protocols, not to be compared
with each other: one seed, 1 % left out; halves, seeds mixed. Costs are CPU seconds of this process over those of one
training. Retrained models are kept in --store: a run that was stopped goes on, and a new question trains nothing.
Writes benchmarks/results/accuracy.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mnist import mnist
from shakespeare import Transformer, shakespeare, summed
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import crossfluence as cf
from crossfluence._errors import NotConvergedWarning, RoughTrainingWarning, UnsupportedError
from crossfluence._files import write_atomically
from crossfluence.models.dec import encoder, moving_target
from crossfluence.objectives.clusters import log_assignment
from crossfluence.studies.mixture import CONVERGED, _start, gaussians

N, QUESTIONS, SUBSETS = 1_000, 10, 50
RESULTS = Path(__file__).parent / "results" / "accuracy.csv"
ESTIMATORS = (
    "replay",
    "source",
    "source by layers",
    "influence",
    "tracin",
    "tracin, preconditioned",
    "gradient similarity",
)


@dataclass(frozen=True)
class Task:
    """A training and what is asked of it.

    Attributes:
        recipe: The training.
        objective: The questions.
        damping: Of influence, where training did not end at a minimum; `None` leaves influence out.
    """

    recipe: cf.Recipe
    objective: Callable[[nn.Module], Tensor]
    damping: float | None = 0.0


cross_entropy = cf.OnOutputs(
    lambda model, batch: model(batch[0]), lambda z, batch: F.cross_entropy(z, batch[1], reduction="none")
)


def each_loss(x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda model: F.cross_entropy(model(x), y, reduction="none")


def logistic() -> Task:
    model = nn.Linear(784, 10)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    recipe = cf.Recipe(
        model, cross_entropy, mnist("train", N), optimizer=cf.SGD(0.3, 0.97), epochs=600, l2=1e-3, at_once=SUBSETS
    )
    return Task(recipe, each_loss(*mnist("test", QUESTIONS)))


def perceptron(epochs: int = 10) -> Task:
    recipe = cf.Recipe(
        encoder([784, 32, 10]), cross_entropy, doubles("train", N), optimizer=cf.SGD(0.05, 0.9), epochs=epochs,
        batch_size=50, l2=1e-3, schedule=cf.WarmUp(0.1), at_once=SUBSETS,
    )  # fmt: skip
    return Task(recipe, each_loss(*doubles("test", QUESTIONS)), damping=1e-2)


def doubles(split: str, count: int) -> tuple[Tensor, Tensor]:
    x, y = mnist(split, count)
    return x.double(), y


def clusters(eps_root: float) -> Task:
    x, _ = gaussians(0)
    x = (x - x.mean(0)) / x.std(0)
    recipe = cf.Recipe(
        _start(CONVERGED, x, 0), moving_target, x, optimizer=cf.Adam(1e-2, eps_root=eps_root), epochs=600, l2=1e-2,
        schedule=cf.cosine, at_once=SUBSETS,
    )  # fmt: skip
    rows = torch.arange(0, 150, 25)
    with torch.no_grad():
        names = recipe.init(x[rows]).argmax(1)
    return Task(recipe, log_assignment(x[rows], names))


def info_nce(model: nn.Module, batch: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    first, second = (F.normalize(model(view), dim=1) for view in batch)
    alike = first @ second.T / 0.2  # (b, b)
    among = (alike.exp() @ weights).log()
    return weights @ (among - alike.diagonal())


def probe_loss(model: nn.Module, fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Tensor:
    """Squared errors of test images after ridge regression from embeddings to digits, differentiable throughout."""

    def embedded(x: Tensor) -> Tensor:
        z = F.normalize(model(x), dim=1)
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)

    a, targets = embedded(fit[0]), F.one_hot(fit[1], 10).double()
    head = torch.linalg.solve(a.T @ a + 1e-1 * torch.eye(a.shape[1], dtype=a.dtype), a.T @ targets)
    return (embedded(test[0]) @ head - F.one_hot(test[1], 10)).square().sum(1)


def probe() -> Task:
    (x, _), labelled, test = doubles("train", N), doubles("train", 2 * N), doubles("test", 500)
    generator = torch.Generator().manual_seed(0)
    views = tuple(x + 0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))
    recipe = cf.Recipe(
        encoder([784, 32, 16]), cf.WeightedLoss(info_nce), views, optimizer=cf.SGD(0.05, 0.9), epochs=10,
        batch_size=100, l2=1e-3, schedule=cf.WarmUp(0.1), at_once=SUBSETS,
    )  # fmt: skip
    fit = tuple(part[N:] for part in labelled)

    def questions(model: nn.Module) -> Tensor:
        losses = probe_loss(model, fit, test)
        return torch.stack([losses.mean(), *(losses[test[1] == digit].mean() for digit in range(QUESTIONS - 1))])

    return Task(recipe, questions, damping=None)  # ten solves with this Hessian take longer than all else together


def autoencoder() -> Task:
    recipe = cf.Recipe(
        encoder([784, 32, 784]), lambda model, x: (model(x) - x).square().sum(1), doubles("train", N)[0],
        optimizer=cf.SGD(5e-4, 0.9), epochs=10, batch_size=50, l2=1e-3, schedule=cf.WarmUp(0.1), at_once=SUBSETS,
    )  # fmt: skip
    x, _ = doubles("test", QUESTIONS)
    return Task(recipe, lambda model: (model(x) - x).square().sum(1), damping=1e-2)


def transformer() -> Task:
    """Two layers that predict the next character of Shakespeare, asked for the loss of lines they have not seen."""
    torch.manual_seed(0)
    model = Transformer(length=32, width=32, heads=2, layers=2).double()
    samples, asked = shakespeare(N // 2, QUESTIONS, length=32)
    loss = cf.OnOutputs(lambda model, batch: model(batch[0]), lambda z, batch: summed(z, batch[1]) / 32)
    recipe = cf.Recipe(
        model, loss, samples, optimizer=cf.SGD(0.1, 0.9), epochs=10, batch_size=50, l2=1e-3,
        schedule=cf.WarmUp(0.1), at_once=10,
    )  # fmt: skip
    return Task(recipe, lambda model: summed(model(asked[0]), asked[1]) / 32, damping=1e-2)


TASKS: dict[str, Callable[[], Task]] = {
    "LR": logistic,
    "MLP, 50 epochs": lambda: perceptron(50),
    "MLP": perceptron,
    "autoencoder": autoencoder,
    "probe": probe,
    "DEC": lambda: clusters(1e-8),
    "DEC, Adam without eps_root": lambda: clusters(0.0),
    "transformer": transformer,
}


def estimate(name: str, task: Task) -> cf.Scores:
    if name == "replay":
        return cf.replay(task.recipe, task.objective)
    if name.startswith("source"):
        return cf.source(task.recipe, task.objective, curvature=cf.Fisher() if "layers" in name else None)
    if name.startswith("tracin"):
        return cf.tracin(task.recipe, task.objective, preconditioned="preconditioned" in name)
    solver = cf.Identity() if name != "influence" or task.damping is None else cf.Auto(task.damping)
    return cf.influence(task.recipe.risk(task.recipe.train()), task.objective, solver)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


def measured(name: str, store: Path) -> Iterator[dict[str, Any]]:
    task = TASKS[name]()
    bank = cf.Bank(task.recipe, store / name)
    training = min(seconds(task.recipe.train)[0] for _ in range(2))
    one = seconds(lambda: cf.replay(task.recipe, lambda model: task.objective(model)[0]))[0]
    smooth = cf.smoothness(bank, task.objective, groups=16)
    shared = {
        "task": name, "n": task.recipe.n, "steps": len(task.recipe.course()), "smoothness": f"{smooth.pearson:.3f}",
        "replay of one question": f"{one / training:.1f}",
    }  # fmt: skip
    for estimator in ESTIMATORS:
        if estimator == "influence" and task.damping is None:
            continue
        try:
            spent, scores = seconds(lambda chosen=estimator: estimate(chosen, task))
        except UnsupportedError:  # source, where batches are mixed anew or targets move
            continue
        for protocol in ("leave out", "half"):
            found = cf.lds(scores, bank, task.objective, protocol=protocol, subsets=SUBSETS)
            yield shared | {
                "estimator": estimator, "questions": len(scores.objectives), "trainings": f"{spent / training:.1f}",
                "protocol": protocol, "lds": f"{found.score:.3f}", "low": f"{found.score.low:.3f}",
                "high": f"{found.score.high:.3f}", "ceiling": f"{float(found.ceiling):.3f}",
            }  # fmt: skip


def at_once() -> dict[str, Any]:
    """CPU seconds of 150 small models one after another, over those of all at once."""
    recipe = replace(clusters(1e-8).recipe, at_once=150)
    weights = torch.ones(150, recipe.n) - torch.eye(150, recipe.n)
    together = seconds(lambda: list(recipe.retrain(weights)))[0]
    alone = seconds(lambda: [recipe.train(row) for row in weights[:15]])[0] * 10
    return {"task": "150 small models at once", "n": recipe.n, "steps": len(recipe.course()), "lds": "",
            "estimator": f"{alone / together:.1f} times faster than one by one"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--store", type=Path, default=Path("runs", "accuracy"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    asked.store.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", NotConvergedWarning)  # influence stops at its limit where training did not end
    warnings.simplefilter("ignore", RoughTrainingWarning)  # the figure is in the table
    rows: list[dict[str, Any]] = []
    for name in asked.tasks:
        for row in measured(name, asked.store):
            rows.append(row | {"torch": torch.__version__, "crossfluence": version("crossfluence")})
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(asked.out, text.getvalue().encode())
    print(at_once()["estimator"])


if __name__ == "__main__":
    main()
