"""The Hessian of the risk."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from .._errors import UnsupportedError
from .._risk import Risk
from .base import AbstractCurvature
from .field import FieldJacobian


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
