"""First and second moments of the samples' gradients, and Adam's second moment as they foretell it."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._curvature.fisher import EmpiricalFisher
from .._curvature.scale import squared_gradients
from .._kronecker.factors import KroneckerFit
from .._risk.risk import Risk
from ..errors import UnsupportedError


def gradient_moments(risk: Risk) -> tuple[Shaped[Tensor, " p"], Shaped[Tensor, " p"]]:
    """The mean of the samples' gradients, and the mean of their squares, entry by entry; one pass over the data each.

    Args:
        risk: With a loss of each sample.

    Returns:
        Both of shape `(p,)`, without the l2 term.

    Raises:
        UnsupportedError: If the loss couples samples.
    """
    if not risk.kind.per_sample:
        raise UnsupportedError(
            f"A {type(risk.kind).__name__} has no gradient for each sample alone, from which the optimizer's state "
            f"could be rebuilt. Use recipe.record(), or a Recorder(optimizer) in the training itself."
        )
    found = {}
    for block in KroneckerFit.of(risk, EmpiricalFisher(), by_factors=False).blocks():
        found |= block.slot.scatter(block.values)
    return risk.gradient - risk.decay * risk.layout.flatten(risk.theta), risk.layout.flatten(found)


def batch_moments(
    risk: Risk, batch_size: int, clipping: float | None = None
) -> tuple[Shaped[Tensor, " p"], Shaped[Tensor, " p"], float]:
    r"""The mean and the mean square of gradients of random batches at the trained parameters.

    $\bar g$ and $\sigma^2/b \cdot (n - b)/(n - 1) + \bar g^2$, of the clipped gradient, with the l2 term.

    Args:
        risk: With a loss of each sample.
        batch_size: b.
        clipping: The largest norm of a batch's gradient.

    Returns:
        Both, and the factor by which a gradient of root mean square length is clipped.
    """
    mean, squares = gradient_moments(risk)
    left = (risk.n - batch_size) / max(risk.n - 1, 1)  # nothing is left to chance where a batch is all of the data
    spread = (squares - mean.square()).clamp_min(0) / batch_size * left
    whole = spread + risk.gradient.square()
    factor = 1.0 if clipping is None else min(1.0, clipping / (float(whole.sum()) ** 0.5 + 1e-6))
    return factor * risk.gradient, factor**2 * whole, factor


def guessed_moments(risk: Risk, batch_size: int) -> tuple[Shaped[Tensor, " p"], Shaped[Tensor, " p"]]:
    """The mean and the mean square of gradients of batches, where nothing is known of a training.

    Args:
        risk: Of any loss; where it couples samples, the field's derivatives by their weights are their gradients, whose
            squares random signs tell.
        batch_size: At most half of the data.

    Returns:
        Both of shape `(p,)`.
    """
    size = max(1, min(batch_size, risk.n // 2))
    if risk.kind.per_sample:
        return batch_moments(risk, size)[:2]
    return risk.gradient, squared_gradients(risk).to(risk.gradient) / size + risk.gradient.square()


def adam_scaling(square: Tensor, mean: Tensor | None, eps: float = 1e-8, eps_root: float = 0.0) -> Tensor:
    r"""Adam's response to a small lasting gradient in one step of rate 1: $P \max(0, 1 - \bar g^2 P^2)$.

    Args:
        square: Second moment of the gradient.
        mean: Its running mean; without it the derivative of Adam's own division is left out.
        eps: Added to the root.
        eps_root: Added under it.

    Returns:
        Of the shape of `square`; zero where no gradient ever was.
    """
    inverse = 1 / ((square + eps_root).sqrt() + eps)
    bent = torch.ones_like(inverse) if mean is None else (1 - (mean * inverse).square()).clamp_min(0)
    return torch.where(square > 0, inverse * bent, 0)
