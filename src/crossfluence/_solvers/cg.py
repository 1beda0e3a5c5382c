"""Conjugate gradients, for one and for many right-hand sides at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._curvature.base import AbstractCurvature, Relative, refuse_damping
from .._curvature.hessian import Hessian
from .._curvature.operator import Operator, operator
from .._risk.base import AbstractRisk
from ..errors import NegativeCurvatureError
from .base import AbstractInverse, AbstractSolver, Solution, require_symmetric, within
from .cost import Cost, iterated
from .energy import Energy
from .limits import check_limits, error_allowed, warn_unconverged
from .settled import Settled


@dataclass(frozen=True)
class CG(AbstractSolver):
    """Conjugate gradients: a few products with the curvature for each question, no matrix.

    Attributes:
        damping: Added to the eigenvalues; a number, or `Relative`.
        rtol: Stops when the residual is this share of the right-hand side, in units of the parameters in which the
            diagonal of the curvature is about one (or in the norm of the preconditioner), and the estimated error of
            the solution, in the norm of the curvature, is at most a hundred times this share, or a tenth. So is then
            the last move of the scores, as a share of them.
        max_steps: Stops here at the latest, with a warning and the residual in the report.
        curvature: A symmetric curvature that is positive once damped.
        preconditioner: A solver whose symmetric positive inverse is close to the wanted one.
        truncate: Whether a solve that meets negative curvature ends there, with what it has found where the curvature
            is positive and a note in the report (a truncated Newton step), and not with an error.

    Example:
        >>> CG(damping=1e-3).rtol
        1e-05

    References:
        Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems", 1952; Steihaug, "The
        conjugate gradient method and trust regions in large scale optimization", 1983.
    """

    damping: float | Relative = 0.0
    rtol: float = 1e-5
    max_steps: int = 200
    curvature: AbstractCurvature = field(default_factory=Hessian)
    preconditioner: AbstractSolver | None = None
    truncate: bool = False

    def __post_init__(self) -> None:
        refuse_damping(self.damping)
        check_limits(self.rtol, self.max_steps)

    def cost(self, risk: AbstractRisk) -> Cost:
        """That of the preconditioner, the units of the parameters, and a product for each step."""
        first = self.preconditioner.cost(risk) if self.preconditioner else Cost()
        return iterated(first, self.damping, risk, steps=self.max_steps, vectors=7)

    def _invert(self, risk: AbstractRisk) -> CGInverse:
        """Settles the damping and the preconditioner; the products come with each question.

        Args:
            risk: The trained model.

        Returns:
            An inverse bound to the risk.

        Raises:
            UnsupportedError: If the loss trains along a field that is not a gradient.
        """
        require_symmetric(risk, self, "GMRES(damping), or Exact(damping) for a small model; Auto() does")
        matrix = operator(self.curvature, self.damping, risk)
        preconditioner = self.preconditioner.invert(risk) if self.preconditioner else None
        return CGInverse(repr(self), risk.signature, self, risk, matrix, matrix.damping, preconditioner)


@dataclass(frozen=True, eq=False)
class CGInverse(AbstractInverse):
    """Conjugate gradients at one trained model."""

    solver: str
    signature: str
    settings: CG
    risk: AbstractRisk
    matrix: Operator
    damping: float
    preconditioner: AbstractInverse | None
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ()
    in_double: ClassVar[bool] = True

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Runs until every right-hand side has converged; one that has leaves the others. In place where it can be."""
        rtol, allowed = self.settings.rtol, error_allowed(self.settings.rtol)
        wanted = self.matrix.inside(vectors)
        x, residual = torch.zeros_like(wanted), wanted.clone()
        direction = self._precondition(residual).clone()
        rho, rows = _dots(residual, direction), torch.arange(len(vectors), device=vectors.device)
        start, left = rho.clone(), rho.clone()
        energy, ended, share = Energy.start(rho), Energy.start(rho), torch.zeros_like(rho)
        steps, bent = torch.zeros_like(rows), torch.zeros_like(rho, dtype=torch.bool)
        settled = Settled.start(self.matrix, len(vectors))
        with tqdm(total=self.settings.max_steps, desc="CG", unit="step", disable=None, leave=False) as bar:
            for step in range(self.settings.max_steps):
                unsolved = (rho > rtol**2 * start[rows]) | (energy.error(rho) > allowed)
                far = (unsolved | (settled.share[rows] > allowed)) & (rho > 0)
                rows, residual, direction, rho, share = _kept(far, rows, residual, direction, rho, share)
                energy = energy if far.all() else energy.rows(far)
                if not len(rows):
                    break
                product, unsolved = self.matrix.product(direction), unsolved[far]
                bend = _dots(direction, product)
                positive = self._positive(step, direction, bend, unsolved)
                bent[rows] = unsolved & ~positive
                rows, residual, direction, rho, share, product, bend = _kept(
                    positive, rows, residual, direction, rho, share, product, bend
                )
                energy = energy if positive.all() else energy.rows(positive)
                if not len(rows):
                    break
                length = rho / bend
                _add(x, rows, length.unsqueeze(1), direction)
                settled.move(rows, length.unsqueeze(1) * (direction @ settled.rows))
                residual.addcmul_(length.unsqueeze(1), product, value=-1)
                del product
                z = self._precondition(residual)
                energy = energy.after(rho, length, share)
                before, rho = rho, _dots(residual, z)
                share = rho / before
                direction.mul_(share.unsqueeze(1)).add_(z)
                energy = energy.turned(rho, share)
                ended.put(rows, energy)
                left[rows] = rho
                steps[rows] += 1
                bar.update()
        del residual, direction
        settled.share[(left <= 0) | (steps < 2)] = 0.0  # the first move is all of the scores and tells nothing
        return self._solution(x, wanted, ended, (start, left), steps, bent, settled.share)

    def _solution(
        self, x: Shaped[Tensor, "m p"], wanted: Shaped[Tensor, "m p"], ended: Energy, squares: tuple[Tensor, Tensor],
        steps: Tensor, bent: Tensor, moved: Tensor,
    ) -> Solution:  # fmt: skip
        """The solutions outside, with what a fresh product says about them: the recursion drifts."""
        off = self.matrix.product(x).sub_(wanted)
        start, left = squares
        now = _dots(off, self._precondition(off)).clamp_min(0)
        shares = (now / start.clamp_min(torch.finfo(start.dtype).tiny)).sqrt()
        errors = torch.maximum(ended.error(left, (now - left).double().clamp_min(0)), moved)
        failed = (shares.masked_fill(bent, 0), errors.masked_fill(bent, 0))
        warn_unconverged("CG", *failed, self.settings.rtol, int(steps.max()))
        note = f"{int(bent.sum())} of {len(x)} solves ended where they met negative curvature."
        return Solution(
            self.matrix.inside(x), tuple(steps.tolist()), tuple(shares.tolist()), tuple(errors.tolist()),
            (note,) if bent.any() else (),
        )  # fmt: skip

    def _precondition(self, residual: Tensor) -> Tensor:
        if self.preconditioner is None:
            return residual
        outside = self.matrix.outside
        return outside(within(self.preconditioner, self.risk, outside(residual), transposed=True))

    def _positive(
        self, step: int, directions: Shaped[Tensor, "m p"], bend: Shaped[Tensor, " m"], unsolved: Tensor
    ) -> Shaped[Tensor, " m"]:
        """Directions with positive curvature; refuses the others unless the solve may end there, or had ended."""
        if not bool((unsolved & (bend <= 0)).any()) or self.settings.truncate:
            return bend > 0
        quotient = float((bend / self.matrix.inside(directions).square().sum(1))[unsolved].min())
        raise NegativeCurvatureError(
            f"CG met negative curvature at step {step}: v'(H + {self.damping:g} I)v / v'v = {quotient:.3g}. "
            f"Raise damping above {self.damping - quotient:.3g}, use curvature=GaussNewton(), or solver GMRES, "
            f"which does not need positive curvature."
        )


def _kept(chosen: Shaped[Tensor, " m"], *tensors: Tensor) -> tuple[Tensor, ...]:
    """The chosen rows of each; the tensors themselves, not copies, if that is all of them."""
    return tensors if chosen.all() else tuple(tensor[chosen] for tensor in tensors)


def _add(x: Shaped[Tensor, "m p"], rows: Shaped[Tensor, " k"], factors: Tensor, vectors: Shaped[Tensor, "k p"]) -> None:
    if len(rows) == len(x):
        x.addcmul_(factors, vectors)
    else:
        x[rows] += factors * vectors


def _dots(x: Shaped[Tensor, "m p"], y: Shaped[Tensor, "m p"]) -> Shaped[Tensor, " m"]:
    return (x * y).sum(1)
