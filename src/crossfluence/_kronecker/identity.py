"""No curvature at all: the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Shaped
from torch import Tensor

from .._risk.base import AbstractRisk
from .._risk.objectives import EachOf
from .._risk.risk import Risk
from .._solvers.base import AbstractInverse, AbstractSolver, Solution
from .._solvers.cost import Cost
from .._storage.archive import stored
from .._types import Objective
from .pairwise import PairwiseScores, pairwise_scores


@dataclass(frozen=True)
class Identity(AbstractSolver):
    """Plain gradient similarity: how much the gradients of sample and question point the same way.

    The cheapest baseline. Its sign is that of every estimate; its size has no meaning.

    Example:
        >>> Identity()
        Identity()
    """

    saveable: ClassVar[bool] = True

    def cost(self, risk: AbstractRisk) -> Cost:
        """No products at all."""
        return Cost()

    def _invert(self, risk: AbstractRisk) -> IdentityInverse:
        """Needs no work."""
        return IdentityInverse(repr(self), risk.signature)


@stored("IdentityInverse")
@dataclass(frozen=True, eq=False)
class IdentityInverse(AbstractInverse):
    """Returns what it gets."""

    approximation: ClassVar[str] = (
        "gradient similarity has no unit, and its order held in fewer than half of the trainings that were counted"
    )
    solver: str
    signature: str
    damping: float = 0.0
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ("Gradient similarity: signs and ranks mean something, sizes do not.",)

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """The vectors themselves."""
        return Solution(vectors)

    def pairwise(self, risk: AbstractRisk, objective: Objective) -> PairwiseScores | None:
        """All pairs in one pass over the samples, where every question belongs to a test sample.

        Args:
            risk: The trained model.
            objective: The questions.

        Returns:
            PairwiseScores of samples and questions; `None` for other questions and risks.
        """
        if not (isinstance(objective, EachOf) and isinstance(risk, Risk)):
            return None
        return pairwise_scores(risk, objective, None, risk.layout.split)
