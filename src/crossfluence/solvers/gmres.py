"""Generalised minimal residuals: for Jacobians that are not symmetric, and for indefinite Hessians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._abstract_risk import AbstractRisk
from ..curvature.base import AbstractCurvature, Relative, damping_products, plain_damping
from .base import AbstractInverse, AbstractSolver, Solution, Work, natural_curvature, warn_unconverged
from .krylov import NUMBERS_AT_ONCE, orthogonalised


@dataclass(frozen=True)
class GMRES(AbstractSolver):
    """Generalised minimal residuals: needs neither symmetry nor positive curvature.

    Keeps one vector of p numbers for each step between restarts and each question solved at the same time.

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

    def work(self, risk: AbstractRisk) -> Work:
        """That of the preconditioner, and for each step a product, and a vector to keep."""
        first = self.preconditioner.work(risk) if self.preconditioner else Work()
        together = first.together + damping_products(self.damping, risk)
        return replace(first, together=together, steps=self.max_steps, vectors=5, kept=1, saved=False)

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
        """As many right-hand sides together as have room for their bases; they share passes over the data."""
        product = self.curvature.transposed_product if transposed else self.curvature.product

        def matrix(v: Tensor) -> Tensor:
            return product(self.risk, v) + self.damping * v

        def precondition(v: Tensor) -> Tensor:
            if self.preconditioner is None:
                return v
            return self.preconditioner.solve(v, transposed=transposed).vectors

        kept = min(self.settings.restart, self.settings.max_steps) + 1
        parts = vectors.split(max(1, NUMBERS_AT_ONCE // (kept * vectors.shape[1])))
        solved = [_gmres(matrix, precondition, part, self.settings) for part in parts]
        x, steps, shares = (torch.cat(found) for found in zip(*solved, strict=True))
        warn_unconverged("GMRES", shares, self.settings.rtol, int(steps.max()))
        return Solution(x, tuple(steps.tolist()), tuple(shares.tolist()))


def _gmres(
    matrix: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], wanted: Tensor, settings: GMRES
) -> tuple[Shaped[Tensor, "m p"], Shaped[Tensor, " m"], Shaped[Tensor, " m"]]:
    """Right-preconditioned GMRES with restarts: solutions, steps taken, shares of `wanted` that are left."""
    size = wanted.norm(dim=1)
    x, steps = torch.zeros_like(wanted), torch.zeros(len(wanted), dtype=torch.long)
    share = (size > 0).to(wanted)
    going = share > settings.rtol
    with tqdm(total=settings.max_steps, desc="GMRES", unit="step", disable=None, leave=False) as bar:
        while going.any():
            residual = wanted[going] - matrix(x[going]) if steps.any() else wanted[going]
            limit = min(settings.restart, settings.max_steps - int(steps[going.cpu()].max()))
            tolerance = settings.rtol * size[going]
            update, taken = _cycle(lambda v: matrix(precondition(v)), residual, tolerance, limit, bar)
            better = x[going] + precondition(update)
            left = (wanted[going] - matrix(better)).norm(dim=1) / size[going]
            steps[going.cpu()] += taken
            nearer = left < 0.999 * share[going]  # without progress in a whole cycle more cycles will not help
            gained = going.masked_scatter(going, nearer)
            x[gained], share[gained] = better[nearer], left[nearer]
            going = gained & (share > settings.rtol) & (steps < settings.max_steps).to(going.device)
    return x, steps, share


def _cycle(
    matrix: Callable[[Tensor], Tensor], residual: Tensor, tolerance: Tensor, limit: int, bar: tqdm
) -> tuple[Shaped[Tensor, "m p"], Shaped[Tensor, " m"]]:
    """Arnoldi from each residual, then the least-squares problems in the small bases."""
    m, beta = len(residual), residual.norm(dim=1)
    basis = residual.new_empty(m, limit + 1, residual.shape[1])  # memory is touched as it is written
    basis[:, 0] = residual / beta.unsqueeze(1)
    hessenberg = torch.zeros(m, limit + 1, limit, dtype=torch.float64)
    target = torch.zeros(m, limit + 1, 1, dtype=torch.float64)
    target[:, 0, 0] = beta.double().cpu()
    update, taken = torch.zeros_like(residual), torch.zeros(m, dtype=torch.long)
    going, wanted, eps = torch.arange(m), tolerance.double().cpu(), torch.finfo(residual.dtype).eps
    for step in range(limit):
        image = torch.zeros_like(residual)  # stays zero for what is done
        image[going] = matrix(basis[going, step])
        rest, inside = orthogonalised(image, basis[:, : step + 1])
        height = rest.norm(dim=1)
        hessenberg[:, : step + 1, step], hessenberg[:, step + 1, step] = inside.double().cpu(), height.double().cpu()
        bar.update()
        h, t = hessenberg[going, : step + 2, : step + 1], target[going, : step + 2]
        small = torch.linalg.lstsq(h, t).solution  # (going, step + 1, 1)
        ends = (height <= eps * image.norm(dim=1)).cpu()[going]
        done = ends | ((h @ small - t).norm(dim=(1, 2)) <= wanted[going]) | (step + 1 == limit)
        rows = going[done]
        update[rows] = (small[done].mT.to(residual) @ basis[rows, : step + 1]).squeeze(1)
        taken[rows] = step + 1
        going = going[~done]
        if not len(going):
            break
        basis[:, step + 1] = rest / height.clamp_min(torch.finfo(height.dtype).tiny).unsqueeze(1)
    return update, taken
