"""Modules as functions of their parameters, and derivatives of such functions."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map, tree_map_only

from .._types import Params
from ..errors import CrossfluenceError, UnsupportedError
from .copies import attributes_kept
from .substitutes import exact_functions
from .uncompiled import without_compiler

Point = TypeVar("Point", bound=Any)
Value = TypeVar("Value", bound=Any)
_ONE_AT_A_TIME = threading.RLock()  # parameters are exchanged inside the user's module, and switches are global
FUSED = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
VECTORS_AT_ONCE = 32  # directions that share one vectorised pass: activations are held this many times


class _Holder(nn.Module):
    """Calls a plain function with modules whose tensors `functional_call` can exchange."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.modules_held = nn.ModuleList(modules)
        self.functions = (function,)  # in a tuple: a module here must not be registered

    def forward(self, *args: Any) -> Any:
        return self.functions[0](*self.modules_held, *args)


def bind(function: Callable[..., Any], *modules: nn.Module) -> Callable[..., Any]:
    """Turns `function(*modules, *args)` into a function of the modules' parameters.

    Any method or attribute of a module may be used inside, not only `forward`. Parameters that are not
    passed stay as the module has them.

    Args:
        function: Takes the modules first, then any other arguments.
        modules: Their parameters become arguments; they are not changed.

    Returns:
        `call(*params, *args)`, with one dictionary of named tensors for each module.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> norm = bind(lambda model: model.weight.square().sum(), net)
        >>> norm({"weight": torch.tensor([[3.0, 4.0]])})
        tensor(25.)
    """
    holder = _Holder(function, *modules)
    count = len(modules)
    recurrent = any(isinstance(part, nn.RNNBase) for part in holder.modules())

    def call(*arguments: Any) -> Any:
        swapped = {
            f"modules_held.{position}.{name}": tensor
            for position, params in enumerate(arguments[:count])
            for name, tensor in params.items()
        }
        with attributes_kept(holder):
            if not recurrent:
                return functional_call(holder, swapped, arguments[count:])
            before = torch.backends.mkldnn.set_flags(False)  # its fused recurrent layers have no second derivative
            try:
                return functional_call(holder, swapped, arguments[count:])
            finally:
                torch.backends.mkldnn.set_flags(before[0])

    return call


def with_constants(function: Callable[..., Any], module: nn.Module, live: Params) -> Callable[..., Any]:
    """Turns `function(module, *args)` into one that differentiates by no parameter but a few.

    Args:
        function: Takes the module first, then any other arguments.
        module: All of its parameters are constants while the function runs.
        live: Tensors that stand for some of them.

    Returns:
        `call(*args)`.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> with_constants(lambda model, x: model(x), net, {})(torch.ones(3, 2)).requires_grad
        False
    """
    if live or any(isinstance(part, nn.RNNBase) for part in module.modules()):
        constants = {name: part.detach() for name, part in module.named_parameters()}
        return lambda *args: bind(function, module)(constants | live, *args)

    def call(*args: Any) -> Any:
        tracked = [part for part in module.parameters() if part.requires_grad]
        try:
            for part in tracked:
                part.requires_grad_(False)
            with attributes_kept(module):
                return function(module, *args)
        finally:
            for part in tracked:
                part.requires_grad_(True)

    return call


def jvp(function: Callable[[Point], Value], at: Point, direction: Point) -> Value:
    """The derivative of `function` at a point along one direction, in one forward-mode pass.

    Operations without a forward-mode rule fall back to two reverse-mode passes, with the same result.

    Args:
        function: Of one argument (a tensor or a dictionary of tensors).
        at: Where to differentiate.
        direction: Same structure as `at`.

    Returns:
        Same structure and shapes as the value of `function`.

    Example:
        >>> jvp(lambda x: x ** 3, torch.tensor(2.0), torch.tensor(1.0))
        tensor(12.)

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6(1), 1994.
    """
    try:
        return torch.func.jvp(function, (at,), (direction,))[1]
    except NotImplementedError:  # "Trying to use forward AD with ... that does not support it"
        value, pull = vjp(function, at)[:2]
        _, push = vjp(lambda cotangent: pull(cotangent)[0], tree_map(torch.zeros_like, value))[:2]
        return push(direction)[0]


def gradient_of(function: Callable[[Params], Tensor], theta: Params) -> Params:
    """The derivative of a scalar, in a backward pass that frees what it has read and may use fused attention kernels.

    It cannot be differentiated again, and needs less than half the memory of a graph that can.

    Args:
        function: Of named tensors.
        theta: Where to differentiate.

    Returns:
        Named tensors; zeros where the value does not depend on one.

    Raises:
        RuntimeError: Of PyTorch's, as an `UnsupportedError`, if the backward pass fails.
    """
    with differentiating():
        try:
            with recorded():
                return _backward(function, theta)
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            with recorded_twice():  # the function takes a derivative itself, and a fused kernel has no second one
                return _backward(function, theta)


