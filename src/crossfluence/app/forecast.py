"""Estimates of the time and memory of a clustering from its numbers of rows and columns, and from one short trial."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..clustering.processes import WORTH, processors
from ..clustering.settings import ClusterSettings

TRIED, TRIAL_SECONDS = 2_048, 0.05  # rows on which steps are tried, as many as are computed together; for how long
SLOWER, CALLS = 1.5, 1e-4  # than the trial is a step of PyTorch; seconds of its calls, whatever the rows
PRETRAINING, HESSIAN = 3.0, 4.0  # steps of sharpening that take as long as one of pre-training; as one row of the
# curvature; these and all others were measured: benchmarks/foretold.py
ANCHORS = 2  # that are tried, as a rule
SOLVED, STARTED = 1e-9, 4.0  # seconds of a dense solve, per cubed parameter; of libraries, k-means and the page
MOST_PROCESSES = 8
LIBRARIES, WORKER = 0.45, 0.25  # GiB of PyTorch, pandas and the like; in a process that retrains
ROWS_AT_ONCE, COPIES = 160_000, 13  # of all vectors that are multiplied with the curvature together; held of each


@dataclass(frozen=True)
class Forecast:
    """The time and memory of a run.

    Attributes:
        seconds: On the clock, with the processors as busy as they are now.
        gigabytes: Peak memory, in GiB.
        processes: In which to train again.
        trainings: Without some rows, where they are counted.

    Example:
        >>> print(Forecast(400.0, 1.23))
        About 7 min and 1.2 GiB.
    """

    seconds: float
    gigabytes: float
    processes: int = 1
    trainings: int = 0

    def __str__(self) -> str:
        return f"About {lasting(self.seconds)} and {self.gigabytes:.1f} GiB."


def lasting(seconds: float) -> str:
    """A time in words.

    Args:
        seconds: How long.

    Returns:
        Seconds or minutes.

    Example:
        >>> lasting(0.2), lasting(89.0), lasting(200.0)
        ('1 s', '89 s', '3 min')
    """
    return f"{round(seconds / 60)} min" if seconds >= 90 else f"{max(1, round(seconds))} s"


def forecast_clusters(n: int, features: int, settings: ClusterSettings, *, questions: int = 1) -> Forecast:
    """Estimates the time and memory of `explain` on this machine; more, if the anchor has to be raised twice.

    Args:
        n: Rows.
        features: Columns.
        settings: As for `explain`.
        questions: Rows that are asked about.

    Returns:
        The time of a few steps on some rows, times the number of rows, steps and trainings, and the
        products of the curvature in such steps; longer, where other programs keep the processors busy.
    """
    from threadpoolctl import threadpool_limits

    m, h, d, k = min(n, TRIED), settings.hidden, settings.embedding, settings.k
    x = np.linspace(-1, 1, m * features).reshape(m, features)
    with threadpool_limits(1):  # as training does
        tried = seconds_of(lambda: trial(x, h, d, k), least=TRIAL_SECONDS)
    step = SLOWER * tried * n / m + CALLS
    p = (features + 1) * h + (h + 1) * d + k * d
    trainings = questions * (min(settings.check, n) + settings.draws + len(settings.sizes) + 2)
    anchored = ANCHORS * (step * (settings.steps + p * HESSIAN) + p**3 * SOLVED)
    again = step * settings.steps * trainings
    workers = min(processors(), MOST_PROCESSES) if again > WORTH else 1
    once = STARTED + step * settings.pretraining * PRETRAINING + anchored
    seconds = once * beside_others(1) + again / workers * beside_others(workers)
    products = COPIES * min(32 * n, max(n, ROWS_AT_ONCE)) * (h + d + k) + 6 * p**2
    held = n * (features + 2 * (h + d + 2 * k)) * (1 + workers)
    return Forecast(seconds, LIBRARIES + WORKER * (workers - 1) + 8 * (products + held) / 2**30, workers, trainings)


def trial(x: Float[np.ndarray, "n f"], h: int, d: int, k: int) -> Float[np.ndarray, "h f"]:
    """A step of sharpening in numpy, which takes about as long as one in PyTorch; see `crossfluence.clustering`.

    Args:
        x: Some rows.
        h: Units of the hidden layer.
        d: Size of the embedding.
        k: Clusters.

    Returns:
        The gradient by the first layer.
    """
    w1, w2, c = np.full((h, x.shape[1]), 0.1), np.full((d, h), 0.1), np.linspace(-1, 1, k * d).reshape(k, d)
    hidden = np.tanh(x @ w1.T)  # (n, h)
    z = hidden @ w2.T  # (n, d)
    s = 1 / (1 + (c * c).sum(1) - 2 * (z @ c.T) + (z * z).sum(1, keepdims=True))  # (n, k)
    q = s / s.sum(1, keepdims=True)
    p = q * q / q.sum(0)
    g = (p / p.sum(1, keepdims=True) - q) * s
    dz = z * g.sum(1, keepdims=True) - g @ c
    return ((dz @ w2) * (1 - hidden * hidden)).T @ x


def beside_others(own: int) -> float:
    """Slowing of work by all that has run here in the last minute: processes by processors.

    Args:
        own: Processes that do the work.

    Returns:
        At least 1; 1 on systems that do not say what runs.
    """
    others = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1.0, (others + own) / processors())


def seconds_of(work: Callable[[], object], *, least: float = 0.0) -> float:
    """The fastest of at least three runs, after one that warms up, without what others on the machine take from it.

    Args:
        work: The work to measure.
        least: Seconds for which it is done again.

    Returns:
        Seconds on the clock, or of the processors where these are fewer: the work had to wait.
    """
    work()
    fastest, count, begun = math.inf, 0, time.perf_counter()
    while count < 3 or time.perf_counter() - begun < least:
        clock, processor = time.perf_counter(), time.process_time()
        work()
        fastest = min(fastest, time.perf_counter() - clock, time.process_time() - processor)
        count += 1
    return fastest
