"""A callback of the Trainer that keeps what a training did, for estimates that need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from crossfluence import Recorder as OfOptimizer
from crossfluence import TrainingRecord
from crossfluence.errors import DataError


class Recorder:
    """Keeps a record of a `transformers.Trainer`'s training: `Trainer(..., callbacks=[Recorder()])`.

    Then `Risk(model, loss, data, record=recorder.record())`, and `Horizon()` answers in sizes, without a damping. It
    holds one number more for each trained parameter, and no checkpoints.

    Example:
        >>> Recorder().steps
        0
    """

    def __init__(self) -> None:
        self._within: OfOptimizer | None = None
        self._squares: dict[Tensor, Tensor] = {}
        self._hooks: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Does nothing at the Trainer's other events."""
        if name.startswith("on_"):
            return lambda *_, **__: None
        raise AttributeError(name)

    @property
    def steps(self) -> int:
        """Number of steps recorded."""
        return 0 if self._within is None else self._within.steps

    def on_train_begin(self, args: Any, *_: Any, model: nn.Module, optimizer: Any, **__: Any) -> None:
        """Begins to watch the optimiser, and gradients before they are clipped."""
        together = args.train_batch_size * args.gradient_accumulation_steps
        self._within = OfOptimizer(getattr(optimizer, "optimizer", optimizer), batch_size=together)
        self._squares.clear()
        self._hooks = [
            part.register_post_accumulate_grad_hook(self._note) for part in model.parameters() if part.requires_grad
        ]

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Notes the gradient before it was clipped, and after."""
        assert self._within is not None
        self._within.before_step(float(sum(self._squares.values())) ** 0.5)
        self._squares.clear()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Adds the step up."""
        assert self._within is not None
        self._within.after_step()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stops watching."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def record(self) -> TrainingRecord:
        """The record of the training.

        Returns:
            For `Risk(..., record=)`.

        Raises:
            DataError: If there was no training yet.
        """
        if self._within is None:
            raise DataError(
                "The recorder has recorded no training. Type Trainer(..., callbacks=[recorder]), then trainer.train()."
            )
        return self._within.record()

    def _note(self, part: Tensor) -> None:
        """The squared length of a gradient as it has been accumulated so far."""
        assert part.grad is not None
        self._squares[part] = part.grad.detach().float().square().sum()
