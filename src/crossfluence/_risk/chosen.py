"""The samples of a batch that have a weight, without those beside them."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from .._autodiff.functional import bind, evaluated, isolated
from .._checks.looks import ROUNDINGS
from .._data.samples import chosen_samples
from .._losses import AbstractLoss, PerSample
from .._types import Batch, Params

FACTORS = (1.0, 0.5)  # of the parameters, at which losses are compared
FEW = 0.5  # share of a batch beyond which its samples are not worth taking out


def weighted_rows(kind: AbstractLoss, batch: Batch, weights: Tensor) -> tuple[Batch, Tensor] | None:
    """The samples of a batch whose weights are not zero, and their weights.

    Args:
        kind: The loss.
        batch: As the loss takes it.
        weights: One for each of its samples.

    Returns:
        A smaller batch; `None` where most samples have a weight, the loss couples them, or nothing in the batch counts
        them.

    Example:
        >>> kind = PerSample(lambda model, x: model(x).square().sum(1))
        >>> weighted_rows(kind, torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.0, 0.0, 4.0]))
        (tensor([[3.]]), tensor([4.]))
    """
    drawing = isinstance(kind, PerSample) and kind.draws  # another number of samples draws other numbers
    places = weights.nonzero().flatten()
    if not kind.per_sample or drawing or len(places) > FEW * len(weights):
        return None
    small = chosen_samples(batch, len(weights), places.tolist())
    return None if small is None else (small, weights[places])


def same_alone(
    kind: AbstractLoss, model: nn.Module, theta: Params, batch: Batch, weights: Tensor, small: Batch, precision: float
) -> bool:
    """True if the samples that have a weight have the same losses alone as in their batch.

    They have not where they are nodes of one graph, for instance, or where a tensor as long as the batch belongs to all
    of its samples.

    Args:
        kind: A per-sample loss.
        model: The trained module.
        theta: Its trained parameters; losses are compared there and at others.
        batch: The whole batch.
        weights: One for each of its samples.
        small: The samples whose weights are not zero.
        precision: Relative rounding error of the loss.

    Returns:
        False, too, where the loss fails on the smaller batch.
    """
    losses, chosen = bind(kind.losses, model), weights != 0
    with isolated(), contextlib.suppress(Exception):  # whatever the user's code says of a batch that it cannot read
        points = [{name: factor * part for name, part in theta.items()} for factor in FACTORS]
        among = torch.stack([evaluated(lambda at=at: losses(at, batch))[chosen] for at in points])
        alone = torch.stack([evaluated(lambda at=at: losses(at, small)) for at in points])
        size = ROUNDINGS * precision * float(among.abs().nan_to_num(posinf=0).max())
        return torch.allclose(alone, among, rtol=0, atol=size, equal_nan=True)
    return False
