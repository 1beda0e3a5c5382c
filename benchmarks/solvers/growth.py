"""How time grows with samples, parameters and questions; passes over the data, and memory beside a training step.

Usage: CROSSFLUENCE_DATA=<folder with mnist/> OMP_NUM_THREADS=1 python -m benchmarks.solvers.growth
       [--parts samples ...]

Perceptrons with two hidden layers on MNIST, from random weights: costs do not depend on training. CPU seconds of one
thread, and the slope of their logarithms over the larger half of each range (1: as the quantity itself).
  samples     1,000 to 60,000, 100,000 parameters: EK-FAC's fit, one question after it, 200 questions; CG, 10 steps
  parameters  10,000 to 10 million, 1,000 samples: the same
  questions   1 to 1,000, 2,000 samples, 100,000 parameters: all pairs by EK-FAC, CG with 10 steps up to 100
  epochs      60,000 samples (784-512-256-10) and, for a transformer, 2,000 sequences: the fit of EK-FAC, the first
              question, which also looks whether training ended, the next one, and fit and first question together, over
              one epoch of forward and backward passes; with eigenvalues that are corrected, and as factors give them
  memory      of one question at its peak, over that of one step of SGD with momentum (Linux)
Writes benchmarks/results/growth.csv and growth.html; parts that are not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.losses import Pair, classification, on_outputs
from benchmarks.common.models import Transformer, perceptron
from benchmarks.common.options import options
from benchmarks.common.process import last_line, run_module
from benchmarks.common.results import FOLDER, kept, save
from benchmarks.common.timing import epoch, seconds
from benchmarks.data.mnist import mnist
from benchmarks.data.shakespeare import shakespeare
from crossfluence.errors import NotConvergedWarning

BATCH, STEPS = 250, 10
SAMPLES, WIDTHS, QUESTIONS = (1_000, 4_000, 16_000, 60_000), (12, 110, 670, 2_800), (1, 10, 100, 1_000)
CG = cf.CG(1e-2, rtol=0.0, max_steps=STEPS, curvature=cf.GaussNewton())
SOLVERS = {"Identity": cf.Identity(), "CG": CG, "EK-FAC": cf.EKFAC()}
loss = on_outputs()


def of_width(width: int = 110) -> nn.Module:
    torch.manual_seed(0)
    return perceptron(784, width, width, 10)


def first_loss(test: Pair) -> Callable[[nn.Module], Tensor]:
    """One question: the loss of the first test sample."""
    return lambda model: classification(model, (test[0][:1], test[1][:1]))[0]


def each_loss(test: Pair, m: int) -> object:
    return cf.each_of(cf.batches(test[0][:m], test[1][:m], size=200), classification)


def batches(data: Pair, size: int) -> Iterator[Pair]:
    for rows in torch.arange(len(data[0])).split(size):
        yield data[0][rows], data[1][rows]


def answers(model: nn.Module, data: Pair, test: Pair, *, alone: int = 1, together: int = 200) -> Iterator[tuple]:
    """CPU seconds of the fit, of one question, of many, and of conjugate gradients; none where there are none."""
    risk = cf.Risk(model, loss, cf.batches(*data, size=BATCH), l2=1e-2)
    inverse = []
    yield "EK-FAC, fit", seconds(lambda: inverse.append(cf.EKFAC().invert(risk)))
    if alone:
        yield "EK-FAC, one question", seconds(lambda: cf.influence(risk, first_loss(test), *inverse))
        yield "CG, one question", seconds(lambda: cf.influence(risk, first_loss(test), CG))
    if together:
        yield "EK-FAC, 200 questions", seconds(lambda: cf.influence(risk, each_loss(test, together), *inverse))


def over_samples() -> Iterator[tuple[str, int, float]]:
    test = mnist("test", 200)
    for n in SAMPLES:
        for name, taken in answers(of_width(), mnist("train", n), test):
            yield name, n, taken


def over_parameters() -> Iterator[tuple[str, int, float]]:
    data, test = mnist("train", 1_000), mnist("test", 200)
    for width in WIDTHS:
        model = of_width(width)
        for name, taken in answers(model, data, test):
            yield name, sum(part.numel() for part in model.parameters()), taken


def over_questions() -> Iterator[tuple[str, int, float]]:
    data, test = mnist("train", 2_000), mnist("test", max(QUESTIONS))
    risk = cf.Risk(of_width(), loss, cf.batches(*data, size=BATCH), l2=1e-2)
    inverse = cf.EKFAC().invert(risk)
    for m in QUESTIONS:
        yield "EK-FAC, all pairs", m, seconds(lambda m=m: cf.influence(risk, each_loss(test, m), inverse))
        if m <= 100:
            yield "CG, 10 steps each", m, seconds(lambda m=m: cf.influence(risk, each_loss(test, m), CG))


PARTS = {"samples": over_samples, "parameters": over_parameters, "questions": over_questions}


def slope(points: Iterable[tuple[int, float]]) -> float:
    """Of the logarithms, over the upper half of the range."""
    chosen = sorted(points)
    logs = torch.tensor([[math.log(x), math.log(y)] for x, y in chosen[-max(2, len(chosen) // 2) :]])
    centred = logs - logs.mean(0)
    return float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())


def curves(part: str) -> list[dict[str, str]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for name, size, taken in PARTS[part]():
        print(f"{part} {size:,}: {name} {taken:.2f} s", flush=True)
        found.setdefault(name, []).append((size, taken))
    return [
        {"part": part, "what": name, "size": str(size), "measured": f"{taken:.3f}", "slope": f"{slope(points):.2f}"}
        for name, points in found.items()
        for size, taken in points
    ]


def problems(n: int, sequences: int, model: nn.Module) -> dict[str, tuple[nn.Module, Pair, Pair, int]]:
    """Models, training data, one test sample, and the size of batches."""
    torch.manual_seed(0)
    images, tests = mnist("train", n), mnist("test", 1)
    return {
        f"perceptron, n = {n:,}": (model, images, tests, BATCH),
        f"transformer, n = {sequences:,}": (Transformer(), *shakespeare(sequences, 1), 50),
    }


def epochs_of(model: nn.Module, data: Pair, test: Pair, batch: int, solver: cf.EKFAC) -> dict[str, float]:
    """Fit and questions, over the median of three epochs before, between and after them."""
    risk = cf.Risk(model, loss, cf.batches(*data, size=batch), l2=1e-2)
    inverse, taken = [], [seconds(lambda: epoch(model, batches(data, batch)))]
    fit = seconds(lambda: inverse.append(solver.invert(risk)))
    taken.append(seconds(lambda: epoch(model, batches(data, batch))))
    first, following = (seconds(lambda: cf.influence(risk, first_loss(test), *inverse)) for _ in range(2))
    taken.append(seconds(lambda: epoch(model, batches(data, batch))))
    unit = sorted(taken)[1]
    found = {"fit": fit, "first question": first, "next question": following, "fit and first question": fit + first}
    return {name: value / unit for name, value in found.items()}


def in_epochs() -> Iterator[dict[str, str]]:
    torch.manual_seed(0)
    for name, problem in problems(60_000, 2_000, perceptron(784, 512, 256, 10, activation=nn.ReLU)).items():
        for blocks, solver in {"corrected": cf.EKFAC(), "kronecker": cf.KFAC()}.items():
            for what, value in epochs_of(*problem, solver).items():
                yield {"part": "epochs", "what": f"EK-FAC, {blocks}, {what}, {name}", "measured": f"{value:.2f}"}


def step(model: nn.Module, rows: Pair) -> None:
    """The second of two steps of SGD, which finds the momentum of the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        classification(model, rows).mean().backward()
        optimizer.step()


