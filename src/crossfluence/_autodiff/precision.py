"""The precision in which something is really computed, and the same in double precision."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Value = TypeVar("Value", bound=Any)
LARGE = 100_000_000  # numbers of a tensor, 800 MB in double precision
WRITING = re.compile(r"[a-z]\w*_|__(set|setitem|delitem|i(add|sub|mul|truediv|floordiv|mod|pow|and|or|xor))__")
"""Names of functions that write into their first argument."""


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


def in_double(function: Callable[..., Value]) -> Callable[..., Value]:
    """The same function in double precision, whatever single-precision tensors it is given, makes or refers to.

    Args:
        function: Computes with tensors.

    Returns:
        A function of the same arguments; integers and masks stay as they are.

    Raises:
        RuntimeError: When called, if an operation cannot mix precisions; so a caller has to be able to do without.

    Example:
        >>> shift = torch.tensor(1e-9)
        >>> in_double(lambda x: (1 + shift) - x)(torch.ones(())).item() > 0
        True
    """

    @wraps(function)
    def wide(*args: Any, **kwargs: Any) -> Value:
        with _Widening():
            return function(*args, **kwargs)

    return wide


def in_double_after(function: Callable[..., Value]) -> Callable[..., Value]:
    """The same function of a module in double precision, but for what the module and its parts compute when called.

    A loss of outputs that a model is sure of has a slope that is a difference of nearly equal numbers: rounding may be
    all that is left of it, though the outputs themselves are as good as their precision.

    Args:
        function: Of a module and other arguments.

    Returns:
        A function of the same arguments; tensors of more than 100 million numbers stay as they are.

    Raises:
        RuntimeError: When called, if an operation cannot mix precisions; so a caller has to be able to do without.

    Example:
        >>> net, far = nn.Identity(), torch.tensor([[30.0, 0.0]])
        >>> in_double_after(lambda model: 1 - model(far).softmax(1)[0, 0])(net).item() > 0
        True
    """

    @wraps(function)
    def wide(model: nn.Module, *args: Any, **kwargs: Any) -> Value:
        mode = _Widening(LARGE)
        with contextlib.ExitStack() as stack:
            for module in model.modules():  # other hooks see what they always see
                first = module.register_forward_pre_hook(mode.pause, prepend=True, with_kwargs=True)
                last = module.register_forward_hook(mode.resume)
                _ = [stack.callback(hook.remove) for hook in (first, last)]
            stack.enter_context(mode)
            return function(model, *args, **kwargs)

    return wide


class _Widening(TorchFunctionMode):
    """Gives every function of PyTorch its arguments in double precision; one that writes into a tensor, as they are."""

    def __init__(self, largest: float = float("inf")) -> None:
        super().__init__()
        self.largest = largest  # tensor that is widened
        self.calls = 0  # of modules that are under way, inside of which nothing is widened
        self.made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # the narrow one stays alive, so its id does

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if self.calls or _writes(func, named):
            return func(*args, **named)
        return tree_map(self._wide, func(*tree_map(self._wide, tuple(args)), **tree_map(self._wide, named)))

    def _wide(self, part: Any) -> Any:
        """One double for each tensor, so that derivatives by it are found."""
        if not _floating(part) or part.dtype == torch.float64 or part.numel() > self.largest:
            return part
        key = (id(part), part._version)
        if key not in self.made:
            self.made[key] = part, part.double()
        return self.made[key][1]

    def pause(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before a module runs: its arguments in its own precision."""
        self.calls += 1
        own = next((part.dtype for part in module.parameters() if part.is_floating_point()), None)
        if self.calls > 1 or own is None:
            return args, kwargs

        def narrow(part: Any) -> Any:
            return part.to(own) if _floating(part) and part.dtype == torch.float64 else part

        return tree_map(narrow, args), tree_map(narrow, kwargs)

    def resume(self, module: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        """After it ran."""
        self.calls -= 1


def _writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    return kwargs.get("out") is not None or bool(WRITING.fullmatch(getattr(func, "__name__", "")))
