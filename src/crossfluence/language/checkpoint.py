"""The record of a training by the Trainer, from the files that it leaves in a checkpoint."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crossfluence import TrainingRecord
from crossfluence.errors import CrossfluenceError, DataError

from .settings import OPTIMIZER, STATE

CLIPPED = 1.0  # the Trainer's default: the largest norm of a gradient
FOREIGN = (
    CrossfluenceError, OSError, EOFError, KeyError, TypeError, ValueError, ArithmeticError, RuntimeError,
    pickle.UnpicklingError,
)  # fmt: skip  # reading a file of another program, or a damaged one
LATELY = 5  # logged norms of gradients that tell how long they were in the end


@dataclass(frozen=True)
class Course:
    """The rates and gradients of a training, as it logged them.

    Attributes:
        steps: How many.
        rate: The mean learning rate of all steps, clipping counted.
        batch_size: Samples in a step.
        length: Of a step's gradient before it was clipped, in the last steps; `None` where none was logged.
    """

    steps: int
    rate: float
    batch_size: int
    length: float | None


def checkpoint_record(folder: Path, model: nn.Module, n: int) -> TrainingRecord | None:
    """The record of the training that left a checkpoint: its optimizer's second moment, and its learning rates.

    Args:
        folder: Of the kind `checkpoint-500`, with the files optimizer.pt and trainer_state.json.
        model: Loaded from it, with the parameters that were trained.
        n: Samples that it was trained on.

    Returns:
        None where these files are not there, or are those of another optimizer than Adam or AdamW, or of other
        parameters.

    Raises:
        DataError: If the training had another number of samples.
    """
    if not (folder / OPTIMIZER).is_file() or not (folder / STATE).is_file():
        return None
    try:
        told = json.loads((folder / STATE).read_text(encoding="utf-8"))
        each, steps = int(told["train_batch_size"]), round(told["global_step"] / told["epoch"])
    except FOREIGN:
        return None
    if min(each, steps) < 1:
        return None
    _refuse_other_count(n, each, steps)
    try:
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        optimizer = _optimizer(state, model)
        course = course_of(told, state["param_groups"][0], n)
        if optimizer is None:
            return None
        record = TrainingRecord.from_optimizer(optimizer, course.steps, course.rate)
    except FOREIGN:
        return None
    return replace(record, batch_size=course.batch_size, length=course.length)


def _refuse_other_count(n: int, each: int, steps: int) -> None:
    """Refuses as many texts as cannot make up an epoch of so many steps, each of a multiple of a batch."""
    together = range(1, n // each + 2)  # batches in a step: accumulated, or of several devices
    if not any(n // (each * k) <= steps <= -(-n // (each * k)) for k in together):
        raise DataError(
            f"Got {n} texts; the checkpoint's epochs had {steps} steps of {each} texts or a multiple: between "
            f"{each * (steps - 1) + 1} and {each * steps}, or twice as many. Needed the texts that the model was "
            f"fine-tuned on, all of them. Where they were packed or filtered, say how it was trained: --lr RATE."
        )


def _optimizer(state: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer | None:
    """The optimizer with its state, on the model's parameters; `None` where they are not those that it had."""
    groups = state["param_groups"]
    named = [(name, part) for name, part in model.named_parameters() if part.requires_grad]
    parts = [part for _, part in named]
    if sum(len(group["params"]) for group in groups) != len(parts):
        return None
    for order in (_by_decay(model, named), parts):
        shapes = [state["state"].get(place, {}).get("exp_avg_sq", part).shape for place, part in enumerate(order)]
        if shapes == [part.shape for part in order]:
            counts = [0, *torch.tensor([len(group["params"]) for group in groups]).cumsum(0).tolist()]
            decoupled = groups[0].get("decoupled_weight_decay", True)
            kind = torch.optim.AdamW if decoupled else torch.optim.Adam
            found = kind([{"params": order[start:end]} for start, end in pairwise(counts)])
            found.load_state_dict(state)
            return found
    return None


def _by_decay(model: nn.Module, named: Sequence[tuple[str, nn.Parameter]]) -> list[nn.Parameter]:
    """Parameters in the order of the Trainer's two groups: those with weight decay first."""
    from transformers import Trainer

    trainer: Any = None
    decayed = set(Trainer.get_decay_parameter_names(trainer, model))
    first, second = ([part for name, part in named if (name in decayed) == inside] for inside in (True, False))
    return [*first, *second]


def course_of(told: dict[str, Any], group: dict[str, Any], n: int) -> Course:
    """Reads the rates and gradients that a training logged; its first and last rates, where it logged none.

    Args:
        told: Of trainer_state.json, of at least one step.
        group: Of the optimizer.
        n: Samples.

    Returns:
        Their means.

    Example:
        >>> told = {"global_step": 10, "epoch": 2.0, "log_history": []}
        >>> course_of(told, {"lr": 0.0, "initial_lr": 1e-3}, 40)
        Course(steps=10, rate=0.0005, batch_size=8, length=None)
    """
    steps, epochs = int(told["global_step"]), float(told["epoch"])
    logged = [one for one in told.get("log_history", ()) if "learning_rate" in one]
    norms = [float(one["grad_norm"]) for one in logged if isinstance(one.get("grad_norm"), float)]
    norms = [norm for norm in norms if math.isfinite(norm)]
    first = float(group.get("initial_lr", group["lr"]))
    if len(logged) > 1:
        rate = _mean_between([(float(one["step"]), float(one["learning_rate"])) for one in logged], steps)
    else:
        rate = (first + float(group["lr"])) / 2
    factor = sum(min(1.0, CLIPPED / norm) if norm else 1.0 for norm in norms) / len(norms) if norms else 1.0
    last = norms[-LATELY:]
    length = (sum(norm**2 for norm in last) / len(last)) ** 0.5 if last else None
    return Course(steps, rate * factor, max(1, round(n * epochs / steps)), length)


def _mean_between(points: Sequence[tuple[float, float]], steps: int) -> float:
    """The mean over all steps of what is known of some, along lines between them; outside, as the nearest."""
    points = [(0.0, points[0][1]), *points, (float(steps), points[-1][1])]
    area = sum((end - start) * (one + other) / 2 for (start, one), (end, other) in pairwise(points) if end > start)
    return area / steps