def megabytes(name: str, work: str) -> float:
    """Resident memory that a process of its own needs at its peak, beyond model and data."""
    handed_back = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed counts as free, in glibc, too
    return float(last_line(run_module("benchmarks.solvers.growth", "--peak", name, work, **handed_back)))


def peak(name: str, work: str) -> None:
    """What `megabytes` runs: a small problem first, so that no library is loaded later."""

    def run(model: nn.Module, data: Pair, test: Pair, batch: int) -> None:
        if work == "step":
            step(model, (data[0][:batch], data[1][:batch]))
            return
        risk = cf.Risk(model, loss, cf.batches(*data, size=batch), l2=1e-2)
        cf.influence(risk, first_loss(test), SOLVERS[work])

    run(*problems(10, 2, of_width(4))[name.replace("1,000", "10").replace("200", "2")])
    large = problems(1_000, 200, of_width(WIDTHS[-1]))[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    run(*large)
    print(resident("VmHWM") - before)


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(field))


def in_memory() -> Iterator[dict[str, str]]:
    """Memory of one question over that of a training step; the parameters, which both hold, are added to each."""
    for name, (model, *_) in problems(1_000, 200, of_width(WIDTHS[-1])).items():
        held = sum(part.numel() * part.element_size() for part in model.parameters()) / 1e6
        base = held + megabytes(name, "step")
        yield {"part": "memory", "what": f"training step, {name}, MB", "measured": f"{base:.0f}"}
        for solver in SOLVERS:
            ratio = (held + megabytes(name, solver)) / base
            yield {"part": "memory", "what": f"{solver}, {name}, over a training step", "measured": f"{ratio:.2f}"}


