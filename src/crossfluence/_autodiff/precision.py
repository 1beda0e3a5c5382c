"""The precision in which something is really computed: the coarsest that any of its operations returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Value = TypeVar("Value", bound=Any)


def coarsest_precision(function: Callable[[], Value]) -> tuple[Value, float]:
    """Calls a function and notes the largest relative rounding error among the results of its operations.

    Autocast, and single precision inside a model of double precision, are seen; masks and other constants that are
    made without a floating-point input are not counted.

    Args:
        function: Computes with tensors.

    Returns:
        What it returns, and the rounding error; 0 where nothing floating is computed, or no operation can be watched.

    Example:
        >>> x = torch.ones(3, dtype=torch.float64)
        >>> coarsest_precision(lambda: x.float().sum().double())[1] == torch.finfo(torch.float32).eps
        True
    """
    watch = _Watch()
    try:
        with watch:
            value = function()
    except Exception:  # a compiled or scripted model that cannot be watched; what is really wrong comes again
        return function(), 0.0
    return value, watch.coarsest


class _Watch(TorchDispatchMode):
    """Sees every operation below autograd and autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.coarsest = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or PyTorch would load its compiler, more than a second, to leave this class out of it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(_floating(part) for part in tree_leaves((args, kwargs))):
            found = (torch.finfo(part.dtype).eps for part in tree_leaves(made) if _floating(part))
            self.coarsest = max(self.coarsest, *found, 0.0)
        return made


def _floating(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()
