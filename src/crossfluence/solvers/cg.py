"""Conjugate gradients, for one and for many right-hand sides at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._abstract_risk import AbstractRisk
from .._errors import NegativeCurvatureError, UnsupportedError
from ..curvature.base import AbstractCurvature, Relative, damping_products, plain_damping
from ..curvature.hessian import Hessian
from .base import AbstractInverse, AbstractSolver, Solution, warn_unconverged
from .work import Work


@dataclass(frozen=True)
class CG(AbstractSolver):
    """Conjugate gradients: a few products with the curvature for each question, no matrix.

    Attributes:
        damping: Added to the eigenvalues; a number, or `Relative`.
        rtol: Stops when the residual is this share of the right-hand side.
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

    def work(self, risk: AbstractRisk) -> Work:
        """That of the preconditioner, and a product for each step."""
        first = self.preconditioner.work(risk) if self.preconditioner else Work()
        together = first.together + damping_products(self.damping, risk)
        return replace(first, together=together, steps=self.max_steps, vectors=6, saved=False)

    def _invert(self, risk: AbstractRisk) -> CGInverse:
        """Settles the damping and the preconditioner; the products come with each question.

        Args:
            risk: The trained model.

        Returns:
            An inverse bound to the risk.

        Raises:
            UnsupportedError: If the loss trains along a field that is not a gradient.
        """
        if not risk.symmetric:
            raise UnsupportedError(
                "CG needs a symmetric curvature; a FieldLoss has a Jacobian that is not. "
                "Use GMRES(damping), or Exact(damping) for a small model; Auto() does."
            )
        damping = plain_damping(self.damping, self.curvature, risk)
        preconditioner = self.preconditioner.invert(risk) if self.preconditioner else None
        return CGInverse(repr(self), risk.signature, self, risk, damping, preconditioner)


@dataclass(frozen=True, eq=False)
class CGInverse(AbstractInverse):
    """Conjugate gradients at one trained model."""

    solver: str
    signature: str
    settings: CG
    risk: AbstractRisk
    damping: float
    preconditioner: AbstractInverse | None
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ()

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Runs until every right-hand side has converged; one that has leaves the others. In place where it can be."""
        wanted, curvature = vectors.norm(dim=1), self.settings.curvature
        x, residual = torch.zeros_like(vectors), vectors.clone()
        direction = self._precondition(residual).clone()
        rho, rows = _dots(residual, direction), torch.arange(len(vectors), device=vectors.device)
        steps, bent = torch.zeros_like(rows), torch.zeros_like(wanted, dtype=torch.bool)
        with tqdm(total=self.settings.max_steps, desc="CG", unit="step", disable=None, leave=False) as bar:
            for step in range(self.settings.max_steps):
                far = residual.norm(dim=1) > self.settings.rtol * wanted[rows]
                rows, residual, direction, rho = _kept(far, rows, residual, direction, rho)
                if not len(rows):
                    break
                product = curvature.product(self.risk, direction).add_(direction, alpha=self.damping)
                bend = _dots(direction, product)
                positive = self._positive(step, bend / _dots(direction, direction))
                bent[rows] = ~positive
                rows, residual, direction, rho, product, bend = _kept(
                    positive, rows, residual, direction, rho, product, bend
                )
                if not len(rows):
                    break
                length = (rho / bend).unsqueeze(1)
                _add(x, rows, length, direction)
                residual.addcmul_(length, product, value=-1)
                del product
                z = self._precondition(residual)
                before, rho = rho, _dots(residual, z)
                direction.mul_((rho / before).unsqueeze(1)).add_(z)
                steps[rows] += 1
                bar.update()
        del residual, direction
        left = curvature.product(self.risk, x).add_(x, alpha=self.damping).sub_(vectors)  # the recursion drifts
        shares = left.norm(dim=1) / wanted.clamp_min(torch.finfo(wanted.dtype).tiny)
        warn_unconverged("CG", shares.masked_fill(bent, 0), self.settings.rtol, int(steps.max()))
        note = f"{int(bent.sum())} of {len(vectors)} solves ended where they met negative curvature."
        return Solution(x, tuple(steps.tolist()), tuple(shares.tolist()), (note,) if bent.any() else ())

    def _precondition(self, residual: Tensor) -> Tensor:
        return residual if self.preconditioner is None else self.preconditioner.solve(residual).vectors

    def _positive(self, step: int, quotients: Shaped[Tensor, " m"]) -> Shaped[Tensor, " m"]:
        """Which directions have positive curvature; refuses the others unless the solve may end there."""
        quotient = float(quotients.min())
        if quotient <= 0 and not self.settings.truncate:
            raise NegativeCurvatureError(
                f"CG met negative curvature at step {step}: v'(H + {self.damping:g} I)v / v'v = {quotient:.3g}. "
                f"Raise damping above {self.damping - quotient:.3g}, use curvature=GaussNewton(), or solver GMRES, "
                f"which does not need positive curvature."
            )
        return quotients > 0


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
