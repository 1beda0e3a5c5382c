"""A record made in the user's own training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .optimizer_rule import Lately, ParameterRecord, decay_of_group, digest_of, rule_of, second_moment
from .record import TrainingRecord

STILL = 0.1  # share of steps without a learning rate, above which the report says so


class Recorder:
    """Watches a PyTorch optimizer while it trains: one line before each step, and one after it.

    Call `before_step()` once gradients are complete (after the last `backward` of an accumulation, and after
    `scaler.unscale_(optimizer)` if there is a GradScaler) and before they are clipped, and `after_step()` after
    `optimizer.step()` and before the scheduler's step. A step that a GradScaler leaves out is not counted. Holds one
    number more for each parameter, for Adam and AdamW.

    Args:
        optimizer: `torch.optim.AdamW`, `Adam` or `SGD`, with any groups and schedule.
        segments: In how many equal parts the record is to know the training, besides as a whole; each holds three
            numbers for each parameter. Needs `steps`.
        steps: How many there will be, for segments.
        batch_size: Samples in a step, accumulation included: then another loss than was trained on is noticed later.

    Raises:
        UnsupportedError: If none of the formulas describes the optimizer.
        ValueError: If segments are asked for without the number of steps.

    Example:
        >>> net, x = torch.nn.Linear(2, 1), torch.ones(4, 2)
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        >>> recorder = Recorder(optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     net(x).square().mean().backward()
        ...     recorder.before_step()
        ...     _ = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        ...     optimizer.step()
        ...     recorder.after_step()
        >>> recorder.record().steps
        3
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        segments: int = 0,
        steps: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.rule = rule_of(optimizer)
        if segments and not steps:
            raise ValueError(f"Got segments={segments} without steps=; needed how many steps there will be.")
        self.optimizer, self.steps, self.batch_size, self._lately = optimizer, 0, batch_size, Lately()
        self.length = -(-steps // segments) if segments and steps else 0
        self.begun = max((int(float(state.get("step", 0))) for state in optimizer.state.values()), default=0)
        self.totals: dict[Tensor, list[float]] = {}  # learning rates and decay, clipping counted
        self.means: dict[Tensor, Tensor] = {}
        self.parts: list[tuple[ParameterRecord, ...]] = []
        self._ended: dict[Tensor, list[float]] = {}
        self.left_out = self.stood_still = 0
        self._waiting: tuple[float, list[float]] | None = None
        self._stepped = False
        optimizer.register_step_post_hook(self._note)

    def before_step(self, norm: float | None = None) -> None:
        """Notes how long the gradient is before it is clipped, and the learning rates.

        Args:
            norm: Of the gradient before it was clipped, where that was done already.
        """
        self._waiting, self._stepped = (self._norm() if norm is None else norm, self._rates()), False

    def after_step(self) -> None:
        """Adds the step up, if it was taken.

        Raises:
            DataError: If `before_step()` was not called before, or the learning rate changed in between.
        """
        if self._waiting is None:
            raise DataError("Got after_step() without before_step(); needed both in every step, in this order.")
        (before, rates), self._waiting = self._waiting, None
        if not self._stepped:  # a GradScaler left it out
            self.left_out += 1
            return
        if rates != self._rates():
            raise DataError(
                f"The learning rate changed between before_step() and after_step(), from {rates} to {self._rates()}. "
                f"Call scheduler.step() after after_step(), once for each step."
            )
        if min(rates) < 0:
            raise DataError(
                f"Got learning rates of {rates} in step {self.steps + 1}; needed none below zero. A schedule that is "
                f"stepped past its end, by scheduler.step() twice in a step for one, gives such: call it once."
            )
        self.stood_still += not any(rates)
        after = self._norm()
        factor = min(1.0, after / before) if before else 1.0
        self.steps += 1
        self._lately.add(before**2)
        for group in self.optimizer.param_groups:
            for part in group["params"]:
                total = self.totals.setdefault(part, [0.0, 0.0])
                total[0] += float(group["lr"]) * factor
                total[1] += float(group["lr"]) * decay_of_group(self.rule, group)
                self._average(part, group)
        if self.length and self.steps % self.length == 0:
            self._end_segment()

    def record(self) -> TrainingRecord:
        """The record of the training until now.

        Returns:
            A record of the model as it is.

        Raises:
            DataError: If no step was taken.
        """
        if self.left_out and not self.steps:
            raise DataError(
                f"The {type(self.optimizer).__name__} that the recorder watches took none of {self.left_out} steps. "
                f"Needed Recorder(optimizer) of the very optimizer whose step() is called, between before_step() and "
                f"after_step()."
            )
        if self.length and self._ended != self.totals:
            self._end_segment()
        parts = tuple(self._part(part, group, self.totals[part]) for part, group in self._all()) if self.steps else ()
        origin = f"kept in the training itself ({self.rule.name}, {self.steps} steps)"
        return TrainingRecord(
            self.rule, parts, self.steps, origin, self._unknown(), tuple(self.parts), self.batch_size,
            self._lately.length,
        )  # fmt: skip

    def _unknown(self) -> tuple[str, ...]:
        """Sentences about what the record does not know, and what looks wrong."""
        found = []
        if self.begun:
            found.append(f"The recorder began after {self.begun} steps, whose learning rates it does not know.")
        if self.stood_still > STILL * self.steps:
            found.append(
                f"The learning rate was zero in {self.stood_still} of {self.steps} steps: if that was not meant, look "
                f"whether scheduler.step() is called twice in a step."
            )
        return tuple(found)

    def _end_segment(self) -> None:
        part_of: list[ParameterRecord] = []
        for part, group in self._all():
            rate, decay = (
                now - then for now, then in zip(self.totals[part], self._ended.get(part, (0.0, 0.0)), strict=True)
            )
            part_of.append(self._part(part, group, [rate, decay], value=part.detach().clone()))
        self.parts.append(tuple(part_of))
        self._ended = {part: list(total) for part, total in self.totals.items()}

    def _part(self, part: Tensor, group: Any, total: list[float], value: Tensor | None = None) -> ParameterRecord:
        if self.rule.name == "SGD":
            return ParameterRecord(digest_of(part), total[0], value=value)
        mean = self.means.get(part, torch.zeros_like(part.detach())) / (1 - group["betas"][1] ** self.steps)
        square = second_moment(self.optimizer, part, group)
        return ParameterRecord(digest_of(part), total[0], square.clone(), mean, total[1], value)

    def _average(self, part: Tensor, group: Any) -> None:
        if self.rule.name == "SGD" or part.grad is None:
            return
        gradient, beta = part.grad.detach(), float(group["betas"][1])
        if self.rule.name == "Adam" and group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * part.detach()
        self.means.setdefault(part, torch.zeros_like(part.detach())).lerp_(gradient.to(part.dtype), 1 - beta)

    def _all(self) -> list[tuple[Tensor, Any]]:
        return [(part, group) for group in self.optimizer.param_groups for part in group["params"]]

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _norm(self) -> float:
        squares = [part.grad.detach().float().square().sum() for part, _ in self._all() if part.grad is not None]
        return float(sum(squares)) ** 0.5

    def _note(self, *_: Any) -> None:
        self._stepped = True
