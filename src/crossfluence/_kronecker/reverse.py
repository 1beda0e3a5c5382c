"""Plain reverse passes, which serve every model that can be trained: no second derivative, no forward mode, no vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from .._autodiff.functional import VECTORS_AT_ONCE, bind, recorded, strided
from .._types import Batch, Params


def tracked(
    function: Callable[[nn.Module, Batch], Tensor], model: nn.Module, params: Params, batch: Batch
) -> tuple[Tensor, Params]:
    """A function of a model, with a graph, and what to differentiate it by.

    Args:
        function: Of the model and a batch.
        model: Its own parameters are not touched; hooks of theirs do not run.
        params: Which of them are differentiated.
        batch: One of the data.

    Returns:
        The value, and copies of the parameters that it was computed from, sharing memory; of a scripted model, its
        own parameters, which cannot be exchanged.
    """
    if not params:
        return function(model, batch), {}
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        named = dict(model.named_parameters())
        return function(model, batch), {name: named[name] for name in params}
    copies = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    return bind(function, model)(copies, batch), copies


def gradient_by_name(values: Tensor, direction: Tensor, params: Params) -> Params:
    """The derivative of some values along a direction of them; zeros where they do not depend on a parameter.

    Args:
        values: With a graph, which is freed.
        direction: Of their shape.
        params: From `tracked`.

    Returns:
        Named tensors, none of them sparse.
    """
    if not values.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    found = torch.autograd.grad(values, list(params.values()), direction.to(values), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if part is None else strided(part)
        for (name, tensor), part in zip(params.items(), found, strict=True)
    }


def each_sample(values: Shaped[Tensor, " b"], params: Params, *, vectorised: bool) -> Params:
    """The derivative of each of some values.

    Args:
        values: One for each sample, with a graph, which is kept.
        params: From `tracked`.
        vectorised: Whether to try several of them at a time.

    Returns:
        Named tensors with b in front; without parameters that no value depends on.
    """
    if not values.requires_grad or not params:
        return {}
    found = (_together(values, params) if vectorised else None) or _one_by_one(values, params)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _together(values: Tensor, params: Params) -> dict[str, list[Tensor]] | None:
    found: dict[str, list[Tensor]] = {}
    try:
        for units in torch.eye(len(values), dtype=values.dtype, device=values.device).split(VECTORS_AT_ONCE):
            _collect(found, params, _back(values, params, units, is_grads_batched=True))
    except Exception:  # a backward pass of the user's own that reads numbers, writes in place or has no rule
        return None
    return found


def _one_by_one(values: Tensor, params: Params) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for value in values:
        parts = _back(value, params, None)
        _collect(found, params, [None if part is None else strided(part).unsqueeze(0) for part in parts])
    return found


def _back(values: Tensor, params: Params, cotangents: Tensor | None, **settings: Any) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(
        values, list(params.values()), cotangents, retain_graph=True, allow_unused=True, **settings
    )


def _collect(found: dict[str, list[Tensor]], params: Params, parts: Any) -> None:
    for name, part in zip(params, parts, strict=True):
        if part is not None:
            found.setdefault(name, []).append(part.detach())


def weighted_gradient(
    function: Callable[[nn.Module, Batch], Tensor], model: nn.Module, params: Params, batch: Batch, weights: Tensor
) -> Params:
    """The derivative of a weighted sum over samples.

    Args:
        function: `(model, batch) -> (b,)`.
        model: The module.
        params: Which of its parameters to differentiate by.
        batch: One of the data.
        weights: Shape `(b,)`.

    Returns:
        Named tensors, none of them sparse.
    """
    with recorded():
        values, copies = tracked(function, model, params, batch)
        return gradient_by_name(values, weights, copies)
