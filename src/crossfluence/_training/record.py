"""The record of a training: the state of its optimizer at the end, and the sum of its learning rates."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import torch

from .._autodiff.functional import isolated
from .._autodiff.params import wide
from .._horizon.moments import batch_moments
from .._require import require_risk
from .._risk.record import AbstractRecord
from .._risk.risk import Risk
from .._storage.archive import read_archive, stored, write_archive
from .._storage.hashing import content_hash
from .._types import Params
from ..errors import DataError, ResultFileError, StaleError, UnsupportedError
from .optimizer_rule import (
    ParameterRecord,
    Rule,
    decay_of_group,
    digest_of,
    rule_of,
    second_moment,
    weight_decay,
)
from .optimizers import AbstractOptimizer
from .schedules import Schedule, constant

FORMAT = "crossfluence.record/1"


@stored("TrainingRecord")
@dataclass(frozen=True, eq=False)
class TrainingRecord(AbstractRecord):
    r"""The record of a training: all that `Horizon` needs beside the model, its loss and its data.

    A small lasting gradient $\delta$ moves a parameter by $-A\delta$ in all steps together. For SGD
    $A = S/(1 - \text{momentum})$ with S the sum of learning rates, each times the factor by which the gradient was
    clipped; for Adam and AdamW

    $$A = S\,P\,\max(0, 1 - \bar g^2 P^2),\qquad P = 1/(\sqrt{\hat v + \text{eps\_root}} + \text{eps})$$

    with $\hat v$ the second moment and $\bar g$ the running mean of the gradient at the end; the last factor is the
    derivative of Adam's own division. Make one with `from_settings` (the finished model and what everyone knows of
    its training), `recipe.record()`, a `Recorder` in the training itself, or `from_optimizer`.

    Attributes:
        rule: The optimizer's numbers.
        parts: One for each parameter tensor, found again by its content.
        steps: Of the training.
        origin: How the record was made, as a clause.
        unknown: Sentences about what it had to guess.
        segments: The same at the ends of equal parts of the training, from the first to the last.
        batch_size: Samples in a step, where this is known.
        length: Of a step's gradient before it was clipped, a root mean square over the last steps, where it is known.
            `Horizon` compares it with the risk's own gradients: another loss than was trained on is noticed.

    Example:
        >>> from crossfluence import AdamW, Risk, batches
        >>> net, x = torch.nn.Linear(2, 1), torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> risk = Risk(net, lambda model, batch: (model(batch)[:, 0] - batch[:, 0]) ** 2, batches(x))
        >>> record = TrainingRecord.from_settings(risk, optimizer=AdamW(1e-2), steps=100, batch_size=10)
        >>> round(record.parts[0].rate, 6), record.steps
        (1.0, 100)

    References:
        For SGD: Bae, Lin, Lorraine and Grosse, "Training data attribution via approximate unrolled differentiation",
        NeurIPS 2024. Adam's preconditioner on gradients alone: Xia et al., "LESS", ICML 2024.
    """

    rule: Rule
    parts: tuple[ParameterRecord, ...] = field(repr=False)
    steps: int
    origin: str
    unknown: tuple[str, ...] = ()
    segments: tuple[tuple[ParameterRecord, ...], ...] = field(default=(), repr=False)
    batch_size: int | None = None
    length: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise DataError(
                "Got a training record without steps; needed at least one. Call before_step() after backward and "
                "after_step() after optimizer.step(), in every step."
            )
        for part in (*self.parts, *(one for segment in self.segments for one in segment)):
            if (part.square is None) != (self.rule.name == "SGD"):
                came = "without a second moment" if part.square is None else "with a second moment"
                raise DataError(
                    f"Got a record of {self.rule.name} with a parameter {came}; needed one of the optimizer that it "
                    f"names: SGD has none, Adam and AdamW one for each parameter. Make it with recipe.record(), "
                    f"Recorder(optimizer) or TrainingRecord.from_settings(...)."
                )
        rates = [part.rate for part in self.parts]
        if not all(0 <= rate < math.inf for rate in rates) or not any(rates):
            raise DataError(f"Got learning rates that add up to {sorted(set(rates))[:3]}; needed a positive sum.")

    @classmethod
    def from_settings(
        cls,
        risk: Risk,
        *,
        optimizer: AbstractOptimizer,
        steps: int,
        batch_size: int,
        schedule: Schedule = constant,
        clipping: float | None = None,
    ) -> TrainingRecord:
        r"""Rebuilds the record from a finished model and the settings of its training.

        Adam's second moment is taken to be that of random batches at the trained parameters,
        $\hat v = \sigma^2/b + \bar g^2$ with the mean and the variance of the samples' gradients: two passes over the
        data. Wrong settings cost sizes in proportion, and hardly the order.

        Args:
            risk: The trained model with its loss, data and l2.
            optimizer: `SGD`, `Adam` or `AdamW` with the learning rate and the other settings of the training.
            steps: Of the training: batches in an epoch times epochs.
            batch_size: Samples in a step, accumulation included.
            schedule: From the share of training done to a multiplier of the learning rate: `linear`, `cosine`, ...
            clipping: The largest norm of a gradient, if longer ones were clipped.

        Returns:
            A record of this model.

        Raises:
            UnsupportedError: If Adam's batches were all of the data: then the end of a training does not tell its
                second moment; or if samples have no gradients of their own.
            ValueError: If a number is not positive.
        """
        require_risk(risk, Risk, "TrainingRecord.from_settings")
        _require_counts(steps=steps, batch_size=batch_size)
        rule, size = Rule.of(optimizer), min(batch_size, risk.n)
        with isolated():
            squares = means = dict.fromkeys(risk.theta)
            factor = 1.0
            if rule.name != "SGD" or clipping is not None:
                mean, square, factor = batch_moments(risk, size, clipping)
                squares, means = (risk.layout.split(part) for part in (square, mean))
        if rule.name == "SGD":
            squares = means = dict.fromkeys(risk.theta)
        elif size == risk.n:
            raise UnsupportedError(
                f"Got {rule.name} with batch_size={batch_size} for {risk.n} samples: steps of all the data leave no "
                f"trace of the second moment at the end. Use recipe.record(), or a Recorder(optimizer) in the training."
            )
        rate = factor * optimizer.lr * sum(schedule(step / steps) for step in range(steps))
        plain = sum(schedule(step / steps) for step in range(steps)) * optimizer.lr
        taken = weight_decay(optimizer, risk.theta)
        parts = [
            ParameterRecord(digest_of(part), rate, squares[name], means[name], plain * taken[name])
            for name, part in risk.theta.items()
        ]
        origin = f"rebuilt from its settings ({optimizer}, {steps} steps of {batch_size} samples)"
        return cls(rule, tuple(parts), steps, origin)

    @classmethod
    def from_optimizer(cls, optimizer: torch.optim.Optimizer, steps: int, rate: float) -> TrainingRecord:
        """A record of the state of a PyTorch optimizer, such as a checkpoint has it.

        The optimizer's parameters must be those of the finished model. The running mean of the gradient, and how much
        gradients were clipped, are not in its state: Adam's derivative is taken without the former, and the latter
        belongs into `rate`.

        Args:
            optimizer: `torch.optim.AdamW`, `Adam` or `SGD`, after `load_state_dict`.
            steps: Of the training.
            rate: The mean learning rate of all steps: half of the largest for a linear schedule.

        Returns:
            A record of the model that holds these parameters.

        Raises:
            UnsupportedError: If none of the formulas describes the optimizer.
            DataError: If it has no state.
        """
        _require_counts(steps=steps)
        rule = rule_of(optimizer)
        parts = [
            ParameterRecord(
                digest_of(part), rate * steps, None if rule.name == "SGD" else second_moment(optimizer, part, group),
                decay=rate * steps * decay_of_group(rule, group),
            )
            for group in optimizer.param_groups
            for part in group["params"]
        ]  # fmt: skip
        unknown = ["The optimizer's state does not tell how much gradients were clipped."]
        if rule.name != "SGD":
            unknown.append("It holds no slow mean of the gradient: the derivative of Adam's own division is left out.")
        return cls(rule, tuple(parts), steps, f"of an optimizer's state ({rule.name}, {steps} steps)", tuple(unknown))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about how the record was made, and about its guesses."""
        rates = sorted({part.rate for part in self.parts if part.rate})
        shown = f"{rates[0]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g}"
        return (f"The record of the training was {self.origin}; its learning rates add up to {shown}.", *self.unknown)

    @property
    def batch_gradient(self) -> tuple[int | None, float] | None:
        """Samples in a step's batch, and the length of its gradient in the last steps."""
        return None if self.length is None else (self.batch_size, self.length)

    @cached_property
    def content(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A content hash."""
        return content_hash(self.rule, self.parts, self.segments, versions=False)

    def check(self, theta: Params) -> None:
        """Makes sure that these parameters are those of the end of the training.

        Args:
            theta: Of a trained model.

        Raises:
            StaleError: If the record has none of that content.
        """
        self._found(theta)

    def scaling(self, theta: Params) -> Params:
        """A of every parameter.

        Args:
            theta: Of the trained model.

        Returns:
            Named tensors.
        """
        return _scaling(self.rule, self._found(theta), theta)

    def decay(self, theta: Params) -> Params:
        """The sum of learning rates times AdamW's weight decay.

        Args:
            theta: Of the trained model.

        Returns:
            Named tensors.
        """
        return _decay(self._found(theta), theta)

    def earlier(self, theta: Params, count: int) -> Iterator[tuple[Params, Params, Params]]:
        """Segments of the training, from the last to the first.

        Args:
            theta: Of the trained model.
            count: How many; neighbours among those that were kept are joined.

        Yields:
            Parameters at the end of a segment, scaling and decay.

        Raises:
            DataError: If fewer were kept.
        """
        if count > len(self.segments):
            raise DataError(
                f"Got segments={count}; the record keeps {len(self.segments)} segments of the training. Make it with "
                f"recipe.record(segments={count}), or Recorder(optimizer, segments={count}, steps=...): settings alone "
                f"do not tell where a training was before its end."
            )
        places = self._places(theta)
        for segment in reversed(joined(self.segments, count)):
            parts = {name: segment[place] for name, place in places.items()}
            values = {name: theta[name] if part.value is None else part.value for name, part in parts.items()}
            yield values, _scaling(self.rule, parts, theta), _decay(parts, theta)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the record to one safetensors file, atomically.

        Args:
            path: Where to.

        Raises:
            ResultFileError: If the folder cannot be written.
        """
        write_archive(path, self, FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> TrainingRecord:
        """Reads what `save` wrote.

        Args:
            path: The file.
            device: Where the tensors go: that of the model.

        Returns:
            An equal record.

        Raises:
            ResultFileError: If the file is missing, damaged or not a record.
        """
        found = read_archive(path, FORMAT, device)
        if not isinstance(found, cls):
            raise ResultFileError(f"{os.fspath(path)} holds a {type(found).__name__}; needed a TrainingRecord.")
        return found

    def _places(self, theta: Params) -> dict[str, int]:
        """The place of each parameter's record; tensors of equal content are taken in order."""
        free: dict[str, list[int]] = {}
        for place, part in enumerate(self.parts):
            free.setdefault(part.digest, []).append(place)
        places: dict[str, int] = {}
        for name, part in theta.items():
            waiting = free.get(digest_of(part), [])
            if not waiting:
                raise StaleError(
                    f"The training record is of another model: none of its {len(self.parts)} parameters ended as "
                    f"{name!r} of shape {tuple(part.shape)} is now. Make the record where the training ended, or use "
                    f"TrainingRecord.from_settings(risk, optimizer=..., steps=..., batch_size=...)."
                )
            places[name] = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return places

    def _found(self, theta: Params) -> dict[str, ParameterRecord]:
        return {name: self.parts[place] for name, place in self._places(theta).items()}


def joined(segments: Sequence[tuple[ParameterRecord, ...]], count: int) -> list[tuple[ParameterRecord, ...]]:
    """Neighbouring segments as one, with the optimizer's state and the parameters at the end of the last.

    Args:
        segments: In order, at least as many as there will be.
        count: How many there will be, of about equal length.

    Returns:
        So many segments.
    """
    bounds = [round(place * len(segments) / count) for place in range(count + 1)]
    found = []
    for part in (segments[start:end] for start, end in pairwise(bounds)):
        together = zip(*part, strict=True)  # by parameter
        found.append(
            tuple(
                replace(each[-1], rate=sum(one.rate for one in each), decay=sum(one.decay for one in each))
                for each in together
            )
        )
    return found


def _scaling(rule: Rule, parts: dict[str, ParameterRecord], theta: Params) -> Params:
    found = {name: torch.as_tensor(rule.scaling(part)) for name, part in parts.items()}
    return {name: found[name].to(wide(part)).expand_as(part) for name, part in theta.items()}


def _decay(parts: dict[str, ParameterRecord], theta: Params) -> Params:
    return {name: torch.full_like(wide(part), parts[name].decay) for name, part in theta.items()}


def _require_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"Got {name}={value!r}; needed a whole number of at least 1.")
