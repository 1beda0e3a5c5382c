"""The generalised Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import bind
from .._autodiff.params import wide
from .._risk.risk import Risk
from .._types import Batch, Params
from .base import AbstractCurvature
from .criterion import Rounding, across, of_batch
from .hessian import accumulate
from .on_outputs import on_outputs


@dataclass(frozen=True)
class GaussNewton(AbstractCurvature):
    r"""$\frac{1}{n}\sum_i w_i J_{z_i}^\top H_{\ell_i} J_{z_i}$ + l2: never negative if the criterion is convex.

    The loss is split at the model's outputs: by `OnOutputs(outputs, criterion)`, or, where a plain loss calls its
    model once, by the library itself.

    Example:
        >>> GaussNewton()
        GaussNewton()

    References:
        Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
    """

    def _product(self, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """G v for each row: forward through the outputs, across the criterion, and back."""
        loss = on_outputs(risk, "GaussNewton", "use curvature=Hessian()")
        outputs, rounding = bind(loss.outputs, risk.model), Rounding()

        def along(directions: Tensor, batch: Batch, weights: Tensor) -> Params:
            criterion = of_batch(loss.criterion, batch)

            def values(theta: Params) -> Tensor:
                return outputs(theta, batch)

            def cotangents(z: Tensor) -> Tensor:
                moves = risk.first.derivatives(values, risk.theta, risk.layout, directions)
                rounding.add(criterion, wide(z), weights)
                return across(criterion, wide(z), moves, weights)

            return risk.first.pulled(values, risk.theta, cotangents)

        total = accumulate(along, risk, vectors)
        rounding.refuse()
        return total
