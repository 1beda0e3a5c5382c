"""Copies of modules, whatever they keep beside their parameters."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)


class _Detaching(TorchFunctionMode):
    """Inside, a deep copy of a tensor that was computed (a stored activation) is its value alone."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and (_escaped(args[0]) or args[0].is_quantized or not args[0].is_leaf):
            tensor, memo = args
            return memo.setdefault(id(tensor), _inner(tensor).detach().clone())
        return func(*args, **(kwargs or {}))


def _escaped(tensor: Tensor) -> bool:
    """True if a module stored it while something was differentiated by functions, and kept it."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def _inner(tensor: Tensor) -> Tensor:
    while _escaped(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Puts the attributes of all modules back afterwards: what a forward pass stores is no part of the user's model.

    Args:
        model: Any module.

    Yields:
        Nothing.
    """
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for now, kept in before:
            if len(now) != len(kept) or any(now.get(name) is not value for name, value in kept.items()):
                now.clear()
                now.update(kept)


def copied(model: Module, shared: Mapping[int, Any] | None = None) -> Module:
    """A copy that has nothing in common with the original; what the module stored of a forward pass loses its graph.

    Args:
        model: Any module; tied parameters stay tied, frozen ones frozen.
        shared: What stands for an object of the original, by its identity, instead of a copy.

    Returns:
        A module of the same type.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> net.last = net.weight * 2  # as `torch.nn.utils.prune` and modules that keep activations do
        >>> copied(net).last.requires_grad
        False
    """
    with _Detaching():
        return copy.deepcopy(model, memo=dict(shared or {}))


def frozen_copy(model: Module) -> Module:
    """The same module with gradients blocked: its own structure, the same memory.

    Args:
        model: Any module.

    Returns:
        A module whose parameters are detached views of the originals.
    """
    return copied(model, {id(tensor): tensor.detach() for tensor in [*model.parameters(), *model.buffers()]})
