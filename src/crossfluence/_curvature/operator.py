"""A damped curvature at one trained model, in coordinates that do not depend on the parameters' units."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from .._risk.base import AbstractRisk
from .base import PROBES, AbstractCurvature, Relative, damping_products, plain_damping
from .scale import scale_of, scale_products, scale_readings, tempered


@dataclass(frozen=True, eq=False)
class Operator:
    r"""$B = S(J + \text{damping})S$, for solutions $S\hat u$ with $B\hat u = S a$.

    In these coordinates the diagonal is about one, or of an ordinary spread. Residuals, rank and symmetry measured
    there hardly depend on the units of the parameters, and so of the data's columns.

    Attributes:
        curvature: J.
        risk: Where; in double precision if the problem is small.
        damping: Added to the eigenvalues of J.
        scale: S, shape `(p,)`.
    """

    curvature: AbstractCurvature
    risk: AbstractRisk
    damping: float
    scale: Shaped[Tensor, " p"]

    def product(self, vectors: Shaped[Tensor, "m p"], *, transposed: bool = False) -> Shaped[Tensor, "m p"]:
        """B, or its transpose, times each row: one pass over the data.

        Args:
            vectors: One in each row.
            transposed: Whether to take the transpose.

        Returns:
            One product in each row.
        """
        differentiated = self.curvature.transposed_product if transposed else self.curvature.product
        wide = vectors * self.scale
        return differentiated(self.risk, wide).add_(wide, alpha=self.damping).mul_(self.scale)

    def inside(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """S times each row: a right-hand side as it is here, or a solution as it is outside."""
        return vectors.to(self.scale) * self.scale

    def outside(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Each row divided by S: a solution as it is here."""
        return vectors / self.scale


def operator(curvature: AbstractCurvature, damping: float | Relative, risk: AbstractRisk) -> Operator:
    """The damped curvature of a risk, in its own coordinates.

    Args:
        curvature: Which matrix.
        damping: Added to its eigenvalues.
        risk: Where.

    Returns:
        In double precision if the problem is small.
    """
    added, fine = plain_damping(damping, curvature, risk), risk.fine
    scale = scale_of(curvature, fine, added)
    return Operator(curvature, fine, added, scale if risk.p <= PROBES else tempered(scale))


def operator_products(damping: float | Relative, risk: AbstractRisk) -> int:
    """How many products `operator` takes together."""
    return damping_products(damping, risk) + scale_products(risk)


def operator_readings(risk: AbstractRisk) -> int:
    """How many passes over the data `operator` takes beside these products, and how many products alone."""
    return scale_readings(risk)
