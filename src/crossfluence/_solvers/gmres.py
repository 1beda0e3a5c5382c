"""Generalised minimal residuals: for Jacobians that are not symmetric, and for indefinite Hessians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from .._curvature.base import AbstractCurvature, Relative, refuse_damping
from .._curvature.operator import Operator, operator
from .._risk.base import AbstractRisk
from .base import AbstractInverse, AbstractSolver, Solution, within
from .cost import Cost, iterated
from .krylov import NUMBERS_AT_ONCE, orthogonalised
from .limits import check_limits, error_allowed, warn_unconverged
from .settled import Settled

BLOCK = 16  # vectors of a basis that memory is reserved for at one time


@dataclass(frozen=True)
class GMRES(AbstractSolver):
    """Generalised minimal residuals: needs neither symmetry nor positive curvature.

    Keeps one vector of p numbers for each step between restarts and each question solved at the same time.

    Attributes:
        damping: Added to the eigenvalues; a number, or `Relative`.
        rtol: Stops when the residual is this share of the right-hand side, in units of the parameters in which the
            diagonal of the curvature is about one, and the estimated error of the solution, in the norm of the
            curvature, is at most a hundred times this share, or a tenth. So is then the last move of the scores, as a
            share of them.
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

    def __post_init__(self) -> None:
        refuse_damping(self.damping)
        check_limits(self.rtol, self.max_steps)

    def cost(self, risk: AbstractRisk) -> Cost:
        """That of the preconditioner, the parameters' units, and for each step a product, and a vector to keep."""
        first = self.preconditioner.cost(risk) if self.preconditioner else Cost()
        return iterated(first, self.damping, risk, steps=self.max_steps, vectors=6, vectors_per_step=1)

    def _invert(self, risk: AbstractRisk) -> GMRESInverse:
        """Settles the damping and the preconditioner; the products come with each question.

        Args:
            risk: The trained model.

        Returns:
            An inverse bound to the risk.
        """
        matrix = operator(self.curvature, self.damping, risk)
        preconditioner = self.preconditioner.invert(risk) if self.preconditioner else None
        return GMRESInverse(repr(self), risk.signature, self, risk, matrix, matrix.damping, preconditioner)


