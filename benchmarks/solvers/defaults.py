"""Solvers at their defaults on ordinary trainings, beside training again without groups: the answer to "which solver?".

Run: OMP_NUM_THREADS=1 python -m benchmarks.solvers.defaults            (writes benchmarks/results/defaults.csv)
     OMP_NUM_THREADS=1 python -m benchmarks.solvers.defaults GPT -CG    (trainings of that name alone, without CG)
     python -m benchmarks.solvers.defaults --table                      (the figures of the file as a table)
A run that was stopped goes on with the trainings that are not in the file. Every training is run again without each of
some groups of its samples, in several orders of the data; the truth is the mean over orders. Correlation and slope are
medians over the questions, of those whose predictions are not all zero; seconds are CPU seconds of one question, epochs
those seconds over those of one epoch of plain gradients. "One order" is each order against the mean of the others.
The rule of `Auto` was chosen on the first half of the trainings.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import crossfluence as cf

from .trainings import CHOSEN_ON, TRAININGS, Training

RESULTS = Path(__file__).parents[1] / "results" / "defaults.csv"
FIELDS = ("half", "training", "solver", "r", "slope", "low", "high", "seconds", "epochs", "verdict", "note")
SOLVERS: dict[str, tuple[Callable[[], Any], bool]] = {  # and whether the risk has a record
    "Identity": (cf.Identity, False),
    "EKFAC": (cf.EKFAC, False),
    "EKFAC, Fisher": (lambda: cf.EKFAC(curvature=cf.Fisher()), False),
    "CG, Gauss-Newton, Relative(1), 30 steps": (
        lambda: cf.CG(cf.Relative(1.0), curvature=cf.GaussNewton(), max_steps=30, rtol=1e-2), False),
    "Exact": (cf.Exact, False),
    "Auto": (cf.Auto, False),
    "Auto, record": (cf.Auto, True),
    "Horizon, record, products": (lambda: cf.Horizon(pilot=160), True),
}  # fmt: skip


def truth(training: Training) -> Tensor:
    """Effects of the groups, `(orders, groups, questions)`."""
    recipes = [training.recipe.with_seed(seed) for seed in range(training.orders)]
    values = [cf.leave_out(each, training.ask, training.groups).values.double() for each in recipes]
    return torch.stack(values)


def correlation_and_slope(predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
    """By question, in columns; NaN where nothing is predicted."""
    predicted, actual = predicted - predicted.mean(0), actual - actual.mean(0)
    both, squares = (predicted * actual).sum(0), predicted.square().sum(0)
    return both / (squares * actual.square().sum(0)).sqrt(), both / squares


def row(training: Training, solver: str, r: Tensor, slope: Tensor, **others: Any) -> dict[str, Any]:
    """One line; medians of the questions that are answered."""
    r, slope = ([float(v) for v in part.flatten() if v.isfinite()] or [float("nan")] for part in (r, slope))
    slopes = {"slope": statistics.median(slope), "low": min(slope), "high": max(slope)}
    return {**start(training, solver), "r": statistics.median(r), **slopes, **others}


def start(training: Training, solver: str) -> dict[str, Any]:
    return {"half": "first" if training.name in CHOSEN_ON else "second", "training": training.name, "solver": solver}


def measured(training: Training, without: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """One line for each solver."""
    effects, recipe = truth(training), training.recipe
    if len(effects) > 1:
        left = effects.sum(0)
        found = [correlation_and_slope(one, (left - one) / (len(effects) - 1)) for one in effects]
        yield row(training, "one order", *(torch.stack(part) for part in zip(*found, strict=True)))
    mean, model = effects.mean(0), recipe.train()
    epoch, record = seconds_of_epoch(recipe, model), recipe.record()
    for name, (make, known) in SOLVERS.items():
        if any(name.startswith(each) for each in without) or (name == "Exact" and recipe.risk(model).p > 2_000):
            continue
        risk = recipe.risk(model, record=record if known else None)
        try:
            scores = cf.influence(risk, training.ask, make())
            spent = seconds_of_question(training, model, record if known else None, make())
        except cf.CrossfluenceError as error:
            yield {**start(training, name), "verdict": "refused", "note": str(error)[:60]}
            continue
        whole = torch.stack([scores.values[list(samples)].sum(0) for samples in training.groups.values()]).double()
        assert scores.verdict is not None
        assert scores.report is not None
        note = scores.report.solver.partition("(")[0] if name.startswith("Auto") else ""
        yield row(training, name, *correlation_and_slope(whole, mean), seconds=spent, epochs=spent / epoch,
                  verdict=scores.verdict.level, note=note)  # fmt: skip


def seconds_of_question(training: Training, model: torch.nn.Module, record: Any, solver: Any) -> float:
    """CPU seconds of one question, from a risk that nothing is known of."""
    risk = training.recipe.risk(model, record=record)
    began = time.process_time()
    cf.influence(risk, lambda model: next(iter(training.ask(model).values())), solver)
    return time.process_time() - began


def seconds_of_epoch(recipe: cf.Recipe, model: torch.nn.Module) -> float:
    """CPU seconds of one pass of plain gradients in batches of the risk's own size, the best of five."""
    risk, found = recipe.risk(model), []
    for _ in range(5):
        began = time.process_time()
        risk.field(risk.theta)
        found.append(time.process_time() - began)
    return max(min(found), 1e-5)


def shown(line: dict[str, Any]) -> dict[str, Any]:
    return {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in line.items()}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Correlation, slope and epochs by training and solver, in Markdown."""
    names = ["one order", *SOLVERS]
    rows = ["| training | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for training in dict.fromkeys(line["training"] for line in lines):
        own = {line["solver"]: line for line in lines if line["training"] == training}
        cells = [_cell(own.get(name)) for name in names]
        rows.append(f"| {training} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(line: dict[str, Any] | None) -> str:
    if line is None:
        return ""
    if line["verdict"] == "refused":
        return "refused"
    r = f"{float(line['r']):.2f}".replace("0.", ".", 1)
    if not line["epochs"]:
        return r
    return f"{r} / {float(line['slope']):.2g} / {float(line['epochs']):.0f} {line['verdict'][0]}"


def kept() -> list[dict[str, Any]]:
    """The lines of the file."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        print(__doc__)
        raise SystemExit(0)
    if "--table" in arguments:
        print(table(kept()))
        return
    warnings.simplefilter("ignore")
    wanted = [name for name in arguments if name[0] != "-"]
    without = [name[1:] for name in arguments if name[0] == "-"]
    lines = [] if wanted else kept()
    done = {line["training"] for line in lines}
    for name, make in TRAININGS.items():
        if name in done or (wanted and not any(part in name for part in wanted)):
            continue
        torch.manual_seed(0)
        for line in measured(make(name), without):
            print(shown(line), flush=True)
            lines.append(shown(line))
        if not wanted:
            _write(lines)


def _write(lines: Sequence[dict[str, Any]]) -> None:
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
