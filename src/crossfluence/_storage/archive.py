"""One file for a frozen value with tensors in it: safetensors, its structure in the header."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import ResultFileError
from .atomic import write_atomically

PACKAGE = __name__.partition(".")[0]


def write_archive(path: str | os.PathLike[str], value: Any, form: str) -> None:
    """Writes a value so that `path` holds either the old content or all of the new.

    Args:
        path: Where to; its folder must exist.
        value: A dataclass of this package that holds numbers, strings, tensors, tuples and dataclasses of this package.
        form: What kind of file it is, and its version.

    Raises:
        ResultFileError: If the folder does not exist or cannot be written.
        TypeError: If something in it is of another type.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_packed(value, tensors))
    write_atomically(path, to_bytes(tensors, metadata={"format": form, "structure": structure}))


def read_archive(path: str | os.PathLike[str], form: str, device: str | torch.device = "cpu") -> Any:
    """Reads what `write_archive` wrote; runs no code from the file, and makes no classes but this package's.

    Args:
        path: The file.
        form: What kind of file it must be.
        device: Where the tensors go.

    Returns:
        An equal value.

    Raises:
        ResultFileError: If the file is missing, damaged or of another kind.
    """
    name = os.fspath(path)
    try:
        with safe_open(name, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys() if header.get("format") == form}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ResultFileError(f"Cannot read {name}: {error}.") from error
    if header.get("format") != form:
        raise ResultFileError(f"{name} has format {header.get('format')!r}; needed {form!r}.")
    try:
        return _unpacked(json.loads(header["structure"]), tensors)
    except (AttributeError, ImportError, TypeError) as error:
        raise ResultFileError(
            f"{name} was written by another version of {PACKAGE} and does not fit this one: {error}. Make it again."
        ) from error


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON; tensors are put aside and replaced by their number."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # views must not share
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"size" if isinstance(value, torch.Size) else "tuple": [_packed(part, tensors) for part in value]}
    if is_dataclass(value) and type(value).__module__.partition(".")[0] == PACKAGE:
        parts = {item.name: _packed(getattr(value, item.name), tensors) for item in fields(value)}
        return {"class": [type(value).__module__, type(value).__qualname__], "fields": parts}
    raise TypeError(f"a {type(value).__name__}")


def _unpacked(packed: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "dtype" in packed:
        return getattr(torch, packed["dtype"])
    if "class" not in packed:
        kind, parts = next(iter(packed.items()))
        return (torch.Size if kind == "size" else tuple)(_unpacked(part, tensors) for part in parts)
    module, name = packed["class"]
    if module.partition(".")[0] != PACKAGE:
        raise TypeError(f"a class of {module}")
    made = getattr(importlib.import_module(module), name)
    if not (isinstance(made, type) and is_dataclass(made)):
        raise TypeError(f"{name} is no value")
    return made(**{key: _unpacked(part, tensors) for key, part in packed["fields"].items()})
