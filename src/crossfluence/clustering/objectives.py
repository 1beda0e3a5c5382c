"""Why is this sample in that cluster? Questions to any model that gives soft assignments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossfluence.extend import Objective


def assignments(model: nn.Module, x: Tensor) -> Tensor:
    """Soft assignments `(b, k)` of a model whose `forward` returns them, as `models.dec.DEC` does."""
    return model(x)


def log_assignment(
    x: Tensor, cluster: int | Tensor, *, assign: Callable[[nn.Module, Tensor], Tensor] = assignments
) -> Objective:
    """The log of the probability that a sample belongs to a cluster.

    Args:
        x: One sample `(features,)`, or many `(m, features)`: then one question each.
        cluster: Which cluster; for many samples also one for each, `(m,)`.
        assign: `(model, x) -> (b, k)`, where the model's `forward` gives something else.

    Returns:
        An objective; positive scores pulled the sample into the cluster. Unit: nats.

    Example:
        >>> from crossfluence.clustering.dec import DEC
        >>> dec = DEC(nn.Identity(), torch.tensor([[0.0], [4.0]]))
        >>> log_assignment(torch.tensor([2.0]), 0)(dec).exp().item()
        0.5
    """

    def question(model: nn.Module) -> Tensor:
        q = assign(model, x if x.ndim > 1 else x.unsqueeze(0))
        picked = q[torch.arange(len(q)), cluster].log()
        return picked if x.ndim > 1 else picked[0]

    return question


def margin(
    x: Tensor, first: int, second: int, *, assign: Callable[[nn.Module, Tensor], Tensor] = assignments
) -> Objective:
    """How much more a sample belongs to one cluster than to another, as a log ratio.

    Args:
        x: One sample `(features,)`.
        first: The cluster whose side is positive.
        second: The other.
        assign: `(model, x) -> (b, k)`, where the model's `forward` gives something else.

    Returns:
        An objective; positive scores pulled the sample from the second cluster to the first. Unit: nats.

    Example:
        >>> from crossfluence.clustering.dec import DEC
        >>> dec = DEC(nn.Identity(), torch.tensor([[0.0], [4.0]]))
        >>> round(margin(torch.tensor([1.0]), 0, 1)(dec).item(), 3)
        1.609
    """

    def question(model: nn.Module) -> Tensor:
        q = assign(model, x.unsqueeze(0))[0].log()
        return q[first] - q[second]

    return question
