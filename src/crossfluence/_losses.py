"""The four kinds of training loss, as sums over a batch that depend on sample weights."""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._errors import DataError, LossShapeError
from ._types import Batch, SampleLoss


class AbstractLoss(ABC):
    """What training minimised on one batch.

    The training field is the derivative of `total` with respect to the parameters of `model` alone; `frozen` is the
    same module with gradients blocked, and only stop-gradient losses look at it.
    """

    per_sample: ClassVar[bool]
    """Whether the loss is a sum of one term for each sample, so that `losses` is defined."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Shape `(b,)`, for per-sample kinds."""
        raise NotImplementedError(f"A {type(self).__name__} couples the samples: they have no losses of their own.")

    def total(self, model: nn.Module, frozen: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The weighted sum of the batch's losses, a scalar."""
        losses = self.losses(model, batch)
        return (weights.to(losses) * losses).sum()

    @property
    def symmetric(self) -> bool:
        """Whether the field is a gradient, so that its Jacobian is symmetric."""
        return True


@dataclass(frozen=True, eq=False)
class PerSample(AbstractLoss):
    """A plain `(model, batch) -> (b,)`; what a bare callable means.

    Attributes:
        fn: One loss per sample, not reduced.
        draws: Whether it draws random numbers, the same whenever it is called for as many samples.
    """

    fn: SampleLoss
    draws: bool = False
    per_sample: ClassVar[bool] = True

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Shape `(b,)`."""
        return checked_losses(self.fn(model, batch), batch)


@dataclass(frozen=True, eq=False)
class OnOutputs(AbstractLoss):
    """A per-sample loss split at the model's outputs, so that Gauss-Newton products are defined.

    Attributes:
        outputs: `(model, batch) -> (b, ...)`.
        criterion: `(outputs, batch) -> (b,)`, convex in the outputs, not reduced.

    Example:
        >>> import torch
        >>> mse = OnOutputs(lambda model, batch: model(batch[0]), lambda z, batch: (z - batch[1]).square().sum(1))
        >>> mse.losses(nn.Identity(), (torch.ones(2, 3), torch.zeros(2, 3)))
        tensor([3., 3.])
    """

    outputs: Callable[[nn.Module, Batch], Tensor]
    criterion: Callable[[Tensor, Batch], Tensor]
    per_sample: ClassVar[bool] = True

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Shape `(b,)`."""
        return checked_losses(self.criterion(self.outputs(model, batch), batch), batch)


@dataclass(frozen=True, eq=False)
class WeightedLoss(AbstractLoss):
    """A loss that couples the samples of a batch: contrastive, Cox, clustering with cluster frequencies.

    Calling it evaluates the loss as in training.

    Attributes:
        fn: `(model, batch, weights) -> scalar`, the weighted *sum* over the batch; weight 0 must mean that the
            sample is absent, everywhere it appears.

    Example:
        >>> import torch
        >>> pairs = WeightedLoss(lambda model, x, w: (w[:, None] * w * torch.cdist(x, x)).sum())
        >>> pairs(nn.Identity(), torch.tensor([[0.0], [3.0]]), torch.ones(2))
        tensor(6.)
    """

    fn: Callable[[nn.Module, Batch, Tensor], Tensor]
    per_sample: ClassVar[bool] = False

    def __call__(self, model: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The training loss of a batch, a scalar."""
        return self.total(model, model, batch, weights)

    def total(self, model: nn.Module, frozen: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The weighted sum over the batch."""
        return _checked_scalar(self.fn(model, batch, weights), "WeightedLoss", weights)


@dataclass(frozen=True, eq=False)
class FieldLoss(AbstractLoss):
    """A loss trained through a stop-gradient: a moving target, SimSiam, BYOL, self-distillation.

    Training then follows a field that is not the gradient of any loss; influence takes into account that the
    blocked branch moves too. Calling it evaluates the loss with the blocked branch, ready for `backward`.

    Attributes:
        fn: `(model, frozen, batch, weights) -> scalar`, the weighted *sum* over the batch; `frozen` is the same
            module with gradients blocked.

    Example:
        >>> import torch
        >>> net = nn.Linear(1, 1)
        >>> chase = FieldLoss(lambda model, frozen, x, w: (w * (model(x) - frozen(x) - 1).square().sum(1)).sum())
        >>> chase(net, torch.ones(3, 1), torch.ones(3)).item()
        3.0
    """

    fn: Callable[[nn.Module, nn.Module, Batch, Tensor], Tensor]
    per_sample: ClassVar[bool] = False

    def __call__(self, model: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The training loss of a batch, a scalar."""
        return self.total(model, frozen_copy(model), batch, weights)

    def total(self, model: nn.Module, frozen: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The weighted sum over the batch."""
        return _checked_scalar(self.fn(model, frozen, batch, weights), "FieldLoss", weights)

    @property
    def symmetric(self) -> bool:
        """Always false."""
        return False


def as_loss(loss: SampleLoss | AbstractLoss) -> AbstractLoss:
    """A bare callable is a per-sample loss.

    Args:
        loss: Any of the four kinds.

    Returns:
        One of the four classes.

    Raises:
        TypeError: If it is not callable.
    """
    if isinstance(loss, AbstractLoss):
        return loss
    if not callable(loss) or isinstance(loss, nn.modules.loss._Loss):
        raise TypeError(
            f"Got a loss of type {type(loss).__name__}; needed a callable (model, batch) -> (b,), or "
            f"WeightedLoss(fn), FieldLoss(fn) or OnOutputs(outputs, criterion)."
        )
    return PerSample(loss)


def repeatable(kind: AbstractLoss) -> AbstractLoss:
    """The same loss, leaving the global random state as it finds it: called again, it draws the same numbers.

    Args:
        kind: Any of the four kinds.

    Returns:
        A loss of the same values and derivatives; one that is split at the outputs becomes per-sample.
    """
    coupled = isinstance(kind, (WeightedLoss, FieldLoss))
    function = kind.fn if coupled else kind.losses

    def unmoved(*arguments: Any) -> Tensor:
        with torch.random.fork_rng():
            return function(*arguments)

    return replace(kind, fn=unmoved) if coupled else PerSample(unmoved, draws=True)


def frozen_copy(model: nn.Module) -> nn.Module:
    """The same module with gradients blocked: its own structure, the same memory.

    Args:
        model: Any module.

    Returns:
        A module whose parameters are detached views of the originals.
    """
    shared = {id(tensor): tensor.detach() for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo=shared)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Every tensor of a batch, in order.

    Args:
        batch: A tensor, or tuples, lists, mappings and plain objects that hold tensors.

    Yields:
        The tensors.
    """
    if isinstance(batch, Tensor):
        yield batch
        return
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        batch = vars(batch).values() if hasattr(batch, "__dict__") and not isinstance(batch, type) else ()
    for part in batch:
        yield from tensors_in(part)


def length_of(batch: Batch) -> int:
    """The number of samples in a batch: the first dimension of its first tensor.

    Args:
        batch: A tensor, or tuples, lists, mappings and plain objects that hold tensors.

    Returns:
        b.

    Raises:
        DataError: If there is no tensor in it.
    """
    for tensor in tensors_in(batch):
        if tensor.ndim:
            return len(tensor)
    raise DataError(
        f"A batch of type {type(batch).__name__} holds no tensor, so its length is unknown. "
        f"Needed a tensor, a tuple or a dict of tensors whose first dimension counts the samples."
    )


def checked_losses(losses: Tensor, batch: Batch) -> Tensor:
    """One loss per sample, or a sentence that says what came instead.

    Args:
        losses: What the user's function returned.
        batch: What it was given.

    Returns:
        The same, of shape `(b,)`.

    Raises:
        LossShapeError: If it is anything else.
    """
    if not isinstance(losses, Tensor):
        raise LossShapeError(
            f"The loss returned {type(losses).__name__}; needed a tensor of shape (b,), one loss per sample."
        )
    if losses.ndim == 0:
        raise LossShapeError(
            "The loss returned a scalar; needed shape (b,), one loss per sample. Use reduction='none' in the criterion "
            "(and sum over all but the first dimension), or wrap a loss that couples samples in "
            "crossfluence.WeightedLoss."
        )
    if losses.ndim > 1:
        raise LossShapeError(
            f"The loss returned shape {tuple(losses.shape)}; needed (b,), one loss per sample. "
            f"Sum over all but the first dimension: loss.flatten(1).sum(1)."
        )
    if losses.shape[0] != length_of(batch):
        raise LossShapeError(
            f"The loss returned {losses.shape[0]} values for a batch of {length_of(batch)} samples; needed one each. "
            f"If several terms belong to one sample, sum them: loss.reshape(b, -1).sum(1)."
        )
    return losses


def _checked_scalar(value: Tensor, kind: str, weights: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim:
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise LossShapeError(
            f"The {kind} returned {came} for {len(weights)} weights; needed a scalar, the weighted sum over the batch. "
            f"Return (weights * losses).sum(), or pass the plain function if every sample has its own loss."
        )
    return value
