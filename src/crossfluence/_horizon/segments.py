r"""A training in segments: an effect of each, carried through the segments after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._risk.base import AbstractRisk
from .._risk.moved import moved_to
from .._risk.risk import Risk
from .._solvers.base import AbstractInverse, Points, Solution
from .._solvers.phi import faded, phi
from .._storage.archive import stored
from ..errors import UnsupportedError
from .engines import Applied, DenseEngine, ProductsEngine, RootsEngine

LEAST = 1e-6  # of the largest pace: a parameter that a segment did not move passes effects on, and has none


@stored("HorizonSegment")
@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a training.

    Attributes:
        theta: Parameters at its end, shape `(p,)`.
        pace: $A^{1/2}$ of its steps alone.
        engine: Applies functions of its X.
    """

    theta: Shaped[Tensor, " p"]
    pace: Shaped[Tensor, " p"]
    engine: RootsEngine | DenseEngine | ProductsEngine = field(repr=False)


@stored("HorizonSegments")
@dataclass(frozen=True, eq=False)
class SegmentedInverse(AbstractInverse):
    r"""The segments of a training, the last first.

    With $v_T = \nabla m$ at the end, segment j contributes $-\nabla\ell_i(\theta_j)^\top A_j^{1/2}\varphi(X_j)
    A_j^{1/2} v_j / n$, its gradients those at its own end, and hands on
    $v_{j-1} = A_j^{-1/2} e^{-X_j} A_j^{1/2} v_j$: what is left at the end of training of a deviation before it.

    Attributes:
        segments: From the last to the first.
        approximation: That the record is of a training with another loss, as a clause; empty if it may be of this one.
    """

    solver: str
    signature: str
    segments: tuple[Segment, ...] = field(repr=False)
    damping: float = 0.0
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ()
    approximation: str = ""  # pyright: ignore[reportIncompatibleVariableOverride]
    at_minimum = False

    def solve_along(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> tuple[Solution, Points]:
        """One solution for each segment, to be met by gradients at its end."""
        assert isinstance(risk, Risk)
        return self._backwards(vectors, [self._at(risk, one) for one in self.segments])

    def self_influence(self, risk: AbstractRisk) -> Iterator[Shaped[Tensor, " b"]]:
        """Every sample's own gradients, at the ends of all segments.

        Args:
            risk: The trained model.

        Yields:
            Scores, batch by batch.
        """
        assert isinstance(risk, Risk)
        at = [self._at(risk, one) for one in self.segments]
        for rows in zip(*(one.sample_gradients() for one in at), strict=True):
            _, points = self._backwards(rows[0], at)
            total = torch.stack([(u * each).sum(1) for (_, u), each in zip(points, rows, strict=True)]).sum(0)
            yield -risk.n * total

    def _at(self, risk: Risk, segment: Segment) -> Risk:
        ended = torch.equal(segment.theta, risk.layout.flatten(risk.theta))
        return risk if ended else moved_to(risk, risk.layout.split(segment.theta))

    def _backwards(self, v: Shaped[Tensor, "m p"], at: list[Risk]) -> tuple[Solution, Points]:
        found, applied, steps = [], [], 0
        for segment in self.segments:
            each = segment.engine.apply(v * segment.pace, (phi, faded))
            found.append(each.vectors * segment.pace)
            v = v + each.results[1] / segment.pace
            applied.append(each)
            steps += each.steps
        solution = Solution(found[0], (steps,) * len(v) if steps else (), agreements=_worst(applied))
        return solution, tuple(zip(at, found, strict=True))

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        raise UnsupportedError(
            f"{self.solver} has no one matrix: each segment of the training has gradients of its own, which influence "
            f"and self_influence take. For anything else leave out segments=."
        )


def paced(scaling: Shaped[Tensor, " p"]) -> Shaped[Tensor, " p"]:
    """The root of A, so that it can be divided by.

    Args:
        scaling: A of one segment.

    Returns:
        Positive numbers.
    """
    root = scaling.sqrt()
    return root.clamp_min(LEAST * float(root.max()))


def _worst(applied: list[Applied]) -> tuple[tuple[float, float], ...]:
    """Agreements of two halves, for each question the lowest of all segments."""
    pairs = zip(*(each.agreements for each in applied), strict=True)
    return tuple((min(r for r, _ in each), min(slope for _, slope in each)) for each in pairs)
