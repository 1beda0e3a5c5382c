"""Units for the parameters in which the diagonal of the curvature is about one, so that no column's unit matters."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.func import grad

from .._autodiff.functional import gradient_of, jvp
from .._risk.base import AbstractRisk
from .._risk.risk import Risk
from .._types import Batch, Params
from .base import PROBES, AbstractCurvature, identity_products

SWEEPS = 20  # each halves what is left of the differences between rows, in powers of ten
SIGNS = 8  # draws of random signs for all samples together, at least
ORDINARY = 30.0  # factor about the median within which parameters' curvatures lie in ordinary networks
NARROWEST = 1e-24  # smallest square of a unit beside the largest: both fit into single precision


def scale_of(curvature: AbstractCurvature, risk: AbstractRisk, damping: float) -> Shaped[Tensor, " p"]:
    r"""S, so that $S(J+\text{damping})S$ has a diagonal of about one; it follows every change of a parameter's unit.

    The matrix itself says it for at most 64 parameters. Beyond that, the mean squared gradient of the samples, which
    random signs estimate without mixing parameters, is brought to the size of the curvature by a few products. A risk
    with a structure of its own keeps its units.

    Args:
        curvature: Of what.
        risk: Where.
        damping: Added to the eigenvalues.

    Returns:
        Positive numbers; parameters that neither the loss nor the damping holds have the largest.
    """
    key = ("scale", curvature, damping)
    if key not in risk.remembered:
        risk.remembered[key] = _found(curvature, risk, damping)
    return risk.remembered[key]


def tempered(scale: Shaped[Tensor, " p"]) -> Shaped[Tensor, " p"]:
    """The units to iterate in: those of `scale_of`, and the parameters' own where these are ordinary.

    A spread of the diagonal by a factor of 30 about its median either way is left as it is: in measurements on networks
    conjugate gradients take half the steps or fewer in the parameters' own units, as small curvatures stay together.

    Args:
        scale: From `scale_of`.

    Returns:
        Positive numbers.
    """
    sizes = scale.double().square() / scale.double().square().median()  # of the diagonal, inverted
    return (sizes / sizes.clamp(1 / ORDINARY, ORDINARY)).sqrt().to(scale)


def scale_products(risk: AbstractRisk) -> int:
    """Number of products that `scale_of` takes together."""
    return risk.p if isinstance(risk, Risk) and risk.p <= PROBES else 0


def scale_readings(risk: AbstractRisk) -> int:
    """Number of passes over the data for `scale_of`, beside these products and those taken alone."""
    return 1 if isinstance(risk, Risk) and risk.p > PROBES else 0


def _found(curvature: AbstractCurvature, risk: AbstractRisk, damping: float) -> Shaped[Tensor, " p"]:
    if not isinstance(risk, Risk):
        return torch.ones_like(risk.layout.flatten(risk.theta))
    if risk.p <= PROBES:
        matrix = identity_products(curvature, risk).double()
        matrix.diagonal().add_(damping)
        return equilibrating(matrix).to(risk.layout.flatten(risk.theta))
    squares = squared_gradients(risk)
    least = (risk.decay + damping) * torch.ones_like(squares)
    return _rooted(_ratio(curvature, risk, squares) * squares + least).to(risk.layout.flatten(risk.theta))


def equilibrating(matrix: Float[Tensor, "p p"]) -> Float[Tensor, " p"]:
    """S, so that the largest entry of each row of S A S, or of its column, is one; the diagonal, if A is positive.

    Args:
        matrix: Square.

    Returns:
        Positive numbers; the largest of them for rows of zeros.

    References:
        Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices", 2001; van der Sluis,
        "Condition numbers and equilibration of matrices", 1969, for the diagonal.
    """
    sizes = torch.maximum(matrix.abs(), matrix.abs().T)
    scale = _rooted(torch.where(matrix.diagonal() != 0, matrix.diagonal().abs(), sizes.amax(1)))
    for _ in range(SWEEPS):
        rows = (sizes * scale).amax(1) * scale
        scale = scale / torch.where(rows > 0, rows, 1).sqrt()
    return torch.where(sizes.amax(1) > 0, scale, scale.max())


def squared_gradients(risk: Risk, signs: int = SIGNS) -> Float[Tensor, " p"]:
    """Mean square of each parameter's gradient over the samples, by random signs.

    A sum of gradients with random signs, squared, has that expectation, whatever the other parameters are.

    Args:
        risk: Where.
        signs: Draws of them for all samples together, at least; each batch has one of its own.

    Returns:
        In float64, in units of squared loss per squared parameter.
    """
    draws = -(-signs // len(risk.reading.sizes))
    generator = torch.Generator().manual_seed(0)
    drawn = [  # for all batches with weight, whoever reads them
        torch.randint(2, (draws, len(weights)), generator=generator) * 2 - 1 if weights.any() else None
        for weights in risk.weights.split(list(risk.reading.sizes))
    ]

    def part() -> dict[str, Tensor]:
        total = torch.zeros(risk.p, dtype=torch.float64, device=risk.weights.device)
        for index, batch, weights in risk.passes(risk.part):
            for sign in () if (found := drawn[index]) is None else found.to(weights):
                rows = signed_gradient(risk, batch, weights, sign * weights)
                total += risk.layout.flatten(rows).double().square() / draws
        return {"total": total}

    return (risk.ranks.added("measuring gradients", part)["total"] / risk.n).nan_to_num(0.0, 0.0, 0.0)


def signed_gradient(risk: Risk, batch: Batch, weights: Tensor, signs: Tensor) -> Params:
    """The gradient of the losses with signs; of what the weights change along them, where samples are coupled.

    Args:
        risk: Where.
        batch: Some samples.
        weights: Theirs.
        signs: A factor for each.

    Returns:
        Named tensors.
    """
    if risk.kind.per_sample:
        return gradient_of(lambda theta: risk.total(theta, risk.theta, batch, signs), risk.theta)

    def moved(theta: Params) -> Tensor:
        return jvp(lambda w: risk.total(theta, risk.theta, batch, w), weights, signs)

    return grad(moved)(risk.theta)


def _ratio(curvature: AbstractCurvature, risk: Risk, squares: Float[Tensor, " p"]) -> float:
    """Median of the curvature's diagonal, without l2, in the units that the gradients suggest."""
    held = squares > 0
    if not bool(held.any()):
        return 1.0
    scale = torch.where(held, _rooted(squares), 0)
    like = risk.layout.flatten(risk.theta)
    generator = torch.Generator().manual_seed(1)
    signs = (torch.randint(2, (1, risk.p), generator=generator) * 2 - 1).to(scale)
    probes = (signs * scale).to(like)
    bent = ((curvature.product(risk, probes) - risk.decay * probes).double() * probes)[:, held]
    middle = float(bent.median())  # what other parameters add is as often too much as too little
    return (middle if middle > 0 else float(bent.abs().median())) / float((squares * scale.square()).max()) or 1.0


def _rooted(squares: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """The inverse square roots of what is positive, the largest of them for the rest; the smallest is one."""
    if not bool((squares > 0).any()):
        return torch.ones_like(squares)
    sizes = squares / squares.max()
    held = torch.where(sizes > NARROWEST, sizes, torch.inf).min()
    return torch.where(sizes > NARROWEST, sizes, held).rsqrt()
