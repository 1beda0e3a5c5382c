"""Gradient steps on the loss of chosen samples: away from them (`undo`) or towards them (`amplify`)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from tqdm.auto import tqdm

from .._abstract_risk import AbstractRisk
from .._functional import undisturbed
from .._params import put
from .._types import Id, Objective, Params
from ..training.optimizers import Adam
from .outcome import Outcome, first_order, watched


def undo(risk: AbstractRisk, ids: Iterable[Id], *, steps: int, lr: float, watch: Objective | None = None) -> Outcome:
    """Ascends the loss of the chosen samples with Adam: the paper's mitigation.

    It stops nowhere by itself: too many steps ruin the model, so watch a measure of quality beside the question.
    `unlearn` and `remove` need no such care.

    Args:
        risk: What training minimised, and where it ended.
        ids: The samples to undo.
        steps: How many.
        lr: Adam's learning rate.
        watch: An objective to record after every step.

    Returns:
        The new model; `predicted` is the first-order change of the watched objective along the way that was gone.

    Raises:
        IdError: If an id is unknown.
        ValueError: If there is nothing to undo, or no step to take.

    Example:
        >>> from crossfluence import Risk, batches
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> x, y = torch.ones(2, 1), torch.tensor([[0.0], [1.0]])
        >>> with torch.no_grad():
        ...     _ = net.weight.fill_(0.5)  # the least-squares solution
        >>> risk = Risk(net, lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1), batches(x, y))
        >>> outcome = undo(risk, [1], steps=1, lr=0.1, watch=lambda model: model.weight[0, 0])
        >>> round(outcome.achieved.item(), 3)
        -0.1

    References:
        Silva, Chopra and Gombolay, AISTATS 2022, section 5.
    """
    return _walk(risk, ids, steps, lr, -1, watch, f"undo(steps={steps}, lr={lr:g})")


def amplify(risk: AbstractRisk, ids: Iterable[Id], *, steps: int, lr: float, watch: Objective | None = None) -> Outcome:
    """Descends the loss of the chosen samples with Adam: the paper's augmentation.

    Args:
        risk: What training minimised, and where it ended.
        ids: The samples to amplify.
        steps: How many.
        lr: Adam's learning rate.
        watch: An objective to record after every step.

    Returns:
        The new model; `predicted` is the first-order change of the watched objective along the way that was gone.

    Raises:
        IdError: If an id is unknown.
        ValueError: If there is nothing to amplify, or no step to take.

    Example:
        >>> from crossfluence import Risk, batches
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> x, y = torch.ones(2, 1), torch.tensor([[0.0], [1.0]])
        >>> with torch.no_grad():
        ...     _ = net.weight.fill_(0.5)  # the least-squares solution
        >>> risk = Risk(net, lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1), batches(x, y))
        >>> outcome = amplify(risk, [1], steps=1, lr=0.1, watch=lambda model: model.weight[0, 0])
        >>> round(outcome.achieved.item(), 3)
        0.1
    """
    return _walk(risk, ids, steps, lr, 1, watch, f"amplify(steps={steps}, lr={lr:g})")


def _walk(
    risk: AbstractRisk, ids: Iterable[Id], steps: int, lr: float, sign: int, watch: Objective | None, method: str
) -> Outcome:
    """Adam on the mean loss of the chosen samples, downhill (sign 1) or uphill (-1)."""
    chosen = list(ids)
    if not chosen or steps < 1:
        raise ValueError(f"Got {len(chosen)} samples and {steps} steps; needed at least one of each.")
    model = copy.deepcopy(risk.model)
    optimizer = Adam(lr)
    with undisturbed():
        risk.check()
        only = risk.only(chosen)
        theta = dict(risk.theta)
        state, history = optimizer.start(theta), [watched(watch, model)]
        for count in tqdm(range(1, steps + 1), desc=method.partition("(")[0], unit="step", disable=None, leave=False):
            gradient = _mean_gradient(only, theta, len(chosen))
            theta, state = optimizer.step(theta, {k: sign * v for k, v in gradient.items()}, state, count, 1.0)
            put(theta, model)
            history.append(watched(watch, model))
        predicted = first_order(risk, watch, risk.layout.flatten(theta) - risk.layout.flatten(risk.theta))
    names = history[0][0]
    values = torch.stack([value for _, value in history])
    return Outcome(model, names, values[0], values[-1], predicted, values, method)


def _mean_gradient(only: AbstractRisk, theta: Params, count: int) -> Params:
    """The gradient of the chosen samples' mean loss, l2 term excluded."""
    flat = only.field_at(theta) - only.l2 * only.layout.flatten(theta)
    return only.layout.unflatten(flat * (only.n / count))
