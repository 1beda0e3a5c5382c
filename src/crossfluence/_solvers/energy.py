"""The error of conjugate gradients in the norm of the matrix, estimated from their own coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Energy:
    r"""Estimates of the error $\lVert e\rVert_B$ and of the solution's size $\lVert u\rVert_B$ from the steps so far.

    The coefficients of conjugate gradients are the Cholesky factor R of a tridiagonal matrix whose eigenvalues
    approximate those of B; the norm of R's inverse, which grows by one column with each step, gives the smallest.

    Attributes:
        gained: Sum of step length times squared residual, which tends to $u^\top B u$; shape `(m,)`.
        inverse: Squared norm of R's inverse, which tends to one by the smallest eigenvalue.
        overlap: Of R's newest column with the vector that this norm is reached along.
        length: The last step length.
        spread: Squared norm of the search direction.

    References:
        Meurant and Tichy, "Approximating the extreme Ritz values and upper bounds for the A-norm of the error in CG",
        Numerical Algorithms 82, 2019; Duff and Voemel, "Incremental norm estimation for dense and sparse matrices",
        BIT 42(2), 2002.
    """

    gained: Float[Tensor, " m"]
    inverse: Float[Tensor, " m"]
    overlap: Float[Tensor, " m"]
    length: Float[Tensor, " m"]
    spread: Float[Tensor, " m"]

    @classmethod
    def start(cls, rho: Shaped[Tensor, " m"]) -> Energy:
        """Nothing is known yet.

        Args:
            rho: Squared residuals, in the norm of the preconditioner.

        Returns:
            The state before the first step.
        """
        none = torch.zeros_like(rho, dtype=torch.float64)  # each its own, as `put` writes into them
        return cls(none.clone(), none.clone(), none, torch.ones_like(none), rho.to(torch.float64, copy=True))

    def after(self, rho: Tensor, length: Tensor, share: Tensor) -> Energy:
        """The state after a step along the current direction.

        Args:
            rho: Squared residuals before the step.
            length: Step lengths.
            share: Of the previous direction in the current one; zero at first.

        Returns:
            The next state; `spread` is that of the direction taken.
        """
        rho, length, share = rho.double(), length.double(), share.double()
        above = -(share * length / self.length).sqrt() * self.overlap
        corner, cross, last = self.inverse + above.square(), above * length.sqrt(), length
        inverse = (corner + last) / 2 + (((corner - last) / 2).square() + cross.square()).sqrt()
        first = corner >= last  # of the two ways to write the eigenvector, the one that does not cancel
        x, y = torch.where(first, inverse - last, cross), torch.where(first, cross, inverse - corner)
        size = torch.hypot(x, y).clamp_min(torch.finfo(torch.float64).tiny)
        overlap = (x * above + y * length.sqrt()) / size
        return Energy(self.gained + length * rho, inverse, overlap, length, self.spread)

    def turned(self, rho: Tensor, share: Tensor) -> Energy:
        """The state with the next search direction, the residual plus a share of the last one."""
        return Energy(
            self.gained, self.inverse, self.overlap, self.length, rho.double() + share.double().square() * self.spread
        )

    def error(self, rho: Tensor, excess: Tensor | float = 0.0) -> Float[Tensor, " m"]:
        """Estimated error of the solution, as a share of it, both in the norm of the matrix.

        Args:
            rho: Squared residuals now.
            excess: Squared residuals that rounding left beside them.

        Returns:
            One share for each right-hand side; zero where there was nothing to solve.
        """
        left = (rho.double().square() / self.spread).nan_to_num(0.0) + excess
        return (left * self.inverse / self.gained).nan_to_num(0.0, 1.0, 1.0).clamp_min(0).sqrt()

    def rows(self, chosen: Tensor) -> Energy:
        """The state of some right-hand sides."""
        parts = (self.gained, self.inverse, self.overlap, self.length, self.spread)
        return Energy(*(part[chosen] for part in parts))

    def put(self, rows: Tensor, other: Energy) -> None:
        """Writes the state of some right-hand sides into this one."""
        for name in ("gained", "inverse", "overlap", "length", "spread"):
            getattr(self, name)[rows] = getattr(other, name)
