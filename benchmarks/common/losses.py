"""Losses, one per sample. Needs PyTorch alone: other libraries' environments import it, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    import crossfluence as cf

Pair = tuple[Tensor, Tensor]
OutputLoss = Callable[[Tensor, Tensor], Tensor]  # of outputs and targets, `(b,)`


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample; of a sequence, the sum over its tokens."""
    found = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return found if logits.ndim == 2 else found.unflatten(0, targets.shape).sum(1)


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sequence, the mean over its tokens."""
    return cross_entropy(logits, targets) / targets.shape[1]


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of each sample."""
    return (outputs - targets).square().sum(1)


LOSSES: dict[str, OutputLoss] = {
    "cross entropy": cross_entropy,
    "mean over characters": mean_cross_entropy,
    "squared error": squared_error,
}


def classification(model: nn.Module, batch: Pair) -> Tensor:
    """Cross-entropy of a model's logits, for a batch of samples and classes."""
    return cross_entropy(model(batch[0]), batch[1])


def on_outputs(loss: OutputLoss = cross_entropy) -> cf.OnOutputs:
    """The same loss, split at the model's outputs."""
    import crossfluence as cf

    return cf.OnOutputs(lambda model, batch: model(batch[0]), lambda z, batch: loss(z, batch[1]))
