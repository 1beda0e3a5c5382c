"""The number of samples to take at once, where none was given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .._autodiff.params import state_of
from .._types import Batch, SampleLoss
from .batch import tensors_in
from .batches import Batches

LOOKED_AT = 8  # samples whose activations are counted
ACTIVATIONS = 2**19  # numbers that a backward pass of one batch may keep; 32 directions at once keep 32 times as many
GRADIENTS = 2**26  # numbers in the gradients of all samples of one batch
MOST = 65_536  # beyond this a batch costs what its samples cost


def roomy(data: Batches, model: nn.Module, losses: SampleLoss, p: int) -> int:
    """The size of batches: as large as activations and gradients of small models allow, never smaller than it is.

    Args:
        data: Tensors; the first samples are looked at.
        model: The trained module.
        losses: `(model, batch) -> (b,)`.
        p: Number of trained parameters.

    Returns:
        Samples in a batch.
    """
    try:
        kept = sum(_kept(model, losses, data.take(slice(LOOKED_AT)))) // LOOKED_AT
    except Exception:  # whatever a loss says that knows one batch size alone
        return data.size
    return max(data.size, min(ACTIVATIONS // max(kept, 1), GRADIENTS // p, MOST))


def _kept(model: nn.Module, losses: SampleLoss, batch: Batch) -> Iterator[int]:
    """Numbers in the batch, and in all that a backward pass through its losses reads beside the model."""
    known = {tensor.untyped_storage().data_ptr() for tensor in state_of(model).values()}
    yield from (tensor.numel() for tensor in tensors_in(batch))
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in known:
            known.add(place)
            sizes.append(tensor.numel())
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        found = losses(model, batch)
    yield from sizes
    del found
