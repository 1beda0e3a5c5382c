"""The generalised Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from .._risk.base import AbstractRisk
from .base import AbstractCurvature


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

    def product(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """G v for each row."""
        return risk.gauss_newton_product(vectors)
