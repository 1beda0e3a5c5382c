"""A damped curvature at one trained model, the matrix that every solver inverts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Shaped
from torch import Tensor

from .._risk.base import AbstractRisk
from .base import PROBES, AbstractCurvature, Relative, damping_products, diagonal, plain_damping
from .hessian import FieldJacobian, Hessian
from .scale import scale_of, scale_products, scale_readings, tempered


@dataclass(frozen=True, eq=False)
class Operator:
    r"""$J + \text{damping}$ at one trained model: the matrix that every solver inverts.

    Solvers iterate with $B = S(J + \text{damping})S$, for solutions $S\hat u$ with $B\hat u = S a$. In these
    coordinates the diagonal is about one, or of an ordinary spread. Residuals, rank and symmetry measured there hardly
    depend on the units of the parameters, and so of the data's columns.

    Attributes:
        curvature: J.
        risk: Where; in double precision if the problem is small.
        added: To the eigenvalues of J; a number, or `Relative`.
        given: S, shape `(p,)`, where it is not to be `tempered`.
    """

    curvature: AbstractCurvature
    risk: AbstractRisk
    added: float | Relative
    given: Shaped[Tensor, " p"] | None = None

    @cached_property
    def damping(self) -> float:
        """The number that is added to the eigenvalues: one for all solvers, found when it is asked for."""
        return plain_damping(self.added, self.curvature, self.risk)

    @property
    def size(self) -> int:
        """The number p of parameters."""
        return self.risk.p

    @property
    def symmetric(self) -> bool:
        """True if the matrix is its own transpose."""
        return self.risk.symmetric

    @property
    def decay(self) -> Tensor | float:
        """The part of the matrix that is known to be diagonal: l2 and damping."""
        return self.risk.decay + self.damping

    @cached_property
    def units(self) -> Shaped[Tensor, " p"]:
        """Units of the parameters in which the diagonal is about one."""
        return scale_of(self.curvature, self.risk, self.damping)

    @cached_property
    def scale(self) -> Shaped[Tensor, " p"]:
        """S: these units, or the parameters' own where there are more than a few and these are ordinary."""
        if self.given is not None:
            return self.given
        return self.units if self.size <= PROBES else tempered(self.units)

    def scaled(self, scale: Shaped[Tensor, " p"]) -> Operator:
        """The same matrix with another S."""
        return replace(self, given=scale)

    def undamped(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """J times each row, in the parameters' own coordinates."""
        return self.curvature.product(self.risk, vectors)

    def diagonal(self, seed: int) -> Shaped[Tensor, " p"]:
        """The diagonal of the damped matrix, estimated beyond a few parameters; see `diagonal`."""
        return diagonal(self.curvature, self.risk, seed=seed, scale=self.units) + self.damping

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


def operator(curvature: AbstractCurvature | None, damping: float | Relative, risk: AbstractRisk) -> Operator:
    """The damped curvature of a risk: where every solver begins.

    Args:
        curvature: Which matrix; by default the Hessian, or the field's Jacobian where there is no Hessian.
        damping: Added to its eigenvalues; `Relative(x)` is one number, whatever the solver.
        risk: Where.

    Returns:
        In double precision if the problem is small.
    """
    return Operator(natural_curvature(curvature, risk), risk.fine, damping)


def natural_curvature(curvature: AbstractCurvature | None, risk: AbstractRisk) -> AbstractCurvature:
    """The curvature asked for, or the Hessian, or the field's Jacobian where there is no Hessian."""
    if curvature is not None:
        return curvature
    return Hessian() if risk.symmetric else FieldJacobian()


def operator_products(damping: float | Relative, risk: AbstractRisk) -> int:
    """Number of products that an operator and its units take together."""
    return damping_products(damping, risk) + scale_products(risk)


def operator_readings(risk: AbstractRisk) -> int:
    """Number of passes over the data for the units, beside these products and those taken alone."""
    return scale_readings(risk)
