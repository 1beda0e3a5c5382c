"""A record of a recipe's training, made by running it once more."""

from __future__ import annotations

import math

import torch
from jaxtyping import Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._autodiff.params import wide
from .._types import Params
from .optimizer_rule import Lately, ParameterRecord, Rule, digest_of, weight_decay
from .optimizers import Adam, AdamW
from .record import TrainingRecord
from .trajectory import Point, Trajectory


def recorded_training(course: Trajectory, ones: Shaped[Tensor, " n"], segments: int) -> TrainingRecord:
    """Runs a training as `Recipe.train` does, and adds up what it did.

    Args:
        course: All steps.
        ones: The sample weights of an ordinary training.
        segments: Equal parts whose ends are kept, too; 0 for none.

    Returns:
        A record of where it ends.
    """
    rule, weights = Rule.of(course.optimizer), ones.unsqueeze(0)
    point = course.start({name: part.unsqueeze(0) for name, part in course.theta.items()})
    length = math.ceil(len(course) / segments) if segments else len(course)
    mean, kept = {name: torch.zeros_like(part) for name, part in point.theta.items()}, []
    total, ended = (
        torch.zeros(2).double(),
        torch.zeros(2).double(),
    )  # of learning rates: with clipping, and without, as for weight decay
    lately = Lately()
    for step in tqdm(range(len(course)), desc="recording", unit="step", disable=None, leave=False):
        batch, part = course.part(step, weights)
        gradient, factor = course.gradient(point, step, batch, part)
        square = torch.stack([each.double().square().sum() for each in gradient.values()]).sum()
        lately.add(float(square / factor.double().square()))  # tensors: a gradient that overflowed is clipped to 0
        point = course.stepped(point, step, gradient)
        total = total + course.optimizer.lr * course.rates[step] * torch.tensor([float(factor), 1.0])
        mean = _averaged(mean, gradient, course.optimizer)
        if segments and ((step + 1) % length == 0 or step + 1 == len(course)):
            kept.append(_parts(course, point, mean, step + 1, total - ended, valued=True))
            ended = total
    parts = _parts(course, point, mean, len(course), total, valued=False)
    origin = f"kept by the recipe ({course.optimizer}, {len(course)} steps)"
    size = course.part(0, weights)[1].shape[1]
    return TrainingRecord(rule, parts, len(course), origin, segments=tuple(kept), batch_size=size, length=lately.length)


def _averaged(mean: Params, gradient: Params, optimizer: object) -> Params:
    if not isinstance(optimizer, (Adam, AdamW)):
        return mean
    return {name: torch.lerp(part, gradient[name], 1 - optimizer.betas[1]) for name, part in mean.items()}


def _parts(
    course: Trajectory, point: Point, mean: Params, count: int, total: Shaped[Tensor, "2"], *, valued: bool
) -> tuple[ParameterRecord, ...]:
    found, rule, (rate, plain) = [], course.optimizer, total.tolist()
    taken = weight_decay(rule, point.theta)
    for name, part in point.theta.items():
        value = part[0].clone() if valued else None
        if not isinstance(rule, (Adam, AdamW)):
            found.append(ParameterRecord(digest_of(part[0]), rate, value=value))
            continue
        left = 1 - rule.betas[1] ** count
        square, slow = (wide(each[name][0]) / left for each in (point.state["square"], mean))
        found.append(ParameterRecord(digest_of(part[0]), rate, square, slow, plain * taken[name], value))
    return tuple(found)
