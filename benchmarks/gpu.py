"""Tests and timings on a GPU, in at most 8 minutes: `pytest -m cuda`, EK-FAC beside kronfluence, and an index.

Usage: python -m benchmarks.gpu [--device cuda] [--minutes 8] [--parts tests peers index]

Writes `results/gpu.csv`: one row for each figure, with the card's name. Without a GPU everything runs on the CPU at toy
size, into `results/gpu-toy.csv`, and says so: those seconds mean nothing. The data is random, for its numbers do not
matter here; the four-layer transformer and the perceptron are those of `benchmarks.peers.ekfac`, trained for a few
steps. float32 is without TF32; bfloat16 is the model's own type. Seconds are by the clock, after a run on a part that
warms up; a part is left out, with a row that says so, where a library is missing or the time is over. The correlation
is that with scores by the CPU in float32, for that part; of an index, that with scores by the same fit in full.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.losses import Pair, classification
from benchmarks.common.models import CHARACTERS, Transformer, perceptron
from benchmarks.common.options import options
from benchmarks.common.process import ROOT
from benchmarks.common.results import line, save
from benchmarks.peers.libraries import EKFAC, Problem

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LIBRARIES = ("crossfluence", "crossfluence, pilot of 200", "kronfluence")
CODES = ("float16", "int8", "int4", "sign")


@dataclass(frozen=True)
class Run:
    """Where and until when.

    Attributes:
        device: Of the models.
        until: Seconds of the clock at which nothing new is begun.
    """

    device: torch.device
    until: float

    @property
    def toy(self) -> bool:
        """Whether there is no GPU."""
        return self.device.type == "cpu"

    @property
    def card(self) -> str:
        """The card's name."""
        return "CPU, toy size: no figure" if self.toy else torch.cuda.get_device_name(self.device)

    @property
    def left(self) -> float:
        """Seconds until the time is over."""
        return self.until - time.monotonic()

    def seconds(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds by the clock until the device has ended its work too, and what the work returned."""
        self.wait()
        started = time.perf_counter()
        made = work()
        self.wait()
        return time.perf_counter() - started, made

    def wait(self) -> None:
        """Waits until the device has ended its work."""
        if not self.toy:
            torch.cuda.synchronize(self.device)

    @property
    def gigabytes(self) -> str:
        """Peak memory of the device since it was reset."""
        return "" if self.toy else f"{torch.cuda.max_memory_allocated(self.device) / 2**30:.2f}"


def problems(toy: bool) -> Iterator[tuple[str, nn.Module, Pair, Pair, int]]:
    """Name, model, samples, questions and samples in a batch; on the CPU."""
    generator = torch.Generator().manual_seed(0)
    n, m = (40, 4) if toy else (10_000, 200)
    images = torch.randn(n + m, 784, generator=generator), torch.randint(10, (n + m,), generator=generator)
    sizes = (784, 16, 10) if toy else (784, 512, 256, 10)
    yield "perceptron", perceptron(*sizes, activation=nn.ReLU), *_halves(images, n), 512
    n, m, length = (12, 3, 8) if toy else (2_000, 100, 64)
    text = torch.randint(CHARACTERS, (n + m, length + 1), generator=generator)
    model = Transformer(length, 16, 2, 1) if toy else Transformer()
    yield "transformer", model, *_halves((text[:, :-1].contiguous(), text[:, 1:].contiguous()), n), 100


def _halves(data: Pair, n: int) -> tuple[Pair, Pair]:
    return (data[0][:n], data[1][:n]), (data[0][n:], data[1][n:])


def trained(model: nn.Module, data: Pair, size: int, run: Run) -> nn.Module:
    """A few steps, so that gradients differ."""
    model = model.to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for start in range(0, min(len(data[0]), 10 * size), size):
        optimizer.zero_grad()
        x, y = (part[start : start + size].to(run.device) for part in data)
        classification(model, (x, y)).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def agreement(first: Tensor, second: Tensor) -> str:
    pair = torch.stack([first.flatten().double().cpu(), second.flatten().double().cpu()])
    return f"{torch.corrcoef(pair)[0, 1]:.5f}"


def tests(run: Run) -> Iterator[dict[str, str]]:
    """`pytest -m cuda`; without a GPU all are skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--no-header", "tests/devices", "tests/risk"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1, run.left), check=False)
    except subprocess.TimeoutExpired:
        yield row("tests", note="not ended in time")
        return
    counts = ", ".join(re.findall(r"\d+ (?:passed|failed|skipped|error\w*)", done.stdout.strip().rpartition("\n")[2]))
    yield row("tests", case="pytest -m cuda", note=counts or done.stdout.strip()[-200:])


def peers(run: Run) -> Iterator[dict[str, str]]:
    """Fit and all pairs of EK-FAC."""
    for name, model, train, test, size in problems(run.toy):
        model = trained(model, train, size, run)
        few = min(len(train[0]), 4 * size)
        exact = scores_of("crossfluence", model.to("cpu"), tuple(part[:few] for part in train), test, size)
        model.to(run.device)
        for dtype, kind in DTYPES.items():
            for library in LIBRARIES:
                yield from _peer(run, name, model, train, test, size, dtype, kind, library, exact)


def _peer(run, name, model, train, test, size, dtype, kind, library, exact) -> Iterator[dict[str, str]]:
    case = {"part": "all pairs", "problem": name, "dtype": dtype, "case": library}
    if library == "kronfluence" and not find_spec("kronfluence"):
        yield row(**case, note="kronfluence is not installed")
        return
    if run.left < 30:
        yield row(**case, note="no time left")
        return
    work = cast(model, kind), tuple(part.to(kind) if part.is_floating_point() else part for part in train)
    asked = tuple(part.to(kind) if part.is_floating_point() else part for part in test)
    few = tuple(part[: len(exact)] for part in work[1])
    try:
        near = scores_of(library, work[0], few, asked, size)  # warms up, too
        if not run.toy:
            torch.cuda.reset_peak_memory_stats(run.device)
        took, _ = run.seconds(lambda: scores_of(library, work[0], work[1], asked, size))
    except Exception as error:  # a peer's failure is a row of the table
        yield row(**case, note=f"{type(error).__name__}: {str(error)[:120]}")
        return
    yield row(
        **case, n=len(train[0]), questions=len(test[0]), seconds=f"{took:.3f}", memory=run.gigabytes,
        correlation=agreement(near, exact),
    )  # fmt: skip


def cast(model: nn.Module, kind: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(kind)


def scores_of(library: str, model: nn.Module, train: Pair, test: Pair, size: int) -> Tensor:
    return EKFAC[library](Problem(model, "cross entropy", train, test, batch=size, queries=len(test[0]))).cpu()


def index(run: Run) -> Iterator[dict[str, str]]:
    """Build and scan: rows a second, and seconds of one question and of all."""
    *_, (name, model, train, test, size) = problems(run.toy)
    model = trained(model, train, size, run)
    risk = cf.Risk(model, classification, cf.batches(*train, size=size))  # data stays where it is
    fit, inverse = run.seconds(lambda: cf.EKFAC().invert(risk))
    question = cf.each_of(cf.batches(*test, size=size), classification)
    exact = cf.influence(risk, question, inverse).values
    one = cf.each_of(cf.batches(*(part[:1] for part in test)), classification)
    for dtype in CODES:
        case = {"part": "index", "problem": name, "dtype": "float32", "case": dtype}
        if run.left < 30:
            yield row(**case, note="no time left")
            continue
        with tempfile.TemporaryDirectory() as folder:
            built, made = run.seconds(lambda place=folder, dtype=dtype: cf.Index.build(
                risk, inverse, Path(place) / "index", dtype=dtype, tolerance=0.1
            ))  # fmt: skip
            found = made.scores(question).values
            single, _ = run.seconds(lambda made=made: made.scores(one))
            took, _ = run.seconds(lambda made=made: made.scores(question))
        yield row(
            **case, n=len(train[0]), questions=len(test[0]), seconds=f"{took:.3f}", memory=run.gigabytes,
            correlation=agreement(found, exact),
            note=f"fit {fit:.2f} s, {len(train[0]) / built:.0f} rows a second at build, one question {single:.3f} s",
        )  # fmt: skip


def row(
    part: str, problem: str = "", dtype: str = "", case: str = "", n: int | str = "", questions: int | str = "",
    seconds: str = "", memory: str = "", correlation: str = "", note: str = "",
) -> dict[str, str]:  # fmt: skip
    return {
        "part": part, "problem": problem, "dtype": dtype, "case": case, "n": str(n), "questions": str(questions),
        "seconds": seconds, "memory, GB": memory, "correlation": correlation, "note": note,
    }  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", nargs="+", default=["tests", "peers", "index"], choices=["tests", "peers", "index"])
    asked = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    run = Run(torch.device(asked.device), time.monotonic() + 60 * asked.minutes - 20)
    print(run.card, flush=True)
    torch.manual_seed(0)
    found = []
    for part in asked.parts:
        for one in {"tests": tests, "peers": peers, "index": index}[part](run):
            found.append({"card": run.card, **one})
            print(line(one), flush=True)
            save("gpu-toy" if run.toy else "gpu", found)


if __name__ == "__main__":
    main()
