"""Long work in the background, one piece after the other: it says how far it is, and can be stopped."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["waiting", "running", "done", "stopped", "failed"]
MOST_WAITING = 20
REMEMBERED = 50  # jobs that ended


class Stopped(Exception):  # noqa: N818  # nothing went wrong
    """A job was stopped by a person, or the server ends."""


@dataclass
class Job:
    """A piece of work.

    Attributes:
        number: Its name.
        about: What it does, as the page shows it.
        work: Does it; is given a function to tell its steps.
        state: Where it is.
        done: Steps taken.
        total: Steps in all; 0 while unknown.
        result: What came out.
        said: Why it failed.
    """

    number: int
    about: dict[str, Any]
    work: Callable[[Callable[[int, int], None]], dict[str, Any]] = field(repr=False)
    state: State = "waiting"
    done: int = 0
    total: int = 0
    result: dict[str, Any] | None = None
    said: str = ""
    stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def shown(self) -> dict[str, Any]:
        """The job as the page sees it."""
        return {
            "number": self.number, "about": self.about, "state": self.state, "done": self.done, "total": self.total,
            "result": self.result, "said": self.said,
        }  # fmt: skip

    def tell(self, done: int, total: int) -> None:
        """Notes a step.

        Raises:
            Stopped: If the job shall end.
        """
        self.done, self.total = done, total
        if self.stop.is_set():
            raise Stopped


class Jobs:
    """One thread that does jobs in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="explore", daemon=True)
        self._thread.start()

    def start(self, about: dict[str, Any], work: Callable[[Callable[[int, int], None]], dict[str, Any]]) -> Job | None:
        """Puts a job at the end of the line.

        Args:
            about: What it does.
            work: Does it.

        Returns:
            The job, the same one if it waits or runs already; nothing if too many wait.
        """
        with self._lock:
            live = [job for job in self._jobs.values() if job.state in {"waiting", "running"}]
            if same := next((job for job in live if job.about == about and not job.stop.is_set()), None):
                return same
            if len(live) >= MOST_WAITING:
                return None
            job = Job(next(self._numbers), about, work)
            self._jobs[job.number] = job
            ended = [number for number, one in self._jobs.items() if one.state not in {"waiting", "running"}]
            for number in ended[:-REMEMBERED]:
                del self._jobs[number]
        self._waiting.put(job)
        return job

    def get(self, number: int) -> Job | None:
        """A job by its number."""
        return self._jobs.get(number)

    def shown(self) -> list[dict[str, Any]]:
        """All jobs, oldest first."""
        with self._lock:
            return [job.shown() for job in self._jobs.values()]

    def stop(self, number: int) -> bool:
        """Asks a job to end; True if it has not ended already."""
        job = self._jobs.get(number)
        if job is None or job.state not in {"waiting", "running"}:
            return False
        job.stop.set()
        return True

    def close(self, timeout: float = 10.0) -> None:
        """Stops all jobs and the thread.

        Args:
            timeout: Seconds to wait for the running one.
        """
        with self._lock:
            for job in self._jobs.values():
                job.stop.set()
        self._waiting.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            self._do(job)

    def _do(self, job: Job) -> None:
        if job.stop.is_set():
            job.state = "stopped"
            return
        job.state = "running"
        try:
            job.result = job.work(job.tell)
            job.state = "done"
        except Stopped:
            job.state = "stopped"
        except Exception as error:
            job.said, job.state = str(error) or type(error).__name__, "failed"
