"""A content hash of anything that takes part in a training: tensors, settings and the user's own functions."""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ._params import digest_tensors

Memo: TypeAlias = dict[int, tuple[Any, bytes]]
"""Digest by identity; holds the object too, so that its identity is not given away."""

PLAIN = (
    str,
    int,
    float,
    complex,
    bool,
    bytes,
    type(None),
    type(...),
    torch.dtype,
    torch.device,
    torch.Size,
    Path,
    range,
)


def content_hash(*values: Any) -> str:
    """One hash of all that determines a computation: values, tensors, code, and what the code refers to.

    Functions are hashed by their code, defaults, closures and the globals they name; code from installed packages
    only by its name. Two processes of one Python version agree.

    Args:
        values: Numbers, strings, tensors, arrays, containers, modules, dataclasses, functions and objects of these.

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
    return _digest(values, {}).hex()


def _digest(value: Any, memo: Memo) -> bytes:
    kind = type(value).__name__.encode()
    if isinstance(value, PLAIN):
        return _hash([kind, repr(value).encode()])
    if isinstance(value, Tensor):
        return _hash([kind, digest_tensors([("", value)]).encode()])
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
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, value.co_varnames, value.co_consts
    if isinstance(value, FunctionType):
        return _function_parts(value)
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, ModuleType):
        known = _installed(value.__name__) or not getattr(value, "__file__", None)
        return [value.__name__] if known else [value.__name__, Path(str(value.__file__)).read_bytes()]
    if isinstance(value, type):
        methods = (
            [] if _installed(value.__module__) else [m for m in vars(value).values() if isinstance(m, FunctionType)]
        )
        return [f"{value.__module__}.{value.__qualname__}", *methods]
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    return _object_parts(value)


def _function_parts(function: FunctionType) -> Iterable[Any]:
    if _installed(function.__module__):
        return [f"{function.__module__}.{function.__qualname__}"]
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    named = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return function.__code__, function.__defaults__, function.__kwdefaults__, cells, named


def _object_parts(value: Any) -> Iterable[Any]:
    if isinstance(value, nn.Module):
        plain = [{k: v for k, v in vars(module).items() if not k.startswith("_")} for module in value.modules()]
        kinds = [type(module) for module in value.modules()]
        return digest_tensors([*value.named_parameters(), *value.named_buffers()]), kinds, plain
    if is_dataclass(value):
        return [type(value), *(getattr(value, item.name) for item in fields(value))]
    if hasattr(value, "__dict__"):
        return type(value), vars(value)
    if callable(value) and hasattr(value, "__qualname__"):  # built-in functions
        return [f"{getattr(value, '__module__', '')}.{value.__qualname__}"]
    raise TypeError(
        f"Cannot tell whether a {type(value).__name__} changed, so stored results cannot be trusted with it. "
        f"Make it inside the training function, or pass store=None."
    )


def _names(code: CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return [*code.co_names, *inner]


@functools.cache
def _installed(module: str) -> bool:
    """Whether a module belongs to Python, an installed package or this library, and is known by its name."""
    if module.partition(".")[0] in {"builtins", "crossfluence"}:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module != "__main__"
    path = Path(file).resolve()
    paths = sysconfig.get_paths()
    return any(path.is_relative_to(Path(paths[key]).resolve()) for key in ("stdlib", "purelib", "platlib"))
