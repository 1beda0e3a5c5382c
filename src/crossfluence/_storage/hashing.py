"""A content hash of anything that takes part in a training: tensors, settings and the user's own functions."""

from __future__ import annotations

import ast
import contextlib
import copyreg
import dis
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._autodiff.params import digest_tensors


class Named(str):
    """Code that is known by its name: of Python, of this library or of an installed package."""

    __slots__ = ()


@dataclass
class Memo:
    """Hashes found so far.

    Attributes:
        versions: Whether the versions of packages are content, too.
        known: Digest by identity; holds the object too, so that its identity is not given away.
    """

    versions: bool
    known: dict[int, tuple[Any, bytes]] = field(default_factory=dict)


PACKAGE = __name__.partition(".")[0]
NUMBERS_AND_NAMES = (str, int, float, complex, bool, bytes, type(None), type(...), range)
PLAIN = (*NUMBERS_AND_NAMES, torch.dtype, torch.device, torch.Size)
NOT_CONTENT = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slotnames__", "__firstlineno__",
    "__static_attributes__", "_abc_impl",
}  # fmt: skip
"""What Python itself keeps in a class, some of it only once it was used."""


def content_hash(*values: Any, versions: bool = True) -> str:
    """One hash of all that determines a computation: values, tensors, code, and what the code refers to.

    Functions are hashed by their code, defaults, closures and the globals they name; code from installed packages
    by its name and version, with its closures. Two processes of one Python version agree.

    Args:
        values: Numbers, strings, tensors, arrays, containers, modules, functions, and objects that can be pickled.
        versions: Whether another version of this library, of torch or of a package that the code names makes another
            hash: results of a training differ with them.

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
        always = [Named(PACKAGE), Named("torch")] if versions else []
        return _digest((*values, *always), Memo(versions)).hex()
    except RecursionError:
        raise TypeError("Something here is nested too deeply to be compared by content. Pass store=None.") from None


def _digest(value: Any, memo: Memo) -> bytes:
    kind = type(value).__name__.encode()
    if type(value) is Named:
        version = _version(value.partition(".")[0]) if memo.versions else ""
        return _hash([kind, value.encode(), version.encode()])
    if type(value) in PLAIN or isinstance(value, Path):
        return _hash([kind, repr(value).encode()])
    if isinstance(value, Tensor):
        return _hash([kind, str(value.requires_grad).encode(), digest_tensors([("", value)]).encode()])
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        return _hash([kind, str(value.dtype).encode(), str(value.shape).encode(), value.tobytes()])
    if id(value) not in memo.known:
        memo.known[id(value)] = (value, b"cycle")
        parts: Iterable[bytes] = [_digest(part, memo) for part in _parts(value)]
        parts = sorted(parts) if isinstance(value, (set, frozenset)) else parts
        memo.known[id(value)] = (value, _hash([kind, *parts]))
    return memo.known[id(value)][1]


def _hash(parts: Iterable[bytes]) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()


def _parts(value: Any) -> Iterable[Any]:
    """The parts of an object."""
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
    if hasattr(type(value), "set_truncation_and_padding"):
        return _tokenizer_parts(value)
    return _object_parts(value)


def _function_parts(function: FunctionType) -> Iterable[Any]:
    if _installed(function.__module__):
        function = inspect.unwrap(function)  # decorators of packages are known by name, too
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    state = (function.__defaults__, function.__kwdefaults__, cells)
    if _installed(function.__module__):
        return [_named(function), *state]
    names = _names(function.__code__)
    named = {name: function.__globals__[name] for name in names if name in function.__globals__}
    settings = [_settings(part, names) for part in named.values() if isinstance(part, ModuleType)]
    imports = [_imported_part(name) for name in _imports(function.__code__)]
    return function.__code__, *state, named, imports, *filter(None, settings)


def _settings(module: ModuleType, names: Iterable[str]) -> dict[str, Any]:
    """Values that code may read from a user's module, beside its text: they can be set from elsewhere."""
    if _installed(module.__name__):
        return {}
    found = {name: vars(module)[name] for name in names if name in vars(module)}
    return {name: part for name, part in found.items() if isinstance(part, (*PLAIN, Tensor, list, tuple, dict, set))}


