"""Generalised minimal residuals: for Jacobians that are not symmetric, and for indefinite Hessians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._abstract_risk import AbstractRisk
from ..curvature.base import AbstractCurvature, Relative, plain_damping
from .base import AbstractInverse, AbstractSolver, Solution, natural_curvature, warn_unconverged


@dataclass(frozen=True)
class GMRES(AbstractSolver):
    """Generalised minimal residuals: needs neither symmetry nor positive curvature.

    Keeps one vector of p numbers for each step between restarts.

    Attributes:
        damping: Added to the eigenvalues; a number, or `Relative`.
        rtol: Stops when the residual is this share of the right-hand side.
        max_steps: Products with the curvature, at most, for each question.
        restart: Steps after which the basis is thrown away and begun anew.
        curvature: Default: the Hessian, or the field's Jacobian for a `FieldLoss`.
        preconditioner: A solver whose inverse is close to the wanted one.

    Example:
        >>> GMRES(damping=1e-3).max_steps
        500

    References:
        Saad and Schultz, "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems",
        SIAM J. Sci. Stat. Comput. 7(3), 1986.
    """

    damping: float | Relative = 0.0
    rtol: float = 1e-5
    max_steps: int = 500
    restart: int = 250
    curvature: AbstractCurvature | None = None
    preconditioner: AbstractSolver | None = None

    def _invert(self, risk: AbstractRisk) -> GMRESInverse:
        """Settles the damping and the preconditioner; the products come with each question.

        Args:
            risk: The trained model.

        Returns:
            An inverse bound to the risk.
        """
        curvature = natural_curvature(self.curvature, risk)
        damping = plain_damping(self.damping, curvature, risk)
        preconditioner = self.preconditioner.invert(risk) if self.preconditioner else None
        return GMRESInverse(repr(self), risk.signature, self, risk, curvature, damping, preconditioner)


@dataclass(frozen=True, eq=False)
class GMRESInverse(AbstractInverse):
    """GMRES at one trained model."""

    solver: str
    signature: str
    settings: GMRES
    risk: AbstractRisk
    curvature: AbstractCurvature
    damping: float
    preconditioner: AbstractInverse | None
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ()

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """One right-hand side after another."""
        product = self.curvature.transposed_product if transposed else self.curvature.product

        def matrix(v: Tensor) -> Tensor:
            return product(self.risk, v.unsqueeze(0))[0] + self.damping * v

        def precondition(v: Tensor) -> Tensor:
            if self.preconditioner is None:
                return v
            return self.preconditioner.solve(v.unsqueeze(0), transposed=transposed).vectors[0]

        solved = [_gmres(matrix, precondition, vector, self.settings) for vector in vectors]
        shares = torch.tensor([share for _, _, share in solved])
        warn_unconverged("GMRES", shares, self.settings.rtol, max(steps for _, steps, _ in solved))
        return Solution(
            torch.stack([x for x, _, _ in solved]), tuple(steps for _, steps, _ in solved), tuple(shares.tolist())
        )


def _gmres(
    matrix: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], wanted: Tensor, settings: GMRES
) -> tuple[Shaped[Tensor, " p"], int, float]:
    """Right-preconditioned GMRES with restarts: solution, steps taken, share of `wanted` that is left."""
    size = float(wanted.norm())
    x, steps, share = torch.zeros_like(wanted), 0, 1.0
    if size == 0:
        return x, 0, 0.0
    with tqdm(total=settings.max_steps, desc="GMRES", unit="step", disable=None, leave=False) as bar:
        while steps < settings.max_steps and share > settings.rtol:
            residual = wanted - matrix(x) if steps else wanted
            limit = min(settings.restart, settings.max_steps - steps)
            update, taken = _cycle(lambda v: matrix(precondition(v)), residual, settings.rtol * size, limit, bar)
            better, steps = x + precondition(update), steps + taken
            left = float((wanted - matrix(better)).norm()) / size
            if not left < 0.999 * share:  # no progress in a whole cycle: more cycles will not help
                break
            x, share = better, left
    return x, steps, share


def _cycle(
    matrix: Callable[[Tensor], Tensor], residual: Tensor, tolerance: float, limit: int, bar: tqdm
) -> tuple[Shaped[Tensor, " p"], int]:
    """Arnoldi from the residual, then the least-squares problem in the small basis."""
    beta = residual.norm()
    basis = residual.new_empty(limit + 1, len(residual))  # row by row; memory is touched as it is written
    basis[0] = residual / beta
    hessenberg = torch.zeros(limit + 1, limit, dtype=torch.float64)
    target = torch.zeros(limit + 1, dtype=torch.float64)
    target[0] = float(beta)
    small, eps = target[:0], torch.finfo(residual.dtype).eps
    for step in range(limit):
        image = matrix(basis[step])
        reach = float(image.norm())
        q = basis[: step + 1]
        for _ in range(2):  # Gram-Schmidt twice: once loses orthogonality
            overlap = q @ image
            image = image - overlap @ q
            hessenberg[: step + 1, step] += overlap.double().cpu()
        height = image.norm()
        hessenberg[step + 1, step] = float(height)
        bar.update()
        h, t = hessenberg[: step + 2, : step + 1], target[: step + 2]
        small = torch.linalg.lstsq(h, t.unsqueeze(1)).solution[:, 0]
        if float((h @ small - t).norm()) <= tolerance or float(height) <= eps * reach:
            break
        basis[step + 1] = image / height
    return small.to(residual) @ basis[: len(small)], len(small)
