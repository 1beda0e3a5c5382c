"""Sizes from the settings of a training, also wrong ones, beside training again without groups in several orders.

Run: OMP_NUM_THREADS=1 python -m benchmarks.solvers.settings              (writes benchmarks/results/settings.csv)
     OMP_NUM_THREADS=1 python -m benchmarks.solvers.settings transformer  (one training alone)
r and slope are medians over eight questions; low and high are the lowest and highest slope of a question. Slopes are
effects found over effects predicted: with the sum of learning rates halved, predictions are half as large. "ceiling" is
what the noise of the truth itself leaves to a perfect prediction, "one order" a single order beside it.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import crossfluence as cf
from benchmarks.common import results

from .trainings import Transformer

ORDERS = 4
WRONG = {"right": (1, 1), "S / 2": (0.5, 1), "S x 2": (2, 1), "S x 10": (10, 1), "batch / 4": (1, 0.25),
         "batch x 4": (1, 4)}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """A training, its questions and its groups.

    Attributes:
        recipe: How it is run.
        ask: The questions.
        groups: How many samples are left out, by name.
    """

    recipe: cf.Recipe
    ask: Callable[[nn.Module], dict[str, Tensor]]
    groups: dict[str, range]

    def settings(self, rate: float = 1.0, batch: float = 1.0) -> dict[str, Any]:
        """What everyone knows of it, with factors on the learning rate and on the batch size."""
        made = self.recipe
        size = made.batch_size or made.n
        steps = made.epochs * -(-made.n // size)
        optimizer = replace(made.optimizer, lr=rate * made.optimizer.lr)  # pyright: ignore[reportArgumentType]
        return {"optimizer": optimizer, "steps": steps, "batch_size": max(1, round(batch * size)),
                "schedule": made.schedule, "clipping": made.clipping}  # fmt: skip


def next_words(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def markov(count: int, seed: int, words: int = 40, length: int = 24) -> Tensor:
    """Texts of four topics, each a table of transitions."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(4, words, words, generator=torch.Generator().manual_seed(0)).mul(2).softmax(2)
    topics = torch.randint(4, (count,), generator=generator)
    ids = [torch.randint(words, (count,), generator=generator)]
    for _ in range(length - 1):
        ids.append(torch.multinomial(table[topics, ids[-1]], 1, generator=generator)[:, 0])
    return torch.stack(ids, 1)


def transformer(count: int = 160) -> Case:
    """From scratch on texts of a Markov chain, three epochs."""
    test = markov(40, 2)
    start = Transformer(width=48, length=24).eval()
    recipe = cf.Recipe(start, next_words, markov(count, 1), optimizer=cf.AdamW(2e-3), epochs=3,
                       batch_size=16, schedule=cf.linear, clipping=1.0)  # fmt: skip

    def ask(model: nn.Module) -> dict[str, Tensor]:
        losses = next_words(model, test)
        return {"test loss": losses.mean(), **{f"loss {k}": losses[k] for k in range(0, 35, 5)}}

    size = count // 16
    return Case(recipe, ask, {f"g{k}": range(size * k, size * (k + 1)) for k in range(16)})


def perceptron() -> Case:
    """On digits, fifteen epochs of Adam."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels[:800] / 16, dtype=torch.float32), torch.tensor(labels[:800])

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    net = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    recipe = cf.Recipe(net, loss, (x[:600], y[:600]), optimizer=cf.Adam(3e-3), epochs=15, batch_size=50)

    def ask(model: nn.Module) -> dict[str, Tensor]:
        losses = loss(model, (x[600:], y[600:]))
        return {"test loss": losses.mean(), **{f"loss {k}": losses[k] for k in range(0, 140, 20)}}

    return Case(recipe, ask, {f"g{k}": range(20 * k, 20 * (k + 1)) for k in range(30)})


CASES: dict[str, Callable[[], Case]] = {"transformer": transformer, "perceptron": perceptron}


def answers(case: Case, model: nn.Module) -> Iterator[tuple[str, str, Any, cf.TrainingRecord | None]]:
    """Record, solver by name, solver, and the record itself."""
    plain, kept = case.recipe.risk(model), case.recipe.record(segments=3)
    for name, solver in {
        "EKFAC()": cf.EKFAC(), "EKFAC(Relative(10))": cf.EKFAC(cf.Relative(10.0)), "Identity()": cf.Identity(),
        "Horizon()": cf.Horizon(),
    }.items():  # fmt: skip
        yield "none", name, solver, None
    for name, solver in {
        "Horizon()": cf.Horizon(), "Horizon(pilot=160)": cf.Horizon(pilot=160),
        "Horizon(segments=3)": cf.Horizon(segments=3), "EKFAC(Trained())": cf.EKFAC(cf.Trained()),
    }.items():  # fmt: skip
        yield "kept", name, solver, kept
    for name, factors in WRONG.items():
        record = cf.TrainingRecord.from_settings(plain, **case.settings(*factors))
        yield f"settings, {name}", "Horizon()", cf.Horizon(), record


def correlation_and_slope(predicted: Tensor, actual: Tensor) -> tuple[list[float], list[float]]:
    """By question, in columns."""
    predicted, actual = predicted - predicted.mean(0), actual - actual.mean(0)
    both, squares = (predicted * actual).sum(0), predicted.square().sum(0)
    return (both / (squares * actual.square().sum(0)).sqrt()).tolist(), (both / squares).tolist()


def measured(name: str) -> Iterator[dict[str, Any]]:
    """One line for each record and solver."""
    torch.manual_seed(0)
    case = CASES[name]()
    truth = cf.leave_out(case.recipe, case.ask, case.groups, seeds=ORDERS)
    model = case.recipe.train()
    assert truth.errors is not None
    spread = (1 - truth.errors.square().mean(0) / truth.values.var(0)).clamp_min(0).sqrt().tolist()
    yield line(name, "", "ceiling", (spread, []), 0.0, "")
    others = cf.leave_out(case.recipe.with_seed(ORDERS), case.ask, case.groups).values
    yield line(name, "", "one order", correlation_and_slope(others.double(), truth.values), 0.0, "")
    for record, solver, made, known in answers(case, model):
        start = time.process_time()
        scores = cf.influence(case.recipe.risk(model, record=known), case.ask, made)
        spent = time.process_time() - start
        found = scores.sum_by(case.groups).values.double()
        level = "" if scores.verdict is None else scores.verdict.level
        yield line(name, record, solver, correlation_and_slope(found, truth.values), spent, level)


def line(
    name: str, record: str, solver: str, found: tuple[list[float], list[float]], seconds: float, verdict: str
) -> dict[str, Any]:
    """A row of the table."""
    r, slope = found
    named = {"slope": statistics.median, "low": min, "high": max}
    slopes = {key: f"{take(slope):.2g}" if slope else "" for key, take in named.items()}
    return {"training": name, "record": record, "solver": solver, "r": f"{statistics.median(r):.2f}", **slopes,
            "seconds": f"{seconds:.1f}", "verdict": verdict}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        print(__doc__)
        raise SystemExit(0)
    warnings.simplefilter("ignore")
    rows = []
    for name in arguments or CASES:
        for row in measured(name):
            print(results.line(row), flush=True)
            rows.append(row)
    if not arguments:
        results.save("settings", rows)


if __name__ == "__main__":
    main()
