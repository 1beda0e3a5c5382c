"""The cost of a solver, known before it starts: counts that `plan` multiplies with measured times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .._curvature.base import Relative
from .._curvature.operator import operator_products, operator_readings
from .._risk.base import AbstractRisk
from .._risk.risk import Risk


@dataclass(frozen=True)
class Cost:
    """The cost of a solver: counts that `plan` multiplies with measured times.

    Attributes:
        sequential_products: Products with the curvature before the first question, one after another.
        batched_products: Such products that share passes over the data.
        steps: Products for each question, at most.
        data_fraction: Of the data that a step reads.
        vectors: Of p numbers held for each question while it is solved.
        vectors_per_step: Such vectors that every step adds.
        inverse_bytes: Bytes of the inverse.
        temporary_bytes: Bytes beside it while it is made.
        matrix_order: Of a dense matrix that is factorised.
        data_passes: Passes over the data that are no products.
        dry_run: Does the work that is no products on a part of the data, for some number of questions.
    """

    sequential_products: int = 0
    batched_products: int = 0
    steps: int = 0
    data_fraction: float = 1.0
    vectors: int = 2
    vectors_per_step: int = 0
    inverse_bytes: int = 0
    temporary_bytes: int = 0
    matrix_order: int = 0
    data_passes: int = 0
    dry_run: Callable[[Risk, int], DryRun] | None = None


@dataclass(frozen=True, eq=False)
class Timing:
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
class DryRun:
    """The work of a solver on a part of the data.

    Attributes:
        held: Bytes of the inverse, whatever n is.
        stages: All that it did, ready to be done again.
    """

    held: int
    stages: tuple[Timing, ...]


def iterated(first: Cost, damping: float | Relative, risk: AbstractRisk, **counts: Any) -> Cost:
    """The cost of a solver that takes a product for each step.

    Args:
        first: Of its preconditioner.
        damping: Of the solver.
        risk: The trained model.
        **counts: Of the steps, by the names of `Cost`.

    Returns:
        That of the preconditioner, of the damping and of the units of the parameters, and the counts.
    """
    return replace(
        first,
        batched_products=first.batched_products + operator_products(damping, risk),
        sequential_products=first.sequential_products + operator_readings(risk),
        data_passes=first.data_passes + operator_readings(risk),
        **counts,
    )
