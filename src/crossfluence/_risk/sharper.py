"""Questions in double precision, where the risk itself is computed so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from .._autodiff.functional import bind
from .._autodiff.precision import in_double
from .._types import Objective, Params
from .base import AbstractRisk
from .double import same_values
from .objectives import EachOf, MeanOver, Queries, evaluate, questions


def sharper_questions(objective: Objective, risk: AbstractRisk, fine: AbstractRisk) -> Iterator[Queries]:
    """Values and gradients of an objective, in the precision that its answers are solved in.

    The slope of a loss that a model is sure of is a difference of nearly equal numbers. In single precision rounding
    may be all that is left of it, however well the rest is computed.

    Args:
        objective: Any callable, or what `mean_over` and `each_of` make.
        risk: The trained model.
        fine: The same in double precision, or the risk itself.

    Returns:
        As from `questions`; in the model's own precision where the objective does not run in another one, or has
        another value there.
    """
    if fine is not risk and _agrees(objective, risk, fine):
        return questions(_widened(objective), fine.model, fine.theta)
    return questions(objective, risk.model, risk.theta)


def _widened(objective: Objective) -> Objective:
    if not isinstance(objective, (MeanOver, EachOf)):
        return in_double(objective)
    wide = copy.copy(objective)  # its batches were looked at when it was made
    object.__setattr__(wide, "loss", in_double(objective.loss))
    return wide


def _agrees(objective: Objective, risk: AbstractRisk, fine: AbstractRisk) -> bool:
    """True if the objective, or its first batch, has the same values in both precisions."""
    try:
        few = _few(objective)
        return same_values(_bound(few, risk.model), _bound(in_double(few), fine.model), risk.theta, fine.theta)
    except Exception:  # whatever the user's code says of double precision; what is wrong in its own is said there
        return False


def _few(objective: Objective) -> Objective:
    if not isinstance(objective, (MeanOver, EachOf)):
        return objective
    loss, first = objective.loss, next(iter(objective.batches))
    return lambda model: loss(model, first)


def _bound(objective: Objective, model: nn.Module) -> Callable[[Params], Tensor]:
    return bind(lambda module: evaluate(objective, module)[1], model)
