"""CPU seconds, ratios of times, epochs as their unit, and peak memory of this process."""

import resource
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from torch import nn

from .losses import Pair, classification

Made = TypeVar("Made")


def timed(work: Callable[[], Made]) -> tuple[float, Made]:
    """CPU seconds of this process, and what `work` returned."""
    started = time.process_time()
    made = work()
    return time.process_time() - started, made


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    return timed(work)[0]


def median_ratio(first: Callable[[], object], second: Callable[[], object], repeats: int = 7) -> float:
    """Median over pairs that run one after the other, so that drifts of the machine cancel."""
    first(), second()
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(ratios)


def epoch(model: nn.Module, data: Iterable[Pair]) -> None:
    """Forward and backward over all batches, as in training."""
    for batch in data:
        model.zero_grad()
        classification(model, batch).mean().backward()
    model.zero_grad()


def peak_gigabytes() -> float:
    """Peak memory of this process so far (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_of_program() -> float:
    """Peak memory in gigabytes since this program began, without that of the process that started it (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM"))
