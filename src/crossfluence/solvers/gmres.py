"""Generalised minimal residuals: for Jacobians that are not symmetric, and for indefinite Hessians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from .._abstract_risk import AbstractRisk
from ..curvature.base import AbstractCurvature, Relative, damping_products, plain_damping
from .base import AbstractInverse, AbstractSolver, Solution, natural_curvature, warn_unconverged
from .krylov import NUMBERS_AT_ONCE, orthogonalised
from .work import Work

BLOCK = 16  # vectors of a basis that memory is reserved for at one time


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
    basis: list[Tensor] = []  # blocks of (m, 16, p)
    following = residual / beta.unsqueeze(1)
    hessenberg, target = torch.zeros(m, 1, 0, dtype=torch.float64), beta.double().cpu().reshape(m, 1, 1)
    update, taken = torch.zeros_like(residual), torch.zeros(m, dtype=torch.long)
    going, wanted, eps = torch.arange(m), tolerance.double().cpu(), torch.finfo(residual.dtype).eps
    for step in range(limit):
        if step % BLOCK == 0:
            basis.append(residual.new_empty(m, min(BLOCK, limit - step), residual.shape[1]))
        basis[-1][:, step % BLOCK] = following
        image = torch.zeros_like(residual)  # stays zero for what is done
        image[going] = matrix(following[going])
        known = [*basis[:-1], basis[-1][:, : step % BLOCK + 1]]
        rest, inside = orthogonalised(image, *known)
        height = rest.norm(dim=1)
        hessenberg, target = functional.pad(hessenberg, (0, 1, 0, 1)), functional.pad(target, (0, 0, 0, 1))
        hessenberg[:, :-1, -1], hessenberg[:, -1, -1] = inside.double().cpu(), height.double().cpu()
        bar.update()
        h, t = hessenberg[going], target[going]
        small = torch.linalg.lstsq(h, t).solution  # (going, step + 1, 1)
        ends = (height <= eps * image.norm(dim=1)).cpu()[going]
        done = ends | ((h @ small - t).norm(dim=(1, 2)) <= wanted[going]) | (step + 1 == limit)
        rows = going[done]
        parts = small[done].mT.to(residual).split(BLOCK, dim=2)
        update[rows] = torch.cat([part @ block[rows] for part, block in zip(parts, known, strict=True)], 1).sum(1)
        taken[rows] = step + 1
        going = going[~done]
        if not len(going):
            break
        following = rest / height.clamp_min(torch.finfo(height.dtype).tiny).unsqueeze(1)
    return update, taken
