"""Looks at a loss once, before anything is computed: is it deterministic, does its derivative belong to its value?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils._pytree import tree_leaves, tree_map_only

from ._errors import LossShapeError, NondeterministicError, UnsupportedError
from ._functional import all_finite, gradient_of, jvp
from ._losses import AbstractLoss
from ._params import coarseness, fingerprint
from ._types import Batch, Params

DIRECTIONS = 3  # along which value and derivative are compared
DISAGREEMENT = 0.2  # share of the derivative; kinks and rounding stay far below


def probe_loss(
    kind: AbstractLoss,
    model: nn.Module,
    theta: Params,
    total: Callable[[Params, Params, Batch, Tensor], Tensor],
    batch: Batch,
    weights: Tensor,
) -> None:
    """Evaluates one batch a few times and refuses what would make every score wrong.

    Args:
        kind: The loss.
        model: The trained module; left as it was.
        theta: Its trained parameters.
        total: The batch's weighted loss as a function of parameters, frozen parameters, batch and weights.
        batch: The first of the data.
        weights: One for each of its samples.

    Raises:
        NondeterministicError: If the loss is random, or changes the model while it is computed.
        LossShapeError: If the weights do not matter.
        UnsupportedError: If gradients are stopped inside a loss that is not a `FieldLoss`.
    """
    _refuse_batch_statistics(model)
    values = _untouched(model, lambda: [total(theta, theta, batch, weights) for _ in range(2)])
    if not (values[0].isfinite() and values[1].isfinite()):
        return  # the first pass over the data names the batch and the sample
    if not torch.equal(*values):
        raise NondeterministicError(
            f"The loss of one batch came out as {values[0].item():.6g} and then {values[1].item():.6g}: something "
            f"in it is random. Call model.eval() to switch dropout off, and draw augmentations once, beforehand. A "
            f"training that draws from PyTorch's global generators is repeated by Recipe(..., random=True)."
        )
    if not kind.per_sample:
        _refuse_deaf(kind, theta, total, batch, weights)
    if kind.symmetric and coarseness(theta) < 1e-4:
        _refuse_stopped_gradients(theta, lambda point: total(point, point, batch, weights))


def _untouched(model: nn.Module, values: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What the function returns, once it is known to leave the model as it was."""
    before, kept = fingerprint(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = values()
    if fingerprint(model) != before:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(kept[name])
        raise NondeterministicError(
            "Computing the loss changes the model itself: a layer updates its buffers or weights. "
            "Call model.eval(), and drop max_norm from embeddings. The model was put back as it was."
        )
    return found


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            state = "is in training mode" if module.training else "keeps no running statistics"
            advice = "Call model.eval() first" if module.training else "Train it with track_running_stats=True"
            raise NondeterministicError(
                f"{type(module).__name__} {name or type(model).__name__!r} {state}: the samples of a batch would "
                f"be normalised by each other. {advice}, or replace it by GroupNorm or LayerNorm."
            )


def _refuse_deaf(
    kind: AbstractLoss,
    theta: Params,
    total: Callable[[Params, Params, Batch, Tensor], Tensor],
    batch: Batch,
    weights: Tensor,
) -> None:
    """The field along a random direction, near the trained point, must depend on the weights."""
    along, aside = (random_direction(theta, seed) for seed in (0, 1))
    near = {name: theta[name] + 1e-2 * aside[name] for name in theta}

    def field_along(w: Tensor) -> Tensor:
        return jvp(lambda point: total(point, theta, batch, w), near, along)

    if not grad(field_along)(weights).any():
        raise LossShapeError(
            f"The {type(kind).__name__} does not depend on its weights, so every score would be zero. "
            f"Multiply each sample's terms by its weight: (weights * losses).sum()."
        )


def _refuse_stopped_gradients(theta: Params, value: Callable[[Params], Tensor]) -> None:
    """Compares the derivative with differences of the value; a detached part of the loss makes them disagree."""
    eps = torch.finfo(next(iter(theta.values())).dtype).eps
    slope = gradient_of(value, theta)
    size = sum(float(tensor.square().sum()) for tensor in theta.values()) ** 0.5
    length = eps ** (1 / 3) * max(size, 1.0)
    here = float(value(theta))
    shares = []
    for seed in range(DIRECTIONS):
        v = random_direction(theta, seed)
        ahead, behind = (
            float(value({name: theta[name] + sign * length * v[name] for name in theta})) for sign in (1, -1)
        )
        difference = (ahead - behind) / (2 * length)
        bend = abs(ahead + behind - 2 * here) / length  # of the slope over the step: what a kink can do at most
        noise = 100 * eps * max(abs(here), abs(ahead), abs(behind)) / length
        derivative = sum(float((slope[name] * v[name]).sum()) for name in theta)
        gap = abs(difference - derivative) - noise - bend
        shares.append(gap / max(abs(difference), abs(derivative), 1e-300))
    if all(share > DISAGREEMENT for share in shares):
        raise UnsupportedError(
            "The derivative of the loss does not belong to its value: something inside is detached, rounded or has a "
            "gradient of its own. Write it as FieldLoss(fn), fn(model, frozen, batch, weights), with the detached part "
            "computed from frozen; or, if the detached part never moved in training, put it into the batches as data."
        )


def random_direction(theta: Params, seed: int) -> Params:
    """A random direction of length one in parameter space.

    Args:
        theta: Names and shapes.
        seed: Of the draw.

    Returns:
        Named tensors.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(tensor.shape, generator=generator).to(tensor) for name, tensor in theta.items()}
    size = sum(float(tensor.square().sum()) for tensor in drawn.values()) ** 0.5
    return {name: tensor.div_(size) for name, tensor in drawn.items()}


def birthplace(model: nn.Module, total: Callable[[Params], Tensor], theta: Params) -> str:
    """Where a NaN or an infinity comes up first, forwards or backwards: what makes it out of finite numbers.

    Args:
        model: Hooks are put on its modules and taken off again.
        total: A loss as a function of the model's parameters.
        theta: The trained parameters.

    Returns:
        A module, such as `Linear 'encoder.0'`; `the loss`, where all modules are finite; empty, where all is.
    """
    names = {module: f"{type(module).__name__} {name!r}".removesuffix(" ''") for name, module in model.named_modules()}
    calls: list[tuple[nn.Module, list[Tensor], list[Tensor]]] = []

    def note(module: nn.Module, args: Any, output: Any) -> Any:
        calls.append((module, [*_floating(args), *module.parameters(recurse=False)], _floating(output)))
        return tree_map_only(Tensor, torch.clone, output)  # what follows may change it in place

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with torch.enable_grad():
            value = total({name: tensor.detach().requires_grad_() for name, tensor in theta.items()})
    finally:
        for hook in hooks:
            hook.remove()
    for module, inside, outside in calls:
        if _finite(inside) and not _finite(outside):
            return names[module]
    if not _finite([value]):
        return "the loss"
    tensors = [part for _, *sides in calls for side in sides for part in side if part.requires_grad]
    back = dict(zip(map(id, tensors), torch.autograd.grad(value, tensors, allow_unused=True), strict=True))
    wrong = [
        module
        for module, inside, outside in reversed(calls)
        if _finite([back.get(id(part)) for part in outside]) and not _finite([back.get(id(part)) for part in inside])
    ]
    wrong.sort(key=lambda module: len(list(module.children())) > 0)  # the layer, not what contains it
    return names[wrong[0]] if wrong else "" if _finite(back.values()) else "the loss"


def _floating(value: Any) -> list[Tensor]:
    return [part for part in tree_leaves(value) if isinstance(part, Tensor) and part.is_floating_point()]


def _finite(tensors: Iterable[Tensor | None]) -> bool:
    return all(tensor is None or all_finite(tensor) for tensor in tensors)
