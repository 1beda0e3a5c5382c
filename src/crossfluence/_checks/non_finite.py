"""The place where a NaN or an infinity comes up first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .._autodiff.functional import all_finite
from .._autodiff.precision import coarsest_precision
from .._types import Batch, Id, Params


def non_finite_message(what: str, index: int, ids: Sequence[Id], losses: Tensor | None, place: str, advice: str) -> str:
    """A sentence about something that is not finite, and where.

    Args:
        what: What came out as a NaN or an infinity.
        index: The number of the batch.
        ids: Labels of its samples.
        losses: Their losses, if each has its own.
        place: From `first_non_finite_module`.
        advice: From `advice_of`.

    Returns:
        Names the batch, the sample and the module.
    """
    culprit = ""
    if losses is not None:
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        culprit = f"; the loss of sample {ids[bad[0]]!r} is not finite" if bad else "; the losses are finite"
    culprit += f"; it begins in {place}" if place else ""
    return f"{what} gives a NaN or an infinity in batch {index} (samples {ids[0]!r} to {ids[-1]!r}{culprit}). {advice}"


def advice_of(losses: Callable[[], Tensor], batch: Batch) -> str:
    """Advice for a loss that is not finite.

    Args:
        losses: Computes them.
        batch: The batch.

    Returns:
        A sentence: about the precision, where finite numbers overflow in float16, and about the samples otherwise.
    """
    finite = all(all_finite(part) for part in tree_leaves(batch) if isinstance(part, Tensor))
    if finite and coarsest_precision(losses)[1] == torch.finfo(torch.float16).eps:
        return (
            "All numbers of the batch are finite, and the loss is computed in float16, which overflows at 65,504. "
            "Use model.float() or model.bfloat16(), and the data with it."
        )
    return "Clean or drop the sample, or check for a division by zero or a square root at zero in the loss."


def first_non_finite_module(model: nn.Module, total: Callable[[Params], Tensor], theta: Params) -> str:
    """The first module that makes a NaN or an infinity out of finite numbers, forwards or backwards.

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
    if not tensors:  # no module was called: a bag of parameters
        return "the loss"
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
