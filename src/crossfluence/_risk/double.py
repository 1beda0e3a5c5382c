"""The same risk in double precision, for small problems whose loss can be computed so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils._pytree import tree_map

from .._autodiff.copies import copied, frozen_copy
from .._autodiff.functional import all_finite, bind, evaluated, isolated
from .._autodiff.params import largest_eps, trained_parameters
from .._autodiff.precision import in_double as computed_in_double
from .._checks.looks import ELSEWHERE, ROUNDINGS
from .._losses import AbstractLoss, FieldLoss, OnOutputs, PerSample, WeightedLoss
from .._types import Batch, Params
from .products import AbstractBatchedRisk

DENSE_PARAMETERS = 3_000  # 72 MB and some seconds of factorising
DENSE_WORK = 20_000_000  # samples times parameters: products for the dense matrix, well under a minute on a laptop
DIFFERENT = 0.01  # share by which the loss of a batch may differ in the two precisions


Rebuilt = TypeVar("Rebuilt", bound=AbstractBatchedRisk)


def in_double(risk: Rebuilt) -> Rebuilt:
    """The same risk in double precision, if the problem is small; the risk itself if its loss refuses.

    Args:
        risk: A trained model.

    Returns:
        A risk of a copy of the model, whose loss casts every batch; it reads the same data.
    """
    small = risk.p <= DENSE_PARAMETERS and risk.n * risk.p <= DENSE_WORK
    rough = any(tensor.dtype != torch.float64 for tensor in risk.theta.values())
    loss = _widened(risk.kind)
    if not small or not rough or loss is None:
        return risk
    with isolated():
        for each in (loss, _everywhere(loss)):
            with contextlib.suppress(Exception):  # the user's code may refuse double precision in any way
                made = _made(risk, each)
                if _agree(risk, made):
                    return made
    return risk  # its own precision has to do


def bound_total(kind: AbstractLoss, model: nn.Module) -> Callable[[Params, Params, Batch, Tensor], Tensor]:
    """The weighted sum of a batch's losses as a function of parameters, frozen parameters, batch and weights.

    Args:
        kind: The loss.
        model: Whose parameters are exchanged.

    Returns:
        A function of four arguments.
    """
    if isinstance(kind, FieldLoss):
        return bind(kind.total, model, frozen_copy(model))
    one = bind(lambda module, batch, weights: kind.total(module, module, batch, weights), model)
    return lambda theta, frozen, batch, weights: one(theta, batch, weights)


def _made(risk: Rebuilt, loss: AbstractLoss) -> Rebuilt:
    model = copied(risk.model).double()
    named = trained_parameters(model)
    made = risk.rebuilt(model, loss, {name: named[name] for name in risk.theta}, risk.weights.double())
    made.look()
    return made


def _agree(risk: Rebuilt, made: Rebuilt) -> bool:
    """True if the first batch has a loss and a gradient in double precision, and the loss is the same."""
    _, batch, weights = next(risk.passes())
    value = made.total(made.theta, made.theta, batch, weights.double())
    slopes = grad(made.total)(made.theta, made.theta, batch, weights.double()).values()
    return value.dtype == torch.float64 and all(map(all_finite, slopes)) and same_values(
        lambda theta: evaluated(lambda: risk.total(theta, theta, batch, weights)),
        lambda theta: evaluated(lambda: made.total(theta, theta, batch, weights.double())),
        risk.theta, made.theta,
    )  # fmt: skip


def same_values(
    rough: Callable[[Params], Tensor], fine: Callable[[Params], Tensor], theta: Params, wide: Params
) -> bool:
    """True if a function has the same values in two precisions, beyond what rounding of its terms explains.

    Args:
        rough: In the parameters' own precision.
        fine: In double precision.
        theta: The parameters.
        wide: The same, in double precision.

    Returns:
        False for a function that draws other random numbers in another precision, for instance.
    """
    one, other = rough(theta).double(), fine(wide).double()
    gap, size = (one - other).abs(), torch.maximum(one.abs(), other.abs())
    if bool((gap <= DIFFERENT * size).all()):
        return True
    elsewhere = [rough({name: factor * part for name, part in theta.items()}).double().abs() for factor in ELSEWHERE]
    terms = torch.stack([size, *elsewhere]).nan_to_num(posinf=0.0).amax(0)  # those that cancel in a value near zero
    return bool((gap <= torch.maximum(DIFFERENT * size, ROUNDINGS * largest_eps(theta) * terms)).all())


def _widened(kind: AbstractLoss) -> AbstractLoss | None:
    """The same loss, casting its batch; `None` for kinds that others have made."""
    if isinstance(kind, OnOutputs):
        outputs, criterion, tokens = kind.outputs, kind.criterion, kind.tokens
        if tokens is not None:
            each = tokens.losses
            tokens = replace(tokens, losses=lambda z, batch: each(z, wider(batch)))
        return OnOutputs(lambda m, batch: outputs(m, wider(batch)), lambda z, batch: criterion(z, wider(batch)), tokens)
    if isinstance(kind, FieldLoss):
        moving = kind.fn
        return replace(kind, fn=lambda m, still, batch, weights: moving(m, still, wider(batch), weights))
    if isinstance(kind, WeightedLoss):
        coupled = kind.fn
        return replace(kind, fn=lambda m, batch, weights: coupled(m, wider(batch), weights))
    if isinstance(kind, PerSample):
        single = kind.fn
        return PerSample(lambda m, batch: single(m, wider(batch)))
    return None


def _everywhere(loss: AbstractLoss) -> AbstractLoss:
    """The same loss, also where its function refers to single precision, such as class weights."""
    functions = [name for name in ("fn", "outputs", "criterion") if callable(getattr(loss, name, None))]
    return replace(loss, **{name: computed_in_double(getattr(loss, name)) for name in functions})  # pyright: ignore


def wider(batch: Any) -> Any:
    """A batch with its floating-point tensors in double precision.

    Args:
        batch: A tensor, or tuples, lists and dictionaries that hold tensors.

    Returns:
        The same structure.
    """
    return tree_map(lambda part: part.double() if _floats(part) else part, batch)


def _floats(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()
