"""Gradient steps on the loss of chosen samples: away from them (`undo`), towards others (`amplify`), or both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral

import torch
from tqdm.auto import tqdm

from .._autodiff.copies import copied
from .._autodiff.functional import isolated
from .._autodiff.params import put
from .._require import listed, require, require_question, require_risk
from .._results.ids import row_of
from .._risk.base import AbstractRisk
from .._training.optimizers import Adam
from .._types import Id, Objective, Params
from .guard import Guard
from .outcome import Outcome, first_order, watched

TOLERANCE = 0.01  # of the guard: held-out loss and word similarities of skip-gram are then still what they were


def undo(
    risk: AbstractRisk,
    ids: Iterable[Id],
    *,
    steps: int,
    lr: float,
    amplify: Iterable[Id] = (),
    watch: Objective | None = None,
    guard: Objective | None = None,
    tolerance: float = TOLERANCE,
) -> Outcome:
    """Ascends the loss of the chosen samples with Adam, the paper's mitigation, and stops before the model is ruined.

    The loss of a sample has no upper end, so enough steps ruin any model. A guard is measured after every step; the
    first step that raises it too far is taken back, and the walk ends there. It is the loss of all other samples where
    the risk knows its value, as skip-gram does. Elsewhere nothing is guarded until you say what, for example
    `guard=cf.mean_over(held_out, loss)`. `unlearn` and `remove` need no such care.

    Args:
        risk: What training minimised, and where it ended.
        ids: The samples to undo; each counts once.
        steps: How many, at most.
        lr: Adam's learning rate.
        amplify: Samples to amplify at the same time: each step descends their mean loss less that of the others.
        watch: An objective to record after every step.
        guard: A scalar objective that must not rise; of a quality, give the negative.
        tolerance: By what share of its value before the guard may rise; `math.inf` turns it off.

    Returns:
        The new model; `steps` and `stopped` say where and why the walk ended, `predicted` is the first-order change of
        the watched objective along it.

    Raises:
        IdError: If an id is unknown.
        ObjectiveError: If the guard is not one number.
        ValueError: If there is nothing to undo, no step to take, or a sample both to undo and to amplify.

    Example:
        >>> from crossfluence import Risk, batches, mean_over
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> x, y = torch.ones(2, 1), torch.tensor([[0.0], [1.0]])
        >>> with torch.no_grad():
        ...     _ = net.weight.fill_(0.5)  # the least-squares solution
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> risk = Risk(net, loss, batches(x, y))
        >>> outcome = undo(risk, [1], steps=9, lr=0.1, guard=mean_over(batches(x, y), loss), tolerance=0.2)
        >>> outcome.steps, round(outcome.model.weight.item(), 2)
        (2, 0.3)
        >>> outcome.stopped
        'Step 3 of 9 was taken back: the guard would rise from 0.25 to 0.34018; tolerance=0.2 allows 0.3.'

    References:
        Silva, Chopra and Gombolay, AISTATS 2022, section 5.
    """
    away, towards = listed(ids, "the samples of undo"), listed(amplify, "the samples of undo")
    return _walk(risk, away, towards, steps=steps, lr=lr, watch=watch, guard=guard, tolerance=tolerance)


def amplify(
    risk: AbstractRisk,
    ids: Iterable[Id],
    *,
    steps: int,
    lr: float,
    watch: Objective | None = None,
    guard: Objective | None = None,
    tolerance: float = TOLERANCE,
) -> Outcome:
    """Descends the loss of the chosen samples with Adam, the paper's augmentation; guarded as `undo` is.

    Args:
        risk: What training minimised, and where it ended.
        ids: The samples to amplify; each counts once.
        steps: How many, at most.
        lr: Adam's learning rate.
        watch: An objective to record after every step.
        guard: A scalar objective that must not rise; see `undo`.
        tolerance: By what share of its value before the guard may rise; `math.inf` turns it off.

    Returns:
        The new model; `steps` and `stopped` say where and why the walk ended, `predicted` is the first-order change of
        the watched objective along it.

    Raises:
        IdError: If an id is unknown.
        ObjectiveError: If the guard is not one number.
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
    towards = listed(ids, "the samples of amplify")
    return _walk(risk, [], towards, steps=steps, lr=lr, watch=watch, guard=guard, tolerance=tolerance)


def _walk(
    risk: AbstractRisk,
    away: list[Id],
    towards: list[Id],
    *,
    steps: int,
    lr: float,
    watch: Objective | None,
    guard: Objective | None,
    tolerance: float,
) -> Outcome:
    """Adam on the mean loss of some samples less that of others, as far as the guard lets it."""
    require_risk(risk, AbstractRisk, "amplify" if not away else "undo")
    _ = [require_question(asked, "watch= and guard=") for asked in (watch, guard) if asked is not None]
    require(steps, Integral, "steps=", "a whole number", "steps=10")
    name = " and ".join(verb for verb, ids in (("undo", away), ("amplify", towards)) if ids)
    if not name or steps < 1:
        raise ValueError(f"Got {len(away) + len(towards)} samples and {steps} steps; needed at least one of each.")
    model, optimizer = copied(risk.model), Adam(lr)
    with isolated():
        risk.check()
        gradient = _pull(risk, away, towards)
        allowed = Guard.of(risk, [*away, *towards], model, guard, tolerance)
        theta, history, stopped = dict(risk.theta), [watched(watch, model)], ""
        state = optimizer.start(theta)
        for count in tqdm(range(1, steps + 1), desc=name, unit="step", disable=None, leave=False):
            stepped, state = optimizer.step(theta, gradient(theta), state, count, 1.0)
            put(stepped, model)
            if too_far := allowed.refusal(stepped):
                put(theta, model)
                stopped = f"Step {count} of {steps} was taken back: {too_far}."
                break
            theta = stepped
            history.append(watched(watch, model))
        predicted = first_order(risk, watch, risk.layout.flatten(theta) - risk.layout.flatten(risk.theta))
    values = torch.stack([value for _, value in history])
    return Outcome(
        model, history[0][0], values[0], values[-1], predicted, values, f"{name}(steps={steps}, lr={lr:g})",
        stopped or f"All {steps} steps were taken; what was guarded is {allowed.name}.",
    )  # fmt: skip


def _pull(risk: AbstractRisk, away: list[Id], towards: list[Id]) -> Callable[[Params], Params]:
    """The gradient of the mean loss of some samples less that of others, l2 term excluded."""
    rows = {row_of(label, risk.rows): label for label in away}
    if both := rows.keys() & {row_of(label, risk.rows) for label in towards}:
        raise ValueError(f"Sample {rows[min(both)]!r} is both to be undone and to be amplified; choose one.")
    chosen = [(sign, risk.only(ids)) for sign, ids in ((-1, away), (1, towards)) if ids]
    parts = [(sign * risk.n / float(only.weights.sum()), only) for sign, only in chosen]  # an id counts once

    def gradient(theta: Params) -> Params:
        shrinking = risk.decay * risk.layout.flatten(theta)
        return risk.layout.unflatten(sum((s * (only.field(theta) - shrinking) for s, only in parts), 0 * shrinking))

    return gradient