@dataclass(frozen=True, eq=False)
class GMRESInverse(AbstractInverse):
    """GMRES at one trained model."""

    solver: str
    signature: str
    settings: GMRES
    risk: AbstractRisk
    matrix: Operator
    damping: float
    preconditioner: AbstractInverse | None
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ()
    in_double: ClassVar[bool] = True

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """As many right-hand sides together as have room for their bases; they share passes over the data."""
        outside = self.matrix.outside

        def matrix(v: Tensor) -> Tensor:
            return self.matrix.product(v, transposed=transposed)

        def unsettled(count: int) -> Settled:
            return Settled.start(self.matrix, count)

        def precondition(v: Tensor) -> Tensor:
            if self.preconditioner is None:
                return v
            return outside(within(self.preconditioner, self.risk, outside(v), transposed=transposed))

        kept = min(self.settings.restart, self.settings.max_steps) + 1
        parts = self.matrix.inside(vectors).split(max(1, NUMBERS_AT_ONCE // (kept * vectors.shape[1])))
        solved = [_gmres(matrix, precondition, part, self.settings, unsettled(len(part))) for part in parts]
        x, steps, shares, errors = (torch.cat(found) for found in zip(*solved, strict=True))
        warn_unconverged("GMRES", shares, errors, self.settings.rtol, int(steps.max()))
        return Solution(self.matrix.inside(x), tuple(steps.tolist()), tuple(shares.tolist()), tuple(errors.tolist()))


def _gmres(
    matrix: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    wanted: Tensor,
    settings: GMRES,
    settled: Settled,
) -> tuple[Shaped[Tensor, "m p"], Shaped[Tensor, " m"], Shaped[Tensor, " m"], Float[Tensor, " m"]]:
    """Right-preconditioned GMRES with restarts: solutions, steps, shares of `wanted` that are left, errors."""
    size = wanted.norm(dim=1)
    x, steps = torch.zeros_like(wanted), torch.zeros(len(wanted), dtype=torch.long)
    share = (size > 0).to(wanted)
    least, gained = torch.full_like(size, torch.inf, dtype=torch.float64), torch.zeros_like(size, dtype=torch.float64)
    going, allowed = share > 0, error_allowed(settings.rtol)
    settled.share[~going] = 0.0
    with tqdm(total=settings.max_steps, desc="GMRES", unit="step", disable=None, leave=False) as bar:
        while going.any():
            residual = wanted[going] - matrix(x[going]) if steps.any() else wanted[going]
            limit = min(settings.restart, settings.max_steps - int(steps[going.cpu()].max()))
            known = _Known(
                settings.rtol * size[going], least[going], gained[going], allowed, settled, going.nonzero()[:, 0]
            )

            def image(v: Tensor) -> tuple[Tensor, Tensor]:
                z = precondition(v)
                return matrix(z), z @ settled.rows

            update, taken, smallest, more, weak = _cycle(image, residual, known, limit, bar)
            better = x[going] + precondition(update)
            left = (wanted[going] - matrix(better)).norm(dim=1) / size[going]
            steps[going.cpu()] += taken
            least[going], gained[going] = torch.minimum(least[going], smallest), torch.maximum(gained[going], more)
            nearer = left < 0.999 * share[going]  # without progress in a whole cycle more cycles will not help
            progress = going.masked_scatter(going, nearer)
            x[progress], share[progress] = better[nearer], left[nearer]
            settled.leave(known.places, ((share * size)[going] * weak).unsqueeze(1))  # with what rounding left, too
            settled.share[share == 0] = 0.0
            error = torch.maximum(_error(share * size, least, gained), settled.share)
            far = (share > settings.rtol) | (error > allowed)
            going = progress & far & (steps < settings.max_steps).to(going.device)
    return x, steps, share, torch.maximum(_error(share * size, least, gained), settled.share)


@dataclass(frozen=True, eq=False)
class _Known:
    """Estimates from the cycles before this one.

    Attributes:
        tolerance: Residuals to come down to, `(m,)`.
        least: Smallest singular value so far, `(m,)`.
        gained: Squared size of the solution in the norm of the matrix, `(m,)`.
        allowed: Share of that size by which the solution may be off, and of the scores by which a step may move them.
        settled: How far the scores of all solutions have settled.
        places: Of these solutions among all, `(m,)`.
    """

    tolerance: Tensor
    least: Tensor
    gained: Tensor
    allowed: float
    settled: Settled
    places: Tensor


def _error(residual: Tensor, least: Tensor, gained: Tensor) -> Float[Tensor, " m"]:
    """Estimated error of the solution, as a share of it, both in the norm of the matrix; zero where nothing is left."""
    return torch.where(residual > 0, residual.double() / (least * gained).sqrt(), 0.0)


def _sizes(small: Float[Tensor, "m k k"], y: Float[Tensor, "m k 1"]) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest singular value of each matrix, the squared size of a vector in its norm, and its right vector."""
    _, values, right = torch.linalg.svd(small)
    return values[:, -1], (values * (right @ y).squeeze(2).square()).sum(1), right[:, -1:].mT


def _cycle(
    matrix: Callable[[Tensor], tuple[Tensor, Tensor]], residual: Tensor, known: _Known, limit: int, bar: tqdm
) -> tuple[Shaped[Tensor, "m p"], Shaped[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Arnoldi, then least squares in small bases: updates, steps, what is `_Known`, scores' errors per residual."""
    m, beta = len(residual), residual.norm(dim=1)
    basis: list[Tensor] = []  # blocks of (m, 16, p)
    following = residual / beta.unsqueeze(1)
    hessenberg, target = torch.zeros(m, 1, 0, dtype=torch.float64), beta.double().cpu().reshape(m, 1, 1)
    update, taken = torch.zeros_like(residual), torch.zeros(m, dtype=torch.long)
    going, wanted, eps = torch.arange(m), known.tolerance.double().cpu(), torch.finfo(residual.dtype).eps
    least, gained = known.least.cpu().clone(), known.gained.cpu().clone()
    sums, settled = known.settled.sums[known.places], known.settled
    seen = sums.new_zeros(*sums.shape, 0)  # (m, s, step): sums of scores of the basis
    weak = sums.new_zeros(m)  # what a residual may do to the sums, along the weakest direction found
    for step in range(limit):
        if step % BLOCK == 0:
            basis.append(residual.new_empty(m, min(BLOCK, limit - step), residual.shape[1]))
        basis[-1][:, step % BLOCK] = following
        image = torch.zeros_like(residual)  # stays zero for what is done
        image[going], part = matrix(following[going])
        seen = functional.pad(seen, (0, 1))
        seen[going, :, -1] = part.double()
        spanned = [*basis[:-1], basis[-1][:, : step % BLOCK + 1]]
        rest, inside = orthogonalised(image, *spanned)
        height = rest.norm(dim=1)
        hessenberg, target = functional.pad(hessenberg, (0, 1, 0, 1)), functional.pad(target, (0, 0, 0, 1))
        hessenberg[:, :-1, -1], hessenberg[:, -1, -1] = inside.double().cpu(), height.double().cpu()
        bar.update()
        h, t = hessenberg[going], target[going]
        small = torch.linalg.lstsq(h, t).solution  # (going, step + 1, 1)
        left = (h @ small - t).norm(dim=(1, 2))
        places = known.places[going]
        settled.move(places, sums[going] + (seen[going] @ small.to(seen)).squeeze(2) - settled.sums[places])
        ends = (height <= eps * image.norm(dim=1)).cpu()[going] | torch.tensor(step + 1 == limit)
        near = ends | (left <= wanted[going])
        if near.any():
            rows = going[near]
            value, size, weakest = _sizes(h[near][:, :-1], small[near])
            least[rows], gained[rows] = torch.minimum(known.least.cpu()[rows], value), known.gained.cpu()[rows] + size
            close = _error(left[near], least[rows], gained[rows]) <= known.allowed
            weak[rows] = (seen[rows] @ weakest.to(seen)).norm(dim=(1, 2)) / value.to(seen)
            settled.leave(places[near], (left[near].to(weak) * weak[rows]).unsqueeze(1))
            near[near.clone()] = ends[near] | (close & (settled.share[places[near]].cpu() <= known.allowed))
        rows = going[near]
        parts = small[near].mT.to(residual).split(BLOCK, dim=2)
        update[rows] = torch.cat([part @ block[rows] for part, block in zip(parts, spanned, strict=True)], 1).sum(1)
        taken[rows] = step + 1
        going = going[~near]
        if not len(going):
            break
        following = rest / height.clamp_min(torch.finfo(height.dtype).tiny).unsqueeze(1)
    return update, taken, least.to(residual.device), gained.to(residual.device), weak