def _class_parts(kind: type) -> Iterable[Any]:
    if _installed(kind.__module__):
        return [_named(kind)]
    inside = {key: item for key, item in vars(kind).items() if key not in NOT_CONTENT and not _is_slot(item)}
    return f"{kind.__module__}.{kind.__qualname__}", kind.__bases__, inside


def _named(code: Any, name: str = "") -> Named:
    """Code of an installed package by its module and name; of this library by its name, so that it may move inside."""
    module = getattr(code, "__module__", None) or ""
    return Named(f"{PACKAGE if module.startswith(f'{PACKAGE}.') else module}.{name or code.__qualname__}")


def _is_slot(item: Any) -> bool:
    return type(item).__name__ in {"member_descriptor", "getset_descriptor"}


def _module_parts(module: ModuleType) -> Iterable[Any]:
    """A user's module is its file, the user's modules that it imports, and the packages."""
    file = getattr(module, "__file__", None)
    if _installed(module.__name__) or not file or not str(file).endswith(".py") or not Path(file).exists():
        return [Named(module.__name__)]
    source = Path(file).read_bytes()
    names = _imported(source, module.__package__ or "")
    packages = sorted({name.partition(".")[0] for name in names if _is_package(name)})
    found = [sys.modules.get(name) for name in names]
    mine = [part for part in found if part is not None and not _installed(part.__name__)]
    return [module.__name__, source, *mine, *map(Named, packages)]


def _imported_part(name: str) -> Any:
    """The imports inside a function: a package by name and version, a user's module by its text."""
    if _is_package(name):
        return Named(name.partition(".")[0])
    origin = _origin(name)
    return (name, Path(origin).read_bytes()) if origin.endswith(".py") and Path(origin).exists() else name


def _imports(code: CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _imports(const)]
    return [*(str(step.argval) for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"), *inner]


def _is_package(name: str) -> bool:
    """True if a name that may not have been imported yet is of Python or of an installed package."""
    top = name.partition(".")[0]
    origin = _origin(top)
    return top in sys.stdlib_module_names or top == "crossfluence" or (origin != "" and _in_packages(origin))


def _origin(name: str) -> str:
    """The file of a module, whether it was imported or not; empty if there is none."""
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(name)
        return str(spec.origin or "") if spec else ""
    return ""


def _tokenizer_parts(value: Any) -> Iterable[Any]:
    """A fast tokenizer of transformers, without what every call sets anew: padding, truncation, warnings given."""
    state = {name: part for name, part in vars(value).items() if name not in {"_tokenizer", "deprecation_warnings"}}
    rules = json.loads(value._tokenizer.to_str())
    return [type(value), state, {name: part for name, part in rules.items() if name not in {"padding", "truncation"}}]


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
    """The parts that pickling would keep."""
    try:
        known = copyreg.dispatch_table.get(type(value))  # of compiled regular expressions, for one
        reduced = known(value) if known else value.__reduce_ex__(2)
    except Exception as error:
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        if callable(value) and name:  # compiled functions, known by their name
            return [_named(value, name)]
        raise TypeError(
            f"Cannot tell whether a {type(value).__name__} changed, so stored results cannot be trusted with it. "
            f"Make it inside the training function, or pass store=None."
        ) from error
    if isinstance(reduced, str):  # a global, known by its name
        return [_named(value, reduced)]
    maker, arguments, *state = reduced
    return [maker, arguments, *(list(part) if isinstance(part, Iterator) else part for part in state)]


def _names(code: CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return [*code.co_names, *inner]


def _installed(module: str | None) -> bool:
    """True if a module belongs to Python, an installed package or this library, and is known by its name."""
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


@functools.cache
def _version(package: str) -> str:
    """The version of an installed package; empty for Python's own, which changes with the code it compiles."""
    if package in sys.stdlib_module_names:
        return ""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    names = metadata.packages_distributions().get(package, [])
    return " ".join(sorted(f"{name} {metadata.version(name)}" for name in set(names)))
