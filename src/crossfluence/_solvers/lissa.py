"""The Neumann series for the inverse, on all samples or on batches drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._curvature.base import AbstractCurvature, Relative, refuse_damping
from .._curvature.operator import Operator, operator, operator_products, operator_readings
from .._risk.base import AbstractRisk
from .._risk.risk import Risk
from ..errors import NegativeCurvatureError, UnsupportedError
from .base import AbstractInverse, AbstractSolver, Solution, require_symmetric
from .cost import Cost
from .krylov import LANCZOS_STEPS, extreme_eigenvalues
from .limits import check_limits, error_allowed, warn_unconverged
from .settled import score_sums

MARGIN = 1.1  # Lanczos comes to the largest eigenvalue from below


@dataclass(frozen=True)
class LiSSA(AbstractSolver):
    r"""Adds up the series $u \leftarrow u + (a - (J + \text{damping})\,u)/s$ until its residual is small.

    The scale s is found, not asked for: the largest eigenvalue, by Lanczos, in units of the parameters in which the
    diagonal of the damped curvature is about one; residuals are judged there, too. With `batches`, every step sees some
    batches of the data only; after each pass over the data the true residual is computed and the series goes on from
    there, so that the noise shrinks with the residual. A pass that makes the residual larger is taken back, and s is
    doubled. It needs about as many steps as the largest eigenvalue is times the smallest: `CG` needs the root of that.

    Attributes:
        damping: Added to the eigenvalues; a number, or `Relative`.
        rtol: Stops when the residual is this share of the right-hand side.
        max_steps: Stops here at the latest, with a warning and the residual in the report.
        batches: How many of the data's batches each step sees; default: all.
        seed: Of the drawing.
        curvature: Default: the Hessian.

    Example:
        >>> LiSSA(damping=1e-2, batches=4).rtol
        0.001

    References:
        Agarwal, Bullins and Hazan, "Second-order stochastic optimization for machine learning in linear time", JMLR
        18, 2017; Johnson and Zhang, "Accelerating stochastic gradient descent using predictive variance reduction",
        NeurIPS 2013, for the residual of all samples after each pass.
    """

    damping: float | Relative = 0.0
    rtol: float = 1e-3
    max_steps: int = 1000
    batches: int | None = None
    seed: int = 0
    curvature: AbstractCurvature | None = None

    def __post_init__(self) -> None:
        if self.batches is not None and self.batches < 1:
            raise ValueError(f"Got batches={self.batches}; needed at least 1, or None for all of them.")
        refuse_damping(self.damping)
        check_limits(self.rtol, self.max_steps)

    def cost(self, risk: AbstractRisk) -> Cost:
        """The looks for units and scale, and a product for each step; with drawn batches, two passes for each round."""
        share = 1.0
        if isinstance(risk, Risk) and self.batches is not None:
            share = 2 / (1 - (-len(risk.reading.sizes) // self.batches))
        together, alone = operator_products(self.damping, risk), min(LANCZOS_STEPS, risk.p)
        readings = operator_readings(risk)
        return Cost(
            sequential_products=alone + readings,
            batched_products=together,
            data_passes=readings,
            steps=self.max_steps,
            data_fraction=share,
            vectors=6,
        )

    def _invert(self, risk: AbstractRisk) -> LiSSAInverse:
        """Finds the scale, and whether the series converges.

        Args:
            risk: The trained model.

        Returns:
            An inverse bound to the risk.

        Raises:
            UnsupportedError: If the curvature is not symmetric, or the risk has no batches to draw.
            NegativeCurvatureError: If an eigenvalue is negative: the series diverges.
        """
        require_symmetric(risk, self, "GMRES(damping)")
        if self.batches is not None and not isinstance(risk, Risk):
            raise UnsupportedError(
                f"A {type(risk).__name__} has no batches to draw. Use LiSSA() without batches, or CG."
            )
        matrix = operator(self.curvature, self.damping, risk)
        smallest, largest = extreme_eigenvalues(matrix, matrix.risk, seed=self.seed)
        scale = MARGIN * max(largest, 0.0) or 1.0
        if smallest < -10 * matrix.risk.precision * scale:
            raise NegativeCurvatureError(_divergence(_lowest(matrix, self.seed), matrix.damping))
        note = (
            f"Eigenvalues from {smallest:.3g} or less to {largest:.3g} where the diagonal of the damped curvature is "
            f"about one; each step was divided by {scale:.3g}."
        )
        return LiSSAInverse(
            repr(self), risk.signature, self, matrix, matrix.damping, scale, max(smallest, 0.0), (note,)
        )


@dataclass(frozen=True, eq=False)
class LiSSAInverse(AbstractInverse):
    """The series at one trained model."""

    solver: str
    signature: str
    settings: LiSSA
    matrix: Operator
    damping: float
    scale: float
    least: float
    notes: tuple[str, ...] = ()
    smallest_eigenvalue: float | None = None
    in_double: ClassVar[bool] = True

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Rounds of steps, each of which must bring every residual down."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        inside = self.matrix.inside(vectors)
        wanted, scale = inside.norm(dim=1), self.scale
        x, residual, count = torch.zeros_like(inside), inside.clone(), 0
        steps = torch.zeros(len(vectors), dtype=torch.long)
        with tqdm(total=self.settings.max_steps, desc="LiSSA", unit="step", disable=None, leave=False) as bar:
            while count < self.settings.max_steps:
                active = self._far(x, inside, residual)
                if not active.any():
                    break
                change, taken = self._round(residual[active], scale, generator)
                left = residual[active] - self._product(change)
                nearer = left.norm(dim=1) < residual[active].norm(dim=1)  # false for what is not finite, too
                good = active.masked_scatter(active, nearer)
                x[good] += change[nearer]
                residual[good] = left[nearer]
                if not nearer.all():
                    self._refuse_negative(residual[active][~nearer])
                    scale *= 2
                count += taken
                steps += taken * active.cpu()
                bar.update(taken)
        residual = inside - self._product(x)
        shares = residual.norm(dim=1) / wanted.clamp_min(torch.finfo(wanted.dtype).tiny)
        errors = self._error(x, inside, residual)
        warn_unconverged("LiSSA", shares, errors, self.settings.rtol, count)
        return Solution(self.matrix.inside(x), tuple(steps.tolist()), tuple(shares.tolist()), tuple(errors.tolist()))

    def _far(self, x: Tensor, wanted: Tensor, residual: Tensor) -> Shaped[Tensor, " m"]:
        """Right-hand sides whose residual or error is above the tolerance."""
        rtol = self.settings.rtol
        far = residual.norm(dim=1) > rtol * wanted.norm(dim=1)
        return far | (self._error(x, wanted, residual) > error_allowed(rtol))

    def _error(self, x: Tensor, wanted: Tensor, residual: Tensor) -> Shaped[Tensor, " m"]:
        """Estimated errors in the norm of the matrix, and of the scores, from the smallest eigenvalue Lanczos found."""
        size = (x * (wanted - residual)).sum(1).clamp_min(0).sqrt() * max(self.least, 1e-300) ** 0.5
        off = residual.norm(dim=1)
        energy = torch.where(off > 0, off / size.clamp_min(torch.finfo(size.dtype).tiny), 0)
        rows = self.matrix.inside(score_sums(self.matrix.risk)).T
        sums, left = (x @ rows).norm(dim=1), (residual @ rows).norm(dim=1)
        return torch.maximum(energy, (left / (sums * max(self.least, 1e-300))).nan_to_num(0.0))

    def _round(
        self, residual: Shaped[Tensor, "m p"], scale: float, generator: torch.Generator
    ) -> tuple[Shaped[Tensor, "m p"], int]:
        """The series applied to a residual: its first term on all samples, or a pass of drawn batches."""
        change = residual / scale
        if self.settings.batches is None:
            return change, 1
        risk, taken = self.matrix.risk, 1
        assert isinstance(risk, Risk)
        for drawn in torch.randperm(len(risk.reading.sizes), generator=generator).split(self.settings.batches):
            change = change + (residual - self._product(change, drawn.tolist())) / scale
            taken += 1
        return change, taken

    def _product(self, vectors: Shaped[Tensor, "m p"], drawn: list[int] | None = None) -> Shaped[Tensor, "m p"]:
        """The damped curvature times vectors; an unbiased estimate of it, where batches were drawn."""
        if drawn is None:
            return self.matrix.product(vectors)
        risk, wide = self.matrix.risk, self.matrix.inside(vectors)
        assert isinstance(risk, Risk)
        ids = [label for number in drawn for label in risk.labels_of(number)]
        part = self.matrix.curvature.product(risk.only(ids), wide) - risk.decay * wide
        return self.matrix.inside(part * (risk.n / len(ids)) + (risk.decay + self.damping) * wide)

    def _refuse_negative(self, residual: Shaped[Tensor, "m p"]) -> None:
        bend = (residual * self._product(residual)).sum(1)
        if float(bend.min()) < 0:
            quotient = float((bend / self.matrix.inside(residual).square().sum(1)).min())
            raise NegativeCurvatureError(_divergence(quotient - self.damping, self.damping))


def _lowest(matrix: Operator, seed: int) -> float:
    """The smallest eigenvalue that Lanczos finds of the curvature itself, undamped and unscaled."""
    smallest, _ = extreme_eigenvalues(matrix.curvature, matrix.risk, seed=seed)
    return smallest


def _divergence(smallest: float, damping: float) -> str:
    return (
        f"LiSSA's series diverges: the curvature has an eigenvalue of {smallest:.3g} or less, and damping={damping:g} "
        f"does not make it positive. Raise damping above {-smallest:.3g}, use curvature=GaussNewton(), or solver GMRES."
    )
