"""Roots of a Gauss-Newton matrix written out: one random gradient for each sample, all layers together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import all_finite
from .._curvature.fisher import Fisher
from .._kronecker.factors import largest_batch, layers_of_risk
from .._kronecker.gradients import AbstractGradients, ParameterBlock
from .._risk.risk import Risk
from ..errors import NonFiniteError


def root_rows(
    risk: Risk, pace: Shaped[Tensor, " p"], draws: int | None, seed: int, part: range | None = None
) -> Iterator[Shaped[Tensor, "b p"]]:
    r"""Rows z with $\mathbb{E}\sum z z^\top = D^{1/2} F D^{1/2}$, F the Gauss-Newton matrix without l2.

    Each is the gradient of a sample's outputs along a random combination of the columns of the square root of the
    criterion's second derivative, the combination by random signs: a label drawn from a confident model is nearly
    always the likeliest, whose gradient is nearly zero, and rare draws would decide everything.

    Args:
        risk: The trained model.
        pace: $D^{1/2}$, shape `(p,)`.
        draws: For each sample; `None` takes every column, without chance.
        seed: Of the signs.
        part: Numbers of the batches that are wanted; default: all.

    Yields:
        Shape `(b, p)` for each batch and draw.

    Raises:
        NonFiniteError: If a gradient is not finite, with its batch.
    """
    curvature = Fisher(draws, seed)
    _, first, gradients = next(curvature.output_gradients(risk, largest_batch(risk)))
    layers = layers_of_risk(risk, gradients.outputs, first)
    for index, batch, gradients in curvature.output_gradients(risk, part=part):
        for found in layers.along(gradients, batch):
            rows = written(risk, found, risk.reading.sizes[index]).mul_(pace / risk.n**0.5)
            if not all_finite(rows):
                raise NonFiniteError(risk.nan_message(index, batch, "A derivative of the outputs or of the criterion"))
            yield rows


def written(risk: Risk, gradients: dict[ParameterBlock, AbstractGradients], b: int) -> Shaped[Tensor, "b p"]:
    """Gradients of all blocks in one row for each sample; zero for blocks that the batch does not reach."""
    rows, sizes = risk.weights.new_zeros(b, risk.p), [part.numel() for part in risk.theta.values()]
    places = dict(zip(risk.theta, rows.split(sizes, 1), strict=True))
    for slot, part in gradients.items():
        for name, found in slot.scatter(part.dense().movedim(0, 1)).items():
            shape = risk.theta[name].shape or (1,)
            places[name].unflatten(1, shape).copy_(found.reshape(b, *shape))
    return rows


def together(*parts: Shaped[Tensor, "_ p"]) -> Shaped[Tensor, "k p"]:
    r"""Independent sets of roots of one matrix as one set, each with the weight of its number.

    Args:
        parts: Rows of which the sum of outer products is the matrix, on average.

    Returns:
        Rows of which the same is true.
    """
    count = sum(map(len, parts))
    return torch.cat([(len(part) / count) ** 0.5 * part for part in parts])
