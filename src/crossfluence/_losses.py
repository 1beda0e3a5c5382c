"""The four kinds of training loss, as sums over a batch that depend on sample weights."""

from __future__ import annotations

import contextlib
from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._autodiff.copies import frozen_copy
from ._data.batch import length_of, possible_lengths
from ._require import described, takes
from ._types import Batch, SampleLoss
from .errors import LossShapeError, UnsupportedError

COUNT = "say it, Risk(..., n=lambda batch: ...)"


class MiscountedError(LossShapeError):
    """A loss has another number of values than its batch seems to have samples."""


class AbstractLoss(ABC):
    """The loss of one batch, as training minimised it.

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
        losses = matching(self.losses(model, batch), weights)
        return (weights.to(losses) * losses).sum()

    @property
    def symmetric(self) -> bool:
        """True if the field is a gradient, so that its Jacobian is symmetric."""
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
        return one_each(self.fn(model, batch))


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """The parts of a loss that is a sum over tokens.

    Attributes:
        losses: `(outputs, batch) -> (b, t)`, one loss for each token.
        positions: `batch -> (b, t)`, the number of each token in its sample; negative where there is none.
    """

    losses: Callable[[Tensor, Batch], Tensor]
    positions: Callable[[Batch], Tensor]

    def __post_init__(self) -> None:
        _refuse_other_arguments("OnOutputs.by_token(losses=)", self.losses, "(outputs, batch)")
        _refuse_other_arguments("OnOutputs.by_token(positions=)", self.positions, "(batch)")

    def summed(self, z: Tensor, batch: Batch) -> Tensor:
        """The loss of each sample, shape `(b,)`."""
        return torch.where(self.positions(batch) >= 0, self._each(z, batch), 0).sum(1)

    def listed(self, z: Tensor, batch: Batch) -> Tensor:
        """The losses of all tokens that count, sample after sample."""
        return self._each(z, batch)[self.positions(batch) >= 0]

    def _each(self, z: Tensor, batch: Batch) -> Tensor:
        losses, wanted = self.losses(z, batch), tuple(self.positions(batch).shape)
        if not isinstance(losses, Tensor) or tuple(losses.shape) != wanted or losses.ndim != 2:
            came = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise LossShapeError(f"The losses of tokens have {came}, their positions {wanted}; needed (b, t) for both.")
        return losses


@dataclass(frozen=True, eq=False)
class OnOutputs(AbstractLoss):
    """A per-sample loss split at the model's outputs, so that Gauss-Newton products are defined.

    Attributes:
        outputs: `(model, batch) -> (b, ...)`.
        criterion: `(outputs, batch) -> (b,)`, convex in the outputs, not reduced.
        tokens: The same loss for each token, where it is a sum over tokens; see `by_token`.

    Example:
        >>> import torch
        >>> mse = OnOutputs(lambda model, batch: model(batch[0]), lambda z, batch: (z - batch[1]).square().sum(1))
        >>> mse.losses(nn.Identity(), (torch.ones(2, 3), torch.zeros(2, 3)))
        tensor([3., 3.])
    """

    outputs: Callable[[nn.Module, Batch], Tensor]
    criterion: Callable[[Tensor, Batch], Tensor]
    tokens: TokenLosses | None = None
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _refuse_other_arguments("OnOutputs(outputs=)", self.outputs, "(model, batch)")
        _refuse_other_arguments("OnOutputs(criterion=)", self.criterion, "(outputs, batch)")

    @classmethod
    def by_token(
        cls,
        outputs: Callable[[nn.Module, Batch], Tensor],
        losses: Callable[[Tensor, Batch], Tensor],
        positions: Callable[[Batch], Tensor],
        criterion: Callable[[Tensor, Batch], Tensor] | None = None,
    ) -> OnOutputs:
        """A loss that is a sum over the tokens of each sample, for `influence(..., unit="token")`.

        Args:
            outputs: `(model, batch) -> (b, ...)`.
            losses: `(outputs, batch) -> (b, t)`, one loss for each token, convex in the outputs.
            positions: `batch -> (b, t)`, the number of each token in its sample; negative where there is none.
            criterion: `(outputs, batch) -> (b,)`, for batches that may come without tokens; default: the sum.

        Returns:
            A loss whose criterion is the sum over tokens.
        """
        tokens = TokenLosses(losses, positions)
        return cls(outputs, criterion or tokens.summed, tokens)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Shape `(b,)`."""
        return one_each(self.criterion(self.outputs(model, batch), batch))


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

    def __post_init__(self) -> None:
        _refuse_other_arguments("WeightedLoss", self.fn, "(model, batch, weights)")

    def __call__(self, model: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The training loss of a batch, a scalar."""
        return self.total(model, model, batch, weights)

    def total(self, model: nn.Module, frozen: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The weighted sum over the batch."""
        with _fitting(weights):
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

    def __post_init__(self) -> None:
        _refuse_other_arguments("FieldLoss", self.fn, "(model, frozen, batch, weights)")

    def __call__(self, model: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The training loss of a batch, a scalar."""
        return self.total(model, frozen_copy(model), batch, weights)

    def total(self, model: nn.Module, frozen: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The weighted sum over the batch."""
        with _fitting(weights):
            return _checked_scalar(self.fn(model, frozen, batch, weights), "FieldLoss", weights)

    @property
    def symmetric(self) -> bool:
        """Always false."""
        return False


def _refuse_other_arguments(kind: str, function: Any, arguments: str) -> None:
    if not takes(function, arguments.count(",") + 1):
        raise UnsupportedError(
            f"Got {described(function)} for {kind}; needed a function of {arguments}. Type, for instance, "
            f"lambda {arguments.strip('()')}: ..."
        )


def as_loss(loss: SampleLoss | AbstractLoss) -> AbstractLoss:
    """A bare callable is a per-sample loss.

    Args:
        loss: Any of the four kinds.

    Returns:
        One of the four classes.

    Raises:
        UnsupportedError: If it is not callable.
    """
    if isinstance(loss, AbstractLoss):
        return loss
    if not takes(loss, 2) or isinstance(loss, (type, nn.modules.loss._Loss)):
        raise UnsupportedError(
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


def one_each(losses: Tensor) -> Tensor:
    """The same losses, if they are a tensor of real numbers with one dimension.

    Args:
        losses: What the user's function returned.

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
    if not losses.is_floating_point():
        raise LossShapeError(
            f"The loss returned numbers of type {losses.dtype}; needed real ones with a derivative, such as "
            f"torch.float32. Take .real or .abs() of complex ones; count with a smooth stand-in."
        )
    return losses


def matching(losses: Tensor, weights: Tensor) -> Tensor:
    """The same losses, if they are as many as the weights.

    Args:
        losses: Shape `(b,)`.
        weights: One for each sample that the batch was taken to have.

    Returns:
        The same.

    Raises:
        MiscountedError: If the loss has another number of samples.
    """
    if len(losses) != len(weights):
        raise MiscountedError(_miscounted(len(losses), len(weights), COUNT))
    return losses


def checked_losses(losses: Tensor, batch: Batch, *, else_type: str = COUNT) -> Tensor:
    """One loss for each sample, where the batch itself says that it may have so many.

    Args:
        losses: What the user's function returned.
        batch: What it was given.
        else_type: What to type where the number is right although nothing in the batch says so.

    Returns:
        The same, of shape `(b,)`.

    Raises:
        MiscountedError: If there are more or fewer.
    """
    count = len(one_each(losses))
    if count != length_of(batch) and count not in possible_lengths(batch):
        raise MiscountedError(_miscounted(count, length_of(batch), else_type))
    return losses


def counted(data: Iterable[Batch], losses: Callable[[Batch], Tensor]) -> tuple[int, ...]:
    """Number of samples in each batch, by the number of its losses: one forward pass over the data.

    Args:
        data: The batches.
        losses: Of one batch.

    Returns:
        Samples in each batch.
    """
    return tuple(len(checked_losses(losses(batch), batch)) for batch in data)


def _miscounted(values: int, samples: int, else_type: str) -> str:
    several = samples and values > samples and not values % samples
    advice = "If several terms belong to one sample, sum them: loss.reshape(b, -1).sum(1). " if several else ""
    return (
        f"The loss returned {values} values for a batch of {samples} samples; needed one each, so sum over all "
        f"dimensions but that of the samples. {advice}If {values} is right (graphs, sequences, labelled nodes only): "
        f"{else_type}."
    )


def _checked_scalar(value: Tensor, kind: str, weights: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim:
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise LossShapeError(
            f"The {kind} returned {came} for {len(weights)} weights; needed a scalar, the weighted sum over the batch. "
            f"Return (weights * losses).sum(), or pass the plain function if every sample has its own loss."
        )
    return value


@contextlib.contextmanager
def _fitting(weights: Tensor) -> Iterator[None]:
    """Says of a coupled loss whose terms are not as many as its weights what to type."""
    try:
        yield
    except RuntimeError as error:
        if f"({len(weights)})" not in str(error) or "must match the size of tensor" not in str(error):
            raise
        raise LossShapeError(
            f"The loss got {len(weights)} weights, one for each sample that the batch seems to have, and failed: "
            f"{error}. If the batch has another number of samples (graphs, sequences, labelled nodes only), {COUNT}."
        ) from error
