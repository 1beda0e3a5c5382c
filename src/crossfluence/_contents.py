"""A content hash of anything that takes part in a training: tensors, settings and the user's own functions."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ._params import digest_tensors

Memo: TypeAlias = dict[int, tuple[Any, bytes]]
"""Digest by identity; holds the object too, so that its identity is not given away."""

NUMBERS_AND_NAMES = (str, int, float, complex, bool, bytes, type(None), type(...), range)
PLAIN = (*NUMBERS_AND_NAMES, torch.dtype, torch.device, torch.Size)
NOT_CONTENT = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slotnames__", "__firstlineno__",
    "__static_attributes__", "_abc_impl",
}  # fmt: skip
"""What Python itself keeps in a class, some of it only once it was used."""


def content_hash(*values: Any) -> str:
    """One hash of all that determines a computation: values, tensors, code, and what the code refers to.

    Functions are hashed by their code, defaults, closures and the globals they name; code from installed packages
    by its name, with its closures. Two processes of one Python version agree.

    Args:
        values: Numbers, strings, tensors, arrays, containers, modules, functions, and objects that can be pickled.

    Returns:
        32 hexadecimal digits.

    Raises:
        TypeError: If something in it has no content that can be hashed, such as an open file.

    Example:
        >>> content_hash({"lr": 0.1}, torch.ones(2)) == content_hash({"lr": 0.1}, torch.ones(2))
        True
        >>> content_hash({"lr": 0.1}, torch.ones(2)) == content_hash({"lr": 0.1}, torch.zeros(2))
        False
    """
    try:
        return _digest(values, {}).hex()
    except RecursionError:
        raise TypeError("Something here is nested too deeply to be compared by content. Pass store=None.") from None


def _digest(value: Any, memo: Memo) -> bytes:
    kind = type(value).__name__.encode()
    if type(value) in PLAIN or isinstance(value, Path):
        return _hash([kind, repr(value).encode()])
    if isinstance(value, Tensor):
        return _hash([kind, str(value.requires_grad).encode(), digest_tensors([("", value)]).encode()])
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        return _hash([kind, str(value.dtype).encode(), str(value.shape).encode(), value.tobytes()])
    if id(value) not in memo:
        memo[id(value)] = (value, b"cycle")
        parts: Iterable[bytes] = [_digest(part, memo) for part in _parts(value)]
        parts = sorted(parts) if isinstance(value, (set, frozenset)) else parts
        memo[id(value)] = (value, _hash([kind, *parts]))
    return memo[id(value)][1]


def _hash(parts: Iterable[bytes]) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()


def _parts(value: Any) -> Iterable[Any]:
    """What an object consists of."""
    if type(value) in (list, tuple, set, frozenset):
        return value
    if type(value) in (dict, MappingProxyType):
        return [part for item in value.items() for part in item]
    if isinstance(value, CodeType):
        form = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        return value.co_code, value.co_names, value.co_varnames, value.co_consts, form
    if isinstance(value, FunctionType):
        return _function_parts(value)
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, functools.cached_property):
        return [value.func]
    if isinstance(value, ModuleType):
        return _module_parts(value)
    if isinstance(value, type):
        return _class_parts(value)
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    if is_dataclass(value):
        return [type(value), *(getattr(value, item.name) for item in fields(value))]
    return _object_parts(value)


def _function_parts(function: FunctionType) -> Iterable[Any]:
    if _installed(function.__module__):
        function = inspect.unwrap(function)  # decorators of packages are known by name, too
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    state = (function.__defaults__, function.__kwdefaults__, cells)
    if _installed(function.__module__):
        return [f"{function.__module__}.{function.__qualname__}", *state]
    named = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return function.__code__, *state, named


def _class_parts(kind: type) -> Iterable[Any]:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if _installed(kind.__module__):
        return [name]
    inside = {key: item for key, item in vars(kind).items() if key not in NOT_CONTENT and not _is_slot(item)}
    return name, kind.__bases__, inside


def _is_slot(item: Any) -> bool:
    return type(item).__name__ in {"member_descriptor", "getset_descriptor"}


def _module_parts(module: ModuleType) -> Iterable[Any]:
    """A user's module is its file, and the user's modules that it imports."""
    file = getattr(module, "__file__", None)
    if _installed(module.__name__) or not file or not str(file).endswith(".py") or not Path(file).exists():
        return [module.__name__]
    source = Path(file).read_bytes()
    found = [sys.modules.get(name) for name in _imported(source, module.__package__ or "")]
    return [module.__name__, source, *(part for part in found if part is not None and not _installed(part.__name__))]


def _imported(source: bytes, package: str) -> list[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, package) if node.level and package else base
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return sorted(names)


def _object_parts(value: Any) -> Iterable[Any]:
    """What pickling would keep."""
    try:
        reduced = value.__reduce_ex__(2)
    except Exception as error:
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        if callable(value) and name:  # compiled functions, known by their name
            return [f"{getattr(value, '__module__', '')}.{name}"]
        raise TypeError(
            f"Cannot tell whether a {type(value).__name__} changed, so stored results cannot be trusted with it. "
            f"Make it inside the training function, or pass store=None."
        ) from error
    if isinstance(reduced, str):  # a global, known by its name
        return [f"{getattr(value, '__module__', '')}.{reduced}"]
    maker, arguments, *state = reduced
    return [maker, arguments, *(list(part) if hasattr(part, "__next__") else part for part in state)]


def _names(code: CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return [*code.co_names, *inner]


def _installed(module: str | None) -> bool:
    """Whether a module belongs to Python, an installed package or this library, and is known by its name."""
    if not module or module == "__main__":
        return False
    if module.partition(".")[0] in {"builtins", "crossfluence"} or module in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and _in_packages(file)


@functools.cache
def _in_packages(file: str) -> bool:
    path, paths = Path(file).resolve(), sysconfig.get_paths()
    return any(path.is_relative_to(Path(paths[key]).resolve()) for key in ("stdlib", "purelib", "platlib"))
