"""Derivatives by `torch.func` without PyTorch's compiler, which they would load to switch it off: a second, once."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import zip_longest
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

transforms = importlib.import_module("torch._functorch.eager_transforms")
COMPILER = "torch._dynamo"
RULES = ("add", "sub", "mul")  # of which zero tangents come with shapes that are worked out in Python
MARK = "__dynamo_disable"  # where a rule keeps the version of itself that no compiler may enter
PLACES = ("torch._refs", "torch._prims", "torch._prims_common.wrappers")
GRADIENT = "_autograd_grad"  # that `torch.func.grad` and `vjp` take
COTANGENTS = "_make_grads"  # a check of shapes in `torch.autograd.grad`, which loads half of the compiler


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Keeps forward mode and `torch.func.grad` from loading the compiler, unless it is there already.

    A dual number beside a constant has a tangent of zeros. A rule of `torch._refs` works out its shape, behind a
    wrapper that loads `torch._dynamo` to say that nothing is to be compiled; a gradient loads it to switch off what
    only it could have switched on. Where it is not loaded, leaving both out changes no result. Callers see to it that
    no other thread computes.

    Yields:
        Nothing; PyTorch is as before afterwards.
    """
    if COMPILER in sys.modules or not (hasattr(transforms, GRADIENT) and hasattr(torch.autograd, COTANGENTS)):
        yield
        return
    rules = [each for each in _rules() if MARK not in vars(each)]
    gradient, cotangents = getattr(transforms, GRADIENT), getattr(torch.autograd, COTANGENTS)
    for rule in rules:
        setattr(rule, MARK, partial(_shaped, rule))
    setattr(transforms, GRADIENT, _autograd_grad)
    setattr(torch.autograd, COTANGENTS, partial(_checked, cotangents))
    try:
        yield
    finally:
        setattr(transforms, GRADIENT, gradient)
        setattr(torch.autograd, COTANGENTS, cotangents)
        for rule in rules:
            vars(rule).pop(MARK, None)


@cache
def _rules() -> tuple[FunctionType, ...]:
    """Every layer of wrappers around each rule; none in a version of PyTorch that has no such rules."""
    waiting = [getattr(getattr(torch, "_refs", None), name, None) for name in RULES]
    found: dict[FunctionType, None] = {}
    while waiting:
        rule = waiting.pop()
        if isinstance(rule, FunctionType) and rule.__module__ in PLACES and rule not in found:
            found[rule] = None
            waiting += [cell.cell_contents for cell in rule.__closure__ or ()]
    return tuple(found)


def _shaped(rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The rule's result; of two tensors without content, from their shapes alone."""
    if (
        len(args) != 2
        or not kwargs.keys() <= {"alpha"}
        or not all(isinstance(each, Tensor) and each.is_meta for each in args)
    ):
        return rule(*args, **kwargs)
    sizes = zip_longest(*(reversed(each.shape) for each in args), fillvalue=1)
    shape = [second if first == 1 else first for first, second in sizes][::-1]
    return torch.empty(shape, dtype=torch.result_type(*args), device="meta")


def _checked(
    original: Callable[..., Any], outputs: Sequence[Any], grads: Sequence[Any], is_grads_batched: bool
) -> tuple[Tensor | None, ...]:
    """The cotangents themselves, where they are tensors of the outputs' shapes; PyTorch checks everything else."""
    pairs = list(zip(outputs, grads, strict=True)) if len(outputs) == len(grads) else []
    if pairs and all(_alike(output, grad, int(is_grads_batched)) for output, grad in pairs):
        return tuple(grads)
    return original(outputs, grads, is_grads_batched=is_grads_batched)


def _alike(output: Any, grad: Any, lead: int) -> bool:
    if not all(isinstance(each, Tensor) and not each.is_nested and each.is_floating_point() for each in (output, grad)):
        return False
    return output.layout == grad.layout == torch.strided and output.shape == grad.shape[lead:]


def _autograd_grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    retain_graph: bool = False,
    create_graph: bool = True,
) -> tuple[Tensor, ...]:
    """PyTorch's own, without the compiler's switch: gradients, zeros where an output does not depend on an input."""
    live = [place for place, output in enumerate(outputs) if output.requires_grad]
    if not live:
        return tuple(torch.zeros_like(part) for part in inputs)
    found = torch.autograd.grad(
        [outputs[place] for place in live],
        inputs,
        None if grad_outputs is None else [grad_outputs[place] for place in live],
        retain_graph=retain_graph,
        create_graph=create_graph,
        allow_unused=True,
    )
    return tuple(
        torch.zeros_like(part) if gradient is None else gradient for gradient, part in zip(found, inputs, strict=True)
    )
