"""A long fit that may be stopped: how far it has come, in a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .archive import Parts, stored, write_archive

FORMAT = "crossfluence.inverse/2"  # the finished inverse takes the file's place
READABLE = (FORMAT, "crossfluence.inverse/1")
IN_OTHER_UNITS = ("LowRank(", "Nystrom(")  # solvers whose fits stopped under the first format cannot go on
SHARE = 0.05  # of the time, at most, that goes into writing


def _in_present_units(parts: Parts, form: str) -> Parts:
    """The fields of a stopped fit; refused where the first format has subspaces without the parameters' scale."""
    if form != FORMAT and parts["state"] and parts["solver"].startswith(IN_OTHER_UNITS):
        raise TypeError(f"a fit of {parts['solver']} was stopped in other units. Delete the file")
    return parts


@stored("Unfinished", _in_present_units)
@dataclass(frozen=True, eq=False)
class PartialFit:
    """The state of a fit that is not finished.

    Attributes:
        solver: `repr` of what makes it.
        signature: Of the risk that it is made for.
        state: Numbers, tensors and values of this package; empty at the beginning.
    """

    solver: str
    signature: str
    state: tuple[Any, ...] = ()


class Checkpoint:
    """Keeps the state of a fit in a file, as often as a twentieth of the time allows; without a file, nowhere.

    Args:
        path: The file.
        found: What it held.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, found: PartialFit = PartialFit("", "")) -> None:
        self.path, self.found = path, found
        self._due = time.perf_counter()

    @property
    def state(self) -> tuple[Any, ...]:
        """The state to go on from; empty at the beginning."""
        return self.found.state

    def maybe_save(self, state: Callable[[], tuple[Any, ...]]) -> None:
        """Writes the state, if it is time to; called where nothing is half done.

        Args:
            state: Gives it.
        """
        started = time.perf_counter()
        if self.path is None or started < self._due:
            return
        write_archive(self.path, replace(self.found, state=state()), FORMAT)
        ended = time.perf_counter()
        self._due = ended + (ended - started) / SHARE


NO_CHECKPOINT = Checkpoint()
