"""What every curvature offers, and damping in its one unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._abstract_risk import AbstractRisk
from .._errors import SolveError, UnsupportedError
from .._functional import undisturbed
from .._risk import Risk

PROBES = 64  # of Hutchinson's estimate; with at most this many parameters the diagonal is exact


class AbstractCurvature(ABC):
    """A p x p matrix that is never formed, l2 term included."""

    def product(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """The matrix times vectors: one pass over the data.

        Args:
            risk: Where.
            vectors: One in each row.

        Returns:
            One product in each row, in units of mean loss per parameter.
        """
        with undisturbed():
            return self._given(risk, vectors, self._product)

    def transposed_product(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """The transpose times vectors; the same for symmetric curvatures.

        Args:
            risk: Where.
            vectors: One in each row.

        Returns:
            One product in each row.
        """
        with undisturbed():
            return self._given(risk, vectors, self._transposed_product)

    def _given(self, risk: AbstractRisk, vectors: Tensor, differentiated: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """The product that the risk's structure gives in closed form (all of them symmetric), or by differentiation."""
        if not risk.products:
            return differentiated(risk, vectors)
        if type(self) not in risk.products:
            raise UnsupportedError(
                f"{type(risk).__name__} has no product with {self}; it has "
                f"{' and '.join(f'{kind.__name__}()' for kind in risk.products)}."
            )
        return risk.products[type(self)](vectors)

    @abstractmethod
    def _product(self, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]: ...

    def _transposed_product(self, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        return self._product(risk, vectors)


@dataclass(frozen=True)
class Relative:
    """Damping as a multiple of the mean eigenvalue of the curvature of the mean loss.

    Attributes:
        factor: How many mean eigenvalues; 0.1 is common for layer-wise solvers.

    Example:
        >>> Relative(0.1)
        Relative(factor=0.1)
    """

    factor: float

    def __post_init__(self) -> None:
        if not self.factor >= 0:
            raise ValueError(f"Got Relative({self.factor}); needed zero or more.")


def absolute(damping: float | Relative, mean_eigenvalue: float) -> float:
    """Damping as the number that is added to every eigenvalue.

    Args:
        damping: Absolute, or `Relative`.
        mean_eigenvalue: Of the curvature, l2 term included.

    Returns:
        A number in units of mean loss per squared parameter.

    Raises:
        SolveError: If a relative damping meets a mean eigenvalue that is not positive.
        ValueError: If the damping is negative.
    """
    if not isinstance(damping, Relative):
        if not damping >= 0:
            raise ValueError(f"Got damping={damping}; needed zero or more, or Relative(x).")
        return float(damping)
    if damping.factor and mean_eigenvalue <= 0:
        raise SolveError(
            f"{damping} needs a positive mean eigenvalue; this curvature has {mean_eigenvalue:.3g}. "
            f"Give an absolute damping, or curvature=GaussNewton()."
        )
    return damping.factor * mean_eigenvalue


def diagonal(curvature: AbstractCurvature, risk: AbstractRisk, *, seed: int = 0) -> Shaped[Tensor, " p"]:
    """The diagonal, estimated with 64 vectors of random signs; exact for at most 64 parameters.

    Args:
        curvature: Of what.
        risk: Where.
        seed: Of the signs.

    Returns:
        In units of mean loss per squared parameter.

    References:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990; Bekas, Kokiopoulou and Saad,
        "An estimator for the diagonal of a matrix", 2007.
    """
    like = risk.layout.flatten(risk.theta)
    if risk.p <= PROBES:
        return curvature.product(risk, torch.eye(risk.p, dtype=like.dtype, device=like.device)).diagonal()
    generator = torch.Generator().manual_seed(seed)
    probes = (torch.randint(0, 2, (PROBES, risk.p), generator=generator) * 2 - 1).to(like)
    return (probes * curvature.product(risk, probes)).mean(0)


def mean_eigenvalue(curvature: AbstractCurvature, risk: AbstractRisk) -> float:
    """The trace over p: the mean of the diagonal.

    Args:
        curvature: Of what.
        risk: Where.

    Returns:
        In units of mean loss per squared parameter.
    """
    return float(diagonal(curvature, risk).mean())


def damping_products(damping: float | Relative, risk: AbstractRisk) -> int:
    """How many products `plain_damping` takes."""
    return min(PROBES, risk.p) if isinstance(damping, Relative) else 0


def plain_damping(damping: float | Relative, curvature: AbstractCurvature, risk: AbstractRisk) -> float:
    """`absolute`, asking for the mean eigenvalue only when it matters.

    Args:
        damping: Absolute, or `Relative`.
        curvature: What is damped.
        risk: Where.

    Returns:
        The number that is added to every eigenvalue.
    """
    return absolute(damping, mean_eigenvalue(curvature, risk) if isinstance(damping, Relative) else 1.0)