def figure(rows: list[dict[str, str]]) -> None:
    from plotly.subplots import make_subplots

    names = list(dict.fromkeys(row["what"] for row in rows if row.get("slope")))
    colours = dict(zip(names, ("#2c5f8a", "#c0392b", "#3a8f5c", "#8e6bb0", "#d08c2e", "#555555"), strict=False))
    picture = make_subplots(1, len(PARTS), horizontal_spacing=0.07)
    for column, part in enumerate(PARTS, start=1):
        for name in names:
            points = [row for row in rows if (row["part"], row["what"]) == (part, name)]
            if points:
                picture.add_scatter(
                    x=[int(row["size"]) for row in points], y=[float(row["measured"]) for row in points],
                    name=name, legend=f"legend{column}", line_color=colours[name], mode="lines+markers+text",
                    text=[""] * (len(points) - 1) + [points[-1]["slope"]], textposition="top center",
                    row=1, col=column,
                )  # fmt: skip
        picture.update_xaxes(title=f"{part} (figure at the end: slope)", type="log", row=1, col=column)
        picture.update_layout({f"legend{column}": {"x": (column - 1) * 0.357, "y": 1.24, "font": {"size": 11}}})
    picture.update_yaxes(type="log")
    picture.update_yaxes(title="CPU seconds, one thread", row=1, col=1)
    picture.update_layout(template="plotly_white", width=1200, height=460, margin={"t": 110, "l": 60, "r": 20})
    picture.write_html(FOLDER / "growth.html")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=[*PARTS, "epochs", "memory"], default=[*PARTS, "epochs", "memory"]
    )
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", NotConvergedWarning)  # ten steps are asked for
    if asked.peak:
        peak(*asked.peak)
        return
    ratios = {"epochs": in_epochs, "memory": in_memory}
    rows: list[dict[str, str]] = []
    for part in asked.parts:
        for row in curves(part) if part in PARTS else ratios[part]():
            rows.append({"part": "", "what": "", "size": "", "measured": "", "slope": ""} | row)
            if part in ratios:
                print(f"{row['what']}: {row['measured']}", flush=True)
    rows = [row for row in kept("growth") if row["part"] not in asked.parts] + rows
    save("growth", rows)
    figure(rows)


if __name__ == "__main__":
    main()
