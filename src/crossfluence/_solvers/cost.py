"""The cost of a solver, known before it starts: counts that `plan` multiplies with measured times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .._risk.risk import Risk


@dataclass(frozen=True)
class Work:
    """The cost of a solver: counts that `plan` multiplies with measured times.

    Attributes:
        alone: Products with the curvature before the first question, one after another.
        together: Such products that share passes over the data.
        steps: Products for each question, at most.
        share: Of the data that a step reads.
        vectors: Of p numbers held for each question while it is solved.
        kept: Such vectors that every step adds.
        held: Bytes of the inverse.
        scratch: Bytes beside it while it is made.
        order: Of a dense matrix that is factorised.
        readings: Passes over the data that are no products.
        rehearse: Does the work that is no products on a part of the data, for some number of questions.
    """

    alone: int = 0
    together: int = 0
    steps: int = 0
    share: float = 1.0
    vectors: int = 2
    kept: int = 0
    held: int = 0
    scratch: int = 0
    order: int = 0
    readings: int = 0
    rehearse: Callable[[Risk, int], Rehearsal] | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """A piece of work on a part of the data, to be timed.

    Attributes:
        run: Does it.
        grows: Whether it takes time in proportion to the samples.
        questions: How many it answers; 0 if it is done once for all.
    """

    run: Callable[[], object]
    grows: bool = False
    questions: int = 0


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """The work of a solver on a part of the data.

    Attributes:
        held: Bytes of the inverse, whatever n is.
        stages: All that it did, ready to be done again.
    """

    held: int
    stages: tuple[Stage, ...]
