"""The generalised Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor
from torch.func import grad

from .._errors import UnsupportedError
from .._functional import bind, each_direction, jvp
from .._losses import OnOutputs
from .._risk import Risk
from .._types import Batch, Params
from .base import AbstractCurvature
from .field import accumulate


@dataclass(frozen=True)
class GaussNewton(AbstractCurvature):
    r"""$\frac{1}{n}\sum_i w_i J_{z_i}^\top H_{\ell_i} J_{z_i}$ + l2: never negative if the criterion is convex.

    Needs a loss that is split at the model's outputs: `OnOutputs(outputs, criterion)`.

    Example:
        >>> GaussNewton()
        GaussNewton()

    References:
        Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
    """

    def _product(self, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """G v for each row: forward through the outputs, across the criterion, and back."""
        loss = risk.kind
        if not isinstance(loss, OnOutputs):
            raise UnsupportedError(
                f"GaussNewton needs to know where the outputs are; this risk has a {type(loss).__name__}. "
                f"Write the loss as OnOutputs(outputs, criterion), or use curvature=Hessian()."
            )
        outputs = bind(loss.outputs, risk.model)

        def bent(z: Tensor, move: Tensor, batch: Batch, weights: Tensor) -> Tensor:
            return jvp(grad(lambda at: (weights * loss.criterion(at, batch)).sum()), z, move)

        def along(directions: Tensor, batch: Batch, weights: Tensor) -> Params:
            def values(theta: Params) -> Tensor:
                return outputs(theta, batch)

            def cotangents(z: Tensor) -> Tensor:
                moves = risk.first.derivatives(values, risk.theta, risk.layout, directions)
                return each_direction(lambda move: bent(z, move, batch, weights), moves)

            return risk.first.pulled(values, risk.theta, cotangents)

        return accumulate(along, risk, vectors)
