"""One bar for all of a command, above those of its phases: how much time has passed, and about how much is left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from .forecast import Forecast, lasting

EVERY = 0.5  # seconds, after which the bar is drawn again
ENOUGH = 3  # finished trainings of this run, from which their pace says more than the forecast


@dataclass
class Remaining:
    """About how many seconds are left: as was foretold, and at the pace of the trainings that are finished.

    Attributes:
        foretold: Seconds in all.
        trainings: In all; those that an earlier run finished count.
    """

    foretold: float
    trainings: int
    _begun: tuple[float, int] | None = field(default=None, init=False)
    _before: int | None = field(default=None, init=False)

    def after(self, seconds: float, finished: int) -> float:
        """Seconds that are left.

        Args:
            seconds: That have passed.
            finished: Trainings.

        Returns:
            At least 0.

        Example:
            >>> left = Remaining(100.0, 40)
            >>> [left.after(passed, finished) for passed, finished in ((30.0, 0), (40.0, 10), (60.0, 30))]
            [70.0, 60.0, 10.0]
        """
        if self._before is None:
            self._before = finished
        if self._begun is None and finished > self._before:
            self._begun = seconds, finished
        if self._begun is not None and finished - self._begun[1] >= ENOUGH:
            began, first = self._begun
            return max(self.trainings - finished, 0) * (seconds - began) / (finished - first)
        return max(self.foretold - seconds, 0.0)


@contextmanager
def whole(
    expected: Forecast, finished: Callable[[], int] = lambda: 0
) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """Shows the bar while the work is done, where a person looks on.

    Args:
        expected: What was foretold.
        finished: Trainings that are finished.

    Yields:
        A context in which something can be printed that does not run into the bars.
    """
    if not sys.stderr.isatty() or expected.seconds < EVERY:
        yield nullcontext
        return
    bar = tqdm(total=1.0, bar_format="in all: {percentage:3.0f}%|{bar:20}| {desc}", leave=False)
    left, began, ended = Remaining(expected.seconds, expected.trainings), time.monotonic(), threading.Event()

    def draw() -> None:
        while not ended.wait(EVERY):
            passed = time.monotonic() - began
            still = left.after(passed, finished())
            bar.n = passed / (passed + still)
            left_over = f"about {lasting(still)} left" if still else "ends soon"
            bar.set_description_str(f"{lasting(passed)} passed, {left_over}")

    drawing = threading.Thread(target=draw, daemon=True)
    drawing.start()
    try:
        yield tqdm.external_write_mode
    finally:
        ended.set()
        drawing.join()
        bar.close()
