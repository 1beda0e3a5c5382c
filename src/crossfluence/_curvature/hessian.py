"""Second derivatives of the risk: the Jacobian of the training field, and the Hessian where that is a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import all_finite
from .._risk.risk import Risk
from .._types import Batch, Params
from ..errors import NonFiniteError, UnsupportedError
from .base import AbstractCurvature

Along: TypeAlias = Callable[[Tensor, Batch, Tensor], Params]
"""Directions, a batch and its weights to one product for each direction."""


@dataclass(frozen=True)
class FieldJacobian(AbstractCurvature):
    r"""$J = \partial g/\partial\theta$: how the training field changes with the parameters.

    Defined for all four kinds of loss. It equals the Hessian when the field is a gradient; for stop-gradient losses it
    is not symmetric, and influence solves with its transpose.

    Example:
        >>> FieldJacobian()
        FieldJacobian()
    """

    def _product(self, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """J v for each row, in the way that the risk found to be right."""
        products = risk.second.symmetric_products if risk.symmetric else risk.second.products
        return accumulate(_by(products, risk), risk, vectors)

    def _transposed_product(self, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Jᵀ v for each row."""
        if risk.symmetric:
            return self._product(risk, vectors)
        return accumulate(_by(risk.second.transposed_products, risk), risk, vectors)


def _by(products: Callable[..., Params], risk: Risk) -> Along:
    def along(directions: Tensor, batch: Batch, weights: Tensor) -> Params:
        return products(
            lambda live, still: risk.total(live, still, batch, weights), risk.theta, risk.layout, directions
        )

    return along


def accumulate(along: Along, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
    """Sums a product over the batches, divides by n and adds the l2 term; batches whose weights are all zero are free.

    Args:
        along: `(directions, batch, weights)` to named tensors, one product in each row.
        risk: Gives the batches.
        vectors: One direction in each row.

    Returns:
        One product in each row.

    Raises:
        NonFiniteError: If a second derivative is not finite, with its batch.
    """
    total = risk.decay * vectors
    for index, batch, weights in risk.passes():
        if not weights.any():
            continue
        part = along(vectors, batch, weights)
        if not all(map(all_finite, part.values())):
            raise NonFiniteError(risk.blame(index, batch, "A second derivative of the loss"))
        risk.layout.add(total, part, 1 / risk.n)
        del part  # not beside the next one
    return total


@dataclass(frozen=True)
class Hessian(AbstractCurvature):
    r"""$H = \partial^2 F/\partial\theta^2$, for losses whose training field is a gradient.

    Example:
        >>> Hessian()
        Hessian()

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6(1), 1994.
    """

    def _product(self, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """H v for each row."""
        if not risk.symmetric:
            raise UnsupportedError(
                "A FieldLoss trains along a field that is not a gradient, so it has no Hessian. "
                "Use curvature=FieldJacobian() with solver GMRES or Exact (Auto does)."
            )
        return FieldJacobian().product(risk, vectors)
