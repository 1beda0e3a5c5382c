"""First looks at a question: is it deterministic, and does its derivative belong to its value?"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from .._autodiff.functional import drawing, evaluated
from .._autodiff.params import Layout, largest_eps, moving
from .._autodiff.precision import coarsest_precision
from .._autodiff.ways import moved, step_length, value_and_rows
from .._types import Params
from ..errors import NondeterministicError, ObjectiveError
from .looks import (
    CLOSE,
    COARSE,
    DIRECTIONS,
    DRAWS,
    ELSEWHERE,
    FIRST_DISAGREEMENT,
    ROUNDINGS,
    disagree,
    random_direction,
)
from .state import unmoved


def check_question(
    values: Callable[[Params], Shaped[Tensor, " m"]],
    model: nn.Module,
    theta: Params,
    names: Callable[[], tuple[str, ...] | None],
) -> tuple[Shaped[Tensor, " m"], Shaped[Tensor, "m p"]]:
    """Evaluates questions a few times near the trained parameters, and refuses what would make every score wrong.

    Args:
        values: The questions as a function of the parameters.
        model: The trained module.
        theta: The trained parameters.
        names: Their names, once they were evaluated.

    Returns:
        The questions, and the gradient of each.

    Raises:
        NondeterministicError: If a question is random.
        ObjectiveError: If the derivative of a question does not belong to its value, or it changes the model.
    """
    (here, seen), drew = drawing(
        lambda: unmoved(model, lambda: coarsest_precision(lambda: evaluated(lambda: values(theta))))
    )
    precision = max(seen, largest_eps(theta))
    known, rows = value_and_rows(values, theta)
    rows = Layout.of(theta).flatten(rows)
    if not (here.isfinite().all() and known.isfinite().all() and rows.isfinite().all() and rows.any()):
        return known, rows  # named where it is used
    size = float(here.abs().max())
    if float((here - known).abs().max()) > ROUNDINGS * precision * size and not _repeats(values, theta, precision):
        _refuse_random(here, known)
    for _ in range(DRAWS if drew else 0):  # draws that seldom matter
        again = evaluated(lambda: values(theta))
        if float((here - again).abs().max()) > ROUNDINGS * precision * size:
            _refuse_random(here, again)
    if precision >= COARSE:
        return known, rows
    mask = Layout.of(theta).flatten(moving(model, theta))
    size = known.abs()
    wrong = _disagreeing(values, theta, known, rows, mask, size, precision)
    if wrong.any():  # how large the terms are that cancel in a value near zero
        others = [evaluated(lambda f=f: values({k: f * part for k, part in theta.items()})) for f in ELSEWHERE]
        size = torch.stack([known, *others]).abs().nan_to_num(posinf=0).amax(0)
        wrong = _disagreeing(values, theta, known, rows, mask, size, precision)
    if wrong.any():
        place = int(wrong.nonzero()[0])
        told = names()
        name = f" {told[place]!r}" if told and len(told) > 1 else ""
        raise ObjectiveError(
            f"The derivative of the question{name} does not belong to its value: something inside is computed under "
            f"torch.no_grad(), detached, rounded or chosen by argmax, but moves with the model. Compute all of it with "
            f"gradients; or, if a part is to stay as it is now, compute that part once, outside of the question."
        )
    return known, rows


def _refuse_random(here: Tensor, again: Tensor) -> NoReturn:
    row = int((here - again).abs().argmax())
    raise NondeterministicError(
        f"The question came out as {float(here[row]):.6g} and then {float(again[row]):.6g} at the same model: "
        f"something in it is random. Draw its samples once, beforehand; call model.eval() for dropout."
    )


def _repeats(values: Callable[[Params], Tensor], theta: Params, precision: float) -> bool:
    first, second = (evaluated(lambda: values(theta)) for _ in range(2))
    return bool((first - second).abs().max() <= ROUNDINGS * precision * second.abs().max())


def _disagreeing(
    values: Callable[[Params], Tensor],
    theta: Params,
    here: Tensor,
    rows: Shaped[Tensor, "m p"],
    mask: Shaped[Tensor, " p"],
    size: Shaped[Tensor, " m"],
    precision: float,
) -> Tensor:
    """Queries whose derivatives differ from differences of their values along most directions, beyond rounding."""
    layout = Layout.of(theta)
    flat, gaps = layout.flatten(theta), []
    for seed in range(DIRECTIONS):
        direction = random_direction(layout, theta, seed) * mask
        step = step_length(precision, float(flat.norm()), direction)
        move = layout.split(direction * step)
        ahead, behind = (evaluated(lambda s=s, move=move: values(moved(theta, move, s))) for s in (1, -1))
        difference, derivative = (ahead - behind) / (2 * step), rows @ direction
        bend = (ahead + behind - 2 * here).abs() / step  # what a kink can do at most
        noise = ROUNDINGS * precision * torch.stack([size, ahead.abs(), behind.abs()]).amax(0) / step
        gap = (difference - derivative).abs() - noise - bend
        gaps.append((gap / torch.maximum(difference.abs(), derivative.abs()).clamp_min(1e-300)).cpu())
        if len(gaps) == 1 and float(gaps[0].max()) <= CLOSE * FIRST_DISAGREEMENT:
            break
    return torch.tensor([disagree(column, FIRST_DISAGREEMENT) for column in torch.stack(gaps).T.tolist()])
