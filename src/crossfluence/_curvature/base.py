"""The interface of every curvature, and damping in its one unit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import VECTORS_AT_ONCE
from .._risk.base import AbstractRisk
from .._storage.archive import stored
from ..errors import DampingError, SolveError

PROBES = 64  # of Hutchinson's estimate; with at most this many parameters the diagonal is exact
TRACED = 512  # parameters up to which the trace is exact


class AbstractCurvature(ABC):
    """A p x p matrix that is never formed, l2 term included."""

    @abstractmethod
    def product(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """The matrix times vectors: one pass over the data.

        Args:
            risk: Where.
            vectors: One in each row.

        Returns:
            One product in each row, in units of mean loss per parameter.
        """

    def transposed_product(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """The transpose times vectors; the same for symmetric curvatures.

        Args:
            risk: Where.
            vectors: One in each row.

        Returns:
            One product in each row.
        """
        return self.product(risk, vectors)


@stored("Relative")
@dataclass(frozen=True)
class Relative:
    """Damping as a multiple of the mean eigenvalue of the curvature of the mean loss.

    The mean eigenvalue is the trace over p, l2 term included: exact up to 512 parameters, beyond that estimated with
    64 random vectors of a fixed seed, so that one factor is one number for every solver (of each block, for solvers
    that work in blocks).

    Attributes:
        factor: How many mean eigenvalues; 0.1 is common for layer-wise solvers.

    Example:
        >>> Relative(0.1)
        Relative(factor=0.1)
    """

    factor: float

    def __post_init__(self) -> None:
        if not _positive(self.factor):
            raise DampingError(f"Got Relative({self.factor!r}); needed zero or more, as a number.")


@stored("Trained")
@dataclass(frozen=True)
class Trained:
    r"""The training's own horizon in the place of a damping, layer by layer: for `EKFAC`, `KFAC` and other blocks.

    In every block $1/(\lambda + \text{damping})$ becomes $A^{1/2}\varphi(X)A^{1/2}$ with $X = A^{1/2}FA^{1/2} + D$ and
    $\varphi(x) = (1 - e^{-x})/x$, as in `Horizon`, where A is that of the risk's `TrainingRecord`, of rank one (row
    times column) within each block, so that the work is that of the block solver. For models whose layers are too large
    for `Horizon`. What layers do to each other is left out: in fine-tuning, where all layers move together, much of the
    correlation is lost with it; from scratch little is.

    Example:
        >>> from crossfluence import EKFAC
        >>> EKFAC(damping=Trained()).damping
        Trained()
    """


def absolute(damping: float | Relative, mean_eigenvalue: float) -> float:
    """Damping as the number that is added to every eigenvalue.

    Args:
        damping: Absolute, or `Relative`.
        mean_eigenvalue: Of the curvature, l2 term included.

    Returns:
        A number in units of mean loss per squared parameter.

    Raises:
        SolveError: If a relative damping meets a mean eigenvalue that is not positive.
        DampingError: If the damping is negative or no number.
    """
    refuse_damping(damping)
    if not isinstance(damping, Relative):
        return float(damping)
    if damping.factor and mean_eigenvalue <= 0:
        raise SolveError(
            f"{damping} needs a positive mean eigenvalue; this curvature has {mean_eigenvalue:.3g}. "
            f"Give an absolute damping, or curvature=GaussNewton()."
        )
    return damping.factor * mean_eigenvalue


def identity_products(curvature: AbstractCurvature, risk: AbstractRisk) -> Shaped[Tensor, "p p"]:
    """The matrix in full, by products with unit vectors: its transpose, in fact, a product in each row.

    Args:
        curvature: Which matrix.
        risk: Where.

    Returns:
        Row k is the product with unit vector k.
    """
    like = risk.layout.flatten(risk.theta)
    return curvature.product(risk, torch.eye(risk.p, dtype=like.dtype, device=like.device))


def diagonal(
    curvature: AbstractCurvature, risk: AbstractRisk, *, seed: int = 0, scale: Tensor | float = 1.0
) -> Shaped[Tensor, " p"]:
    """The diagonal, estimated with 64 vectors of random signs; exact for at most 64 parameters.

    Args:
        curvature: Of what.
        risk: Where.
        seed: Of the signs.
        scale: Sizes of the signs. In the coordinates of `scale_of` no parameter drowns another in noise.

    Returns:
        In units of mean loss per squared parameter.

    References:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990; Bekas, Kokiopoulou and Saad,
        "An estimator for the diagonal of a matrix", 2007.
    """
    if risk.p <= PROBES:
        return identity_products(curvature, risk).diagonal()
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (PROBES, risk.p), generator=generator) * 2 - 1
    signs = signs.to(risk.layout.flatten(risk.theta))
    return (signs * curvature.product(risk, signs * scale) / scale).mean(0)


def mean_eigenvalue(curvature: AbstractCurvature, risk: AbstractRisk) -> float:
    """The trace over p, the same for every solver: exact up to 512 parameters, beyond that with 64 random vectors.

    Args:
        curvature: Of what.
        risk: Where.

    Returns:
        In units of mean loss per squared parameter.
    """
    found, key = risk.remembered, ("mean eigenvalue", curvature)
    if key not in found:
        fine = risk.fine
        exact = PROBES < risk.p <= TRACED
        found[key] = _mean_of_trace(curvature, fine) if exact else float(diagonal(curvature, fine).mean())
    return found[key]


def know_trace(curvature: AbstractCurvature, risk: AbstractRisk, matrix: Shaped[Tensor, "p p"]) -> None:
    """Takes the mean eigenvalue from a matrix that is written out, where it is to be exact.

    Args:
        curvature: Of what.
        risk: Where.
        matrix: The curvature there.
    """
    if risk.p <= TRACED:
        risk.remembered["mean eigenvalue", curvature] = float(matrix.diagonal().mean())


def _mean_of_trace(curvature: AbstractCurvature, risk: AbstractRisk) -> float:
    """Unit vectors in parts, of which each leaves its entries of the diagonal behind."""
    like, total = risk.layout.flatten(risk.theta), 0.0
    for start in range(0, risk.p, VECTORS_AT_ONCE):
        count = min(VECTORS_AT_ONCE, risk.p - start)
        units = like.new_zeros(count, risk.p)
        units[:, start : start + count].fill_diagonal_(1)
        total += float(curvature.product(risk, units)[:, start : start + count].diagonal().sum())
    return total / risk.p


def damping_products(damping: float | Relative, risk: AbstractRisk) -> int:
    """Number of products that `plain_damping` takes."""
    return 0 if not isinstance(damping, Relative) else risk.p if risk.p <= TRACED else PROBES


def plain_damping(damping: float | Relative, curvature: AbstractCurvature, risk: AbstractRisk) -> float:
    """`absolute`, asking for the mean eigenvalue only when it matters.

    Args:
        damping: Absolute, or `Relative`.
        curvature: What is damped.
        risk: Where.

    Returns:
        The number that is added to every eigenvalue.
    """
    return absolute(damping, mean_eigenvalue(curvature, risk) if isinstance(damping, Relative) else 1.0)


def refuse_damping(damping: float | Relative) -> None:
    """Refuses a damping that is negative, infinite or no number, where a solver is written down.

    Args:
        damping: Absolute, or `Relative`.

    Raises:
        DampingError: If it is none, or neither a number nor `Relative`.
    """
    if isinstance(damping, Relative):
        return
    if isinstance(damping, Trained):
        raise DampingError(
            "Got damping=Trained(), which puts the training's horizon into the blocks of a block solver. Use "
            "Horizon(), which couples all layers, or EKFAC(damping=Trained())."
        )
    if not _positive(damping):
        raise DampingError(f"Got damping={damping!r}; needed zero or more, as a number or Relative(x).")


def _positive(number: object) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and 0 <= float(number) < math.inf
