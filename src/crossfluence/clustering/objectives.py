"""Questions about cluster memberships, to any model that gives soft assignments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    """Margin of a sample between two clusters: the log ratio of its assignments.

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
    return _Margin(x, first, second, assign)


@dataclass(frozen=True, eq=False)
class _Margin:
    """The question of `margin`; a value, so that it can be sent to another process."""

    x: Tensor
    first: int
    second: int
    assign: Callable[[nn.Module, Tensor], Tensor]

    def __call__(self, model: nn.Module) -> Tensor:
        q = self.assign(model, self.x.unsqueeze(0))[0].log()
        return q[self.first] - q[self.second]
