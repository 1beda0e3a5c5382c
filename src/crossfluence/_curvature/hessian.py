"""Second derivatives of the risk: the Jacobian of the training field, and the Hessian where that is a gradient."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from .._risk.base import AbstractRisk
from ..errors import UnsupportedError
from .base import AbstractCurvature


@dataclass(frozen=True)
class FieldJacobian(AbstractCurvature):
    r"""$J = \partial g/\partial\theta$: the derivative of the training field by the parameters.

    Defined for all four kinds of loss. It equals the Hessian when the field is a gradient; for stop-gradient losses it
    is not symmetric, and influence solves with its transpose.

    Example:
        >>> FieldJacobian()
        FieldJacobian()
    """

    def product(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """J v for each row."""
        return risk.jacobian_product(vectors)

    def transposed_product(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Jᵀ v for each row."""
        return risk.jacobian_transpose_product(vectors)


@dataclass(frozen=True)
class Hessian(AbstractCurvature):
    r"""$H = \partial^2 F/\partial\theta^2$, for losses whose training field is a gradient.

    Example:
        >>> Hessian()
        Hessian()

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6(1), 1994.
    """

    def product(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """H v for each row."""
        if not risk.symmetric:
            raise UnsupportedError(
                "A FieldLoss trains along a field that is not a gradient, so it has no Hessian. "
                "Use curvature=FieldJacobian() with solver GMRES or Exact (Auto does)."
            )
        return risk.jacobian_product(vectors)
