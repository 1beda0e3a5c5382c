"""The Jacobian of the training field, for every kind of loss."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor
from torch.func import grad

from .._errors import NonFiniteError
from .._functional import all_finite, each_direction, jvp
from .._risk import Risk
from .._types import Batch, Params
from .base import AbstractCurvature


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
        """J v for each row, forward over reverse."""

        def along(direction: Tensor, batch: Batch, weights: Tensor) -> Params:
            def training_field(theta: Params) -> Params:
                return grad(risk.total)(theta, theta, batch, weights)

            return jvp(training_field, risk.theta, risk.layout.unflatten(direction))

        return accumulate(along, risk, vectors)

    def _transposed_product(self, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Jᵀ v for each row, reverse over forward."""
        if risk.symmetric:
            return self._product(risk, vectors)

        def along(direction: Tensor, batch: Batch, weights: Tensor) -> Params:
            tangent = risk.layout.unflatten(direction)

            def field_along(theta: Params) -> Tensor:
                return jvp(lambda t: risk.total(t, theta, batch, weights), theta, tangent)

            return grad(field_along)(risk.theta)

        return accumulate(along, risk, vectors)


def accumulate(along, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
    """Sums a product over the batches, divides by n and adds the l2 term; batches whose weights are all zero are free.

    Args:
        along: `(direction, batch, weights)` to named tensors.
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
        part = each_direction(lambda v, b=batch, w=weights: along(v, b, w), vectors)
        if not all(map(all_finite, part.values())):
            raise NonFiniteError(risk.blame(index, batch, "A second derivative of the loss"))
        risk.layout.add(total, part, 1 / risk.n)
        del part  # not beside the next one
    return total
