"""One table, hence the length: solvers at their defaults on ordinary trainings, beside training again without groups.

Run: OMP_NUM_THREADS=1 python -m benchmarks.solvers.defaults           (writes benchmarks/results/defaults.csv)
     OMP_NUM_THREADS=1 python -m benchmarks.solvers.defaults perceptron -Auto   (one training alone, without a solver)
Every training is run again without each of some groups of its samples, in several orders of the data; the truth is the
mean over orders. Cells: correlation and slope of each question's effects, of which the table has the median; seconds
are CPU seconds, epochs those seconds over those of one epoch of plain gradients. The first line of a training is one
order against the mean of the others.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import crossfluence as cf

RESULTS = Path(__file__).parents[1] / "results" / "defaults.csv"
FIELDS = ("training", "solver", "r", "slope", "low", "high", "seconds", "epochs", "verdict", "note")


@dataclass(frozen=True, eq=False)
class Training:
    """A training, its questions, and what is left out of it.

    Attributes:
        name: For the table.
        recipe: How it is run.
        ask: The questions.
        size: Samples in a group.
        orders: Of the data, whose mean is the truth.
    """

    name: str
    recipe: cf.Recipe
    ask: Callable[[nn.Module], dict[str, Tensor]]
    size: int = 10
    orders: int = 3

    @property
    def groups(self) -> dict[str, range]:
        """What is left out, by name."""
        count = min(60, self.recipe.n // self.size)
        return {f"g{k}": range(self.size * k, self.size * (k + 1)) for k in range(count)}

    @property
    def settings(self) -> dict[str, Any]:
        """What everyone knows of it."""
        recipe = self.recipe
        size = recipe.batch_size or recipe.n
        steps = recipe.epochs * -(-recipe.n // size)
        return {"optimizer": recipe.optimizer, "steps": steps, "batch_size": size, "schedule": recipe.schedule,
                "clipping": recipe.clipping}  # fmt: skip


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def digits(count: int = 800) -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:count] / 16, dtype=torch.float32), torch.tensor(y[:count])


def of_digits(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    losses, logits = F.cross_entropy(model(x), y, reduction="none"), model(x)
    margins = logits.gather(1, y[:, None])[:, 0] - logits.logsumexp(1)
    return {"test loss": losses.mean(), **{f"loss {k}": losses[k] for k in (10, 50, 90)},
            **{f"margin {k}": margins[k] for k in (0, 20, 40, 60)}}  # fmt: skip


def perceptron(epochs: int = 30) -> Training:
    x, y = digits()
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    recipe = cf.Recipe(net, cross_entropy, (x[:600], y[:600]), optimizer=cf.Adam(3e-3), epochs=epochs, batch_size=100)
    return Training(f"perceptron, Adam, {epochs}", recipe, lambda model: of_digits(model, x[600:], y[600:]))


def overfitted() -> Training:
    return perceptron(300)


def convolutional() -> Training:
    x, y = digits()
    x = x.reshape(-1, 1, 8, 8)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1),
                        nn.ReLU(), nn.Flatten(), nn.Linear(192, 10))  # fmt: skip
    recipe = cf.Recipe(net, cross_entropy, (x[:600], y[:600]), optimizer=cf.SGD(0.05, 0.9), epochs=20, batch_size=50)
    return Training("convolutional, SGD, 20", recipe, lambda model: of_digits(model, x[600:], y[600:]))


def autoencoder() -> Training:
    x, _ = digits()
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch) - batch).square().sum(1)

    recipe = cf.Recipe(net, loss, x[:600], optimizer=cf.Adam(3e-3), epochs=60, batch_size=100)

    def ask(model: nn.Module) -> dict[str, Tensor]:
        errors = loss(model, x[600:])
        return {"test error": errors.mean(), **{f"error {k}": errors[k] for k in (0, 20, 40, 60, 80, 100, 120)}}

    return Training("autoencoder, Adam, 60", recipe, ask)


class Transformer(nn.Module):
    """Causal, of two layers."""

    def __init__(self, words: int, length: int, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, words)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next word at every place."""
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        places = self.places(torch.arange(ids.shape[1]))
        return self.head(self.layers(self.words(ids) + places, mask=mask))


