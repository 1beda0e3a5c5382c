"""Questions in double precision, where the risk itself is computed so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from .._autodiff.functional import bind
from .._autodiff.precision import in_double, in_double_after
from .._types import Objective, Params
from .base import AbstractRisk
from .double import same_values
from .objectives import EachOf, MeanOver, Parameters, Queries, evaluate, questions
from .risk import Risk

Asked = TypeVar("Asked", bound=Objective)
Point: TypeAlias = tuple[nn.Module, Params]
Widen: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


def sharper_questions(objective: Objective, risk: AbstractRisk, fine: AbstractRisk) -> Iterator[Queries]:
    """Values and gradients of an objective, in the precision that its answers are solved in.

    The slope of a loss that a model is sure of is a difference of nearly equal numbers. In single precision rounding
    may be all that is left of it, however well the rest is computed.

    Args:
        objective: Any callable, or what `mean_over` and `each_of` make.
        risk: The trained model.
        fine: The same in double precision, or the risk itself.

    Returns:
        As from `questions`; of a larger model in double precision from its outputs on; in the model's own precision
        where the objective does not run in another one, or has another value there.
    """
    here, there = (risk.model, risk.theta), (fine.model, fine.theta)
    if fine is not risk and _agrees(objective, here, there, in_double):
        return questions(_widened(objective, in_double), *there)
    asked = sharper(objective, risk.model, risk.theta) if isinstance(risk, Risk) else objective
    return questions(asked, *here)


def sharper(objective: Asked, model: nn.Module, theta: Params) -> Asked:
    """The same questions of a model in single precision or less, in double precision from its outputs on.

    That is cheap for models of any size, and enough for a loss that the model is sure of.

    Args:
        objective: Any callable, or what `mean_over` and `each_of` make.
        model: The trained module.
        theta: Its trained parameters.

    Returns:
        The objective itself where it does not run so, or has another value.
    """
    able = any(part.dtype != torch.float64 for part in theta.values()) and not isinstance(objective, Parameters)
    wanted = able and _agrees(objective, (model, theta), (model, theta), in_double_after)
    return _widened(objective, in_double_after) if wanted else objective  # pyright: ignore[reportReturnType]


def _widened(objective: Objective, widen: Widen) -> Any:
    if not isinstance(objective, (MeanOver, EachOf)):
        return widen(objective)
    wide = copy.copy(objective)  # its batches were looked at when it was made
    object.__setattr__(wide, "loss", widen(objective.loss))
    return wide


def _agrees(objective: Objective, here: Point, there: Point, widen: Widen) -> bool:
    """True if the objective, or its first batch, has the same values in both precisions."""
    try:
        few = _few(objective)
        return same_values(_bound(few, here[0]), _bound(widen(few), there[0]), here[1], there[1])
    except Exception:  # whatever the user's code says of double precision; what is wrong in its own is said there
        return False


def _few(objective: Objective) -> Objective:
    if not isinstance(objective, (MeanOver, EachOf)):
        return objective
    loss, first = objective.loss, next(iter(objective.batches))
    return lambda model: loss(model, first)


def _bound(objective: Objective, model: nn.Module) -> Callable[[Params], Tensor]:
    return bind(lambda module: evaluate(objective, module)[1], model)