def _backward(function: Callable[[Params], Tensor], theta: Params) -> Params:
    tracked = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
    value = function(tracked)
    if not value.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in theta.items()}
    found = torch.autograd.grad(value, list(tracked.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(theta, map(strided, found), strict=True))


def strided(gradient: Tensor) -> Tensor:
    """A gradient in full, also of a sparse embedding."""
    return gradient.to_dense() if gradient.layout != torch.strided else gradient


def evaluated(function: Callable[[], Value]) -> Value:
    """The value of a function, without a graph, also if it takes derivatives itself.

    Args:
        function: Returns tensors; may call `torch.autograd.grad` inside.

    Returns:
        The same, detached.

    Raises:
        RuntimeError: If the function does.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> evaluated(lambda: torch.autograd.grad((x ** 3).sum(), x)[0])
        tensor([3., 3.])
    """
    try:
        with torch.no_grad():
            return function()
    except RuntimeError as error:
        if "require" not in str(error):  # "element 0 of tensors does not require grad"
            raise
        with recorded_twice():
            return tree_map_only(Tensor, Tensor.detach, function())


def drawing(function: Callable[[], Value]) -> tuple[Value, bool]:
    """The value of a function, and whether a global generator of random numbers is another after it.

    Args:
        function: Of anything.

    Returns:
        What it returns; true if it drew from PyTorch's generator of the CPU or a GPU, NumPy's or Python's, or seeded
        one of them.

    Example:
        >>> drawing(lambda: torch.rand(2).shape)
        (torch.Size([2]), True)
    """
    before = _generators()
    value = function()
    return value, before != _generators()


def _generators() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  # the user's code may draw from it
    states = [torch.random.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.extend(torch.cuda.get_rng_state_all())
    return name, np.asarray(keys).tobytes(), *rest, random.getstate(), *(state.numpy().tobytes() for state in states)


def vmap_in_chunks(function: Callable[[Tensor], Value], directions: Shaped[Tensor, "m *each"]) -> Value:
    """Applies a function of one vector to many, vectorised in chunks where the user's code allows it.

    Args:
        function: Returns a tensor, or named ones.
        directions: One in each row.

    Returns:
        What it returns, with m in front of every shape.

    Raises:
        RuntimeError: If the function does.
    """
    if len(directions) == 1:
        return tree_map(lambda part: part.unsqueeze(0), function(directions[0]))
    with contextlib.suppress(RuntimeError):  # `.item()`, sparse tensors and the like: one by one
        return vmap(function, chunk_size=VECTORS_AT_ONCE)(directions)
    each = [function(direction) for direction in directions]
    return tree_map(lambda *parts: torch.stack(parts), *each)


def all_finite(tensor: Tensor) -> bool:
    """True if no number is NaN or infinite: judged by their sum, or one by one where that is not finite."""
    return bool(tensor.sum().isfinite() or tensor.isfinite().all())


@contextlib.contextmanager
def differentiating() -> Iterator[None]:
    """Turns what PyTorch says of a backward pass that it cannot do into a sentence.

    Yields:
        Nothing.

    Raises:
        UnsupportedError: If the backward pass fails.
        RuntimeError: If memory runs out.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, (CrossfluenceError, torch.OutOfMemoryError)):
            raise
        raise UnsupportedError(
            f"PyTorch cannot differentiate this model: {str(error).strip().splitlines()[0]} Needed a model for which "
            f"loss(model, batch).sum().backward() runs as it is now, in its present mode; try that line first."
        ) from error


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Records a graph for one backward pass, for which fused attention kernels will do.

    Yields:
        Nothing.
    """
    with torch.enable_grad(), sdpa_kernel(FUSED):
        yield


@contextlib.contextmanager
def recorded_twice() -> Iterator[None]:
    """Records a graph that can itself be differentiated.

    Yields:
        Nothing.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Differentiates twice and in forward mode safely, and leaves no trace; one thread at a time.

    The fused attention kernels and the transformer fast path have no second derivative: they are switched off
    inside and back on afterwards, and other functions of PyTorch make way for exact ones. The global random state is
    put back, and no graph is recorded for parameters that are not differentiated.

    Yields:
        Nothing.
    """
    with _ONE_AT_A_TIME:
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with (
                torch.random.fork_rng(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), exact_functions(),
                without_compiler(),
            ):  # fmt: skip
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