def next_words(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def markov(count: int, words: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(4, words, words, generator=torch.Generator().manual_seed(0)).mul(2).softmax(2)
    topics = torch.randint(4, (count,), generator=generator)
    ids = [torch.randint(words, (count,), generator=generator)]
    for _ in range(length - 1):
        ids.append(torch.multinomial(table[topics, ids[-1]], 1, generator=generator)[:, 0])
    return torch.stack(ids, 1)


def transformer(count: int = 160) -> Training:
    ids, test = markov(count, 40, 24, 1), markov(40, 40, 24, 2)
    recipe = cf.Recipe(Transformer(40, 24, 48).eval(), next_words, ids, optimizer=cf.AdamW(2e-3), epochs=3,
                       batch_size=16, schedule=cf.linear, clipping=1.0)  # fmt: skip

    def ask(model: nn.Module) -> dict[str, Tensor]:
        losses = next_words(model, test)
        return {"test loss": losses.mean(), **{f"loss {k}": losses[k] for k in range(0, 35, 5)}}

    return Training(f"transformer, AdamW, 3, n {count}", recipe, ask, size=count // 16, orders=4)


def logistic() -> Training:
    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor((x - x.mean(0)) / x.std(0)), torch.tensor(y).double()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1], reduction="none")

    recipe = cf.Recipe(nn.Linear(30, 1).double(), loss, (x[:400], y[:400]), optimizer=cf.SGD(1.0, 0.9), epochs=2000,
                       l2=0.01)  # fmt: skip

    def ask(model: nn.Module) -> dict[str, Tensor]:
        losses = loss(model, (x[400:], y[400:]))
        return {"test loss": losses.mean(), **{f"loss {k}": losses[k] for k in range(0, 140, 20)}}

    return Training("logistic regression, optimum", recipe, ask, orders=1)


TRAININGS: dict[str, Callable[[], Training]] = {
    "perceptron": perceptron, "overfitted": overfitted, "convolutional": convolutional, "autoencoder": autoencoder,
    "transformer": transformer, "transformer640": lambda: transformer(640), "logistic": logistic,
}  # fmt: skip


def solvers(known: bool) -> dict[str, tuple[Any, str]]:
    """By name: the solver, and what record it has."""
    several = {
        "Identity": (cf.Identity(), "none"),
        "EKFAC": (cf.EKFAC(), "none"),
        "Auto": (cf.Auto(), "none"),
        "CG, Gauss-Newton, Relative(1)": (cf.CG(cf.Relative(1.0), curvature=cf.GaussNewton()), "none"),
        "Horizon, nothing known": (cf.Horizon(), "none"),
        "Horizon, record": (cf.Horizon(), "kept"),
        "Horizon, record, products": (cf.Horizon(pilot=320), "kept"),
    }
    if known:
        several["Horizon, settings"] = (cf.Horizon(), "settings")
    return several


def truth(training: Training) -> Tensor:
    """Effects of the groups, `(orders, groups, questions)`."""
    recipes = [training.recipe.with_seed(seed) for seed in range(training.orders)]
    values = [cf.leave_out(each, training.ask, training.groups).values.double() for each in recipes]
    return torch.stack(values)


def correlation_and_slope(predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
    """By question, in columns."""
    predicted, actual = predicted - predicted.mean(0), actual - actual.mean(0)
    both, squares = (predicted * actual).sum(0), predicted.square().sum(0)
    return both / (squares * actual.square().sum(0)).sqrt(), both / squares


def row(training: str, solver: str, r: Sequence[float], slope: Sequence[float], **others: Any) -> dict[str, Any]:
    slopes = {"slope": statistics.median(slope), "low": min(slope), "high": max(slope)}
    return {"training": training, "solver": solver, "r": statistics.median(r), **slopes, **others}


def measured(training: Training, without: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """One line for each solver."""
    effects, recipe = truth(training), training.recipe
    if len(effects) > 1:
        found = [correlation_and_slope(one, (effects.sum(0) - one)) for one in effects]
        yield row(training.name, "one order", [float(r) for pair in found for r in pair[0]],
                  [float(s) * (len(effects) - 1) ** -1 for pair in found for s in pair[1]])  # fmt: skip
    mean, model = effects.mean(0), recipe.train()
    plain, epoch = recipe.risk(model), seconds_of_epoch(recipe, model)
    records = {"none": None, "kept": recipe.record()}
    if known := training.settings["batch_size"] < recipe.n or isinstance(recipe.optimizer, cf.SGD):
        records["settings"] = cf.TrainingRecord.from_settings(plain, **training.settings)
    chosen = {name: found for name, found in solvers(known).items() if name not in without}
    for name, (solver, record) in chosen.items():
        start = time.process_time()
        try:
            scores = cf.influence(recipe.risk(model, record=records[record]), training.ask, solver)
        except cf.CrossfluenceError as error:
            yield {"training": training.name, "solver": name, "verdict": "refused", "note": str(error)[:60]}
            continue
        spent = time.process_time() - start
        whole = torch.stack([scores.values[list(samples)].sum(0) for samples in training.groups.values()]).double()
        r, slope = correlation_and_slope(whole, mean)
        assert scores.verdict is not None
        yield row(training.name, name, r.tolist(), slope.tolist(), seconds=spent, epochs=spent / epoch,
                  verdict=scores.verdict.level)  # fmt: skip


def seconds_of_epoch(recipe: cf.Recipe, model: nn.Module) -> float:
    """CPU seconds of one pass of plain gradients, the best of three."""
    source = recipe.data if isinstance(recipe.data, tuple) else (recipe.data,)
    found = []
    for _ in range(3):
        start = time.process_time()
        for batch in cf.batches(*source, size=recipe.batch_size or recipe.n):
            recipe.loss(model, batch).sum().backward()
        found.append(time.process_time() - start)
    model.zero_grad()
    return max(min(found), 1e-4)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        print(__doc__)
        raise SystemExit(0)
    warnings.simplefilter("ignore")
    names, lines = [name for name in arguments if name[0] != "-"], []
    without = [name[1:] for name in arguments if name[0] == "-"]
    for name in names or TRAININGS:
        torch.manual_seed(0)
        for line in measured(TRAININGS[name](), without):
            shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in line.items()}
            print(shown, flush=True)
            lines.append(shown)
    if not names:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
