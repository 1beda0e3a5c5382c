"""One reader and one writer of files of tensors, and values of this library that such files hold by class name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import NewerFileError, ResultFileError
from .atomic import write_atomically

PACKAGE = __name__.partition(".")[0]
LONGEST_TEXT = 2**20  # characters in the header, which safetensors limits to 100 MB; longer texts are kept as tensors
TEXT = "text:"  # begins the names of those tensors

Parts = dict[str, Any]
Class = TypeVar("Class", bound=type)


@dataclass(frozen=True, eq=False)
class TensorFile:
    """Content of a file of tensors.

    Attributes:
        form: The kind of file and its version, such as "crossfluence.scores/1".
        texts: By name.
        tensors: By name.
    """

    form: str | None
    texts: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def write_tensors(path: str | os.PathLike[str], form: str, tensors: Mapping[str, Tensor], **texts: str) -> None:
    """Writes one safetensors file, so that `path` holds either the old content or all of the new.

    Equal content makes equal bytes. Texts stand in the header, in the order of their names; long ones as bytes.

    Args:
        path: Where to; its folder must exist.
        form: The kind of file and its version, such as "crossfluence.scores/1".
        tensors: By name.
        **texts: By name; JSON, where they are structured.

    Raises:
        ResultFileError: If the folder does not exist or cannot be written.
    """
    long = {name: text for name, text in texts.items() if len(text) > LONGEST_TEXT}
    short = {name: text for name, text in texts.items() if name not in long}
    kept = {name: _alone(tensor) for name, tensor in tensors.items()}
    kept |= {TEXT + name: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) for name, text in long.items()}
    whole = to_bytes(kept, metadata={"format": form, **short})
    end = 8 + int.from_bytes(whole[:8], "little")
    write_atomically(path, _sorted(whole[8:end]), memoryview(whole)[end:])


def _alone(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, which may be a view or stand twice in a file, in memory of their own."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _sorted(header: bytes) -> bytes:
    """The length and the text of a safetensors header, whose own order of metadata is random."""
    content = json.loads(header)
    content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_tensors(
    path: str | os.PathLike[str], *forms: str | None, device: str | torch.device = "cpu"
) -> TensorFile:  # fmt: skip
    """Reads a safetensors file.

    Args:
        path: The file.
        *forms: Kinds and versions that can be read, the present one first; `None` for files without.
        device: Where the tensors go.

    Returns:
        Its form, texts and tensors.

    Raises:
        ResultFileError: If the file is missing, damaged or of another kind.
        NewerFileError: If a newer version of this library wrote it.
    """
    name, kind = os.fspath(path), _kind(forms[0])
    try:
        with safe_open(name, framework="pt", device=str(device)) as file:
            texts = file.metadata() or {}
            form = texts.get("format")
            tensors = {key: file.get_tensor(key) for key in file.keys() if form in forms}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ResultFileError(f"Cannot read {kind} from {name}: {error}.") from error
    if form not in forms:
        _refuse_form(name, form, str(forms[0]))
    with fitting(path):
        long = {key: tensor for key, tensor in tensors.items() if key.startswith(TEXT)}
        texts |= {key.removeprefix(TEXT): tensor.cpu().numpy().tobytes().decode() for key, tensor in long.items()}
    return TensorFile(form, texts, {key: tensor for key, tensor in tensors.items() if key not in long})


def starts_of(path: str | os.PathLike[str]) -> dict[str, int]:
    """The place in a safetensors file at which each tensor's bytes begin, by name."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + part["data_offsets"][0] for name, part in header.items() if name != "__metadata__"}


def read_if_whole(path: str | os.PathLike[str], *forms: str | None) -> TensorFile | None:
    """Reads a safetensors file whose content can be computed again.

    Args:
        path: The file.
        *forms: As in `read_tensors`.

    Returns:
        Its content; `None` if it is missing, damaged or of another kind.

    Raises:
        NewerFileError: If a newer version of this library wrote it.
    """
    try:
        return read_tensors(path, *forms)
    except NewerFileError:
        raise
    except ResultFileError:
        return None


@contextmanager
def fitting(path: str | os.PathLike[str]) -> Iterator[None]:
    """Reports content of a file that cannot be understood as a `ResultFileError` that names the file.

    Args:
        path: The file.

    Yields:
        Nothing.

    Raises:
        ResultFileError: In place of errors about keys, types and values.
    """
    try:
        yield
    except (AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ResultFileError(
            f"{os.fspath(path)} is damaged, or was written by another version of {PACKAGE} and does not fit this one: "
            f"{why}. Make it again."
        ) from error


def _kind(form: str | None) -> str:
    """Such as "scores" for "crossfluence.scores/1"."""
    return str(form).partition(".")[2].partition("/")[0]


def _refuse_form(name: str, came: str | None, needed: str) -> NoReturn:
    sentence = f"{name} has format {came!r}; needed {needed!r}."
    kind, _, version = needed.rpartition("/")
    other, _, number = (came or "").rpartition("/")
    if other == kind and number.isdecimal() and int(number) > int(version):
        raise NewerFileError(f"{sentence} A newer {PACKAGE} wrote it. Type: pip install --upgrade {PACKAGE}")
    raise ResultFileError(sentence)


@dataclass(frozen=True)
class _Stored:
    """The entry of a class in the registry of files.

    Attributes:
        name: Instead of its module, so that it may move and be renamed.
        made: The class.
        upgraded: Makes its fields of those that a file of some form holds.
    """

    name: str
    made: type
    upgraded: Callable[[Parts, str], Parts]


_BY_NAME: dict[str, _Stored] = {}
_BY_CLASS: dict[type, _Stored] = {}


def _as_it_is(parts: Parts, form: str) -> Parts:
    return parts


def stored(name: str, upgraded: Callable[[Parts, str], Parts] = _as_it_is) -> Callable[[Class], Class]:
    """Registers a frozen dataclass as one that files may hold.

    Args:
        name: Its name in files: never changed, and never given to another class.
        upgraded: Makes its fields of those that an older file holds, given the file's form.

    Returns:
        A decorator that returns the class as it is.

    Example:
        >>> @stored("AnExample")
        ... @dataclass(frozen=True)
        ... class Example:
        ...     number: int
        >>> del _BY_NAME["AnExample"], _BY_CLASS[Example]
    """

    def registered(made: Class) -> Class:
        assert name not in _BY_NAME, f"{name} stands for {_BY_NAME[name].made} in files"
        _BY_NAME[name] = _BY_CLASS[made] = _Stored(name, made, upgraded)
        return made

    return registered


def write_archive(path: str | os.PathLike[str], value: Any, form: str) -> None:
    """Writes a value so that `path` holds either the old content or all of the new.

    Args:
        path: Where to; its folder must exist.
        value: Of a class that is `stored`, or a tuple; in it numbers, strings, tensors, tuples and such values.
        form: What kind of file it is, and its version.

    Raises:
        ResultFileError: If the folder does not exist or cannot be written.
        TypeError: If something in it is of another type.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_packed(value, tensors))
    write_tensors(path, form, tensors, structure=structure)


def read_archive(
    path: str | os.PathLike[str], forms: str | Sequence[str], device: str | torch.device = "cpu"
) -> Any:  # fmt: skip
    """Reads what `write_archive` wrote; runs no code from the file, and makes no classes but those that are `stored`.

    Args:
        path: The file.
        forms: What kind of file it must be; of several versions, the present one first.
        device: Where the tensors go.

    Returns:
        An equal value.

    Raises:
        ResultFileError: If the file is missing, damaged or of another kind.
    """
    found = read_tensors(path, *([forms] if isinstance(forms, str) else forms), device=device)
    with fitting(path):
        return _unpacked(json.loads(found.texts["structure"]), found)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON; tensors are put aside and replaced by their number."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"size" if isinstance(value, torch.Size) else "tuple": [_packed(part, tensors) for part in value]}
    if (known := _BY_CLASS.get(type(value))) is not None:
        parts = {item.name: _packed(getattr(value, item.name), tensors) for item in fields(value)}
        return {"class": known.name, "fields": parts}
    raise TypeError(f"a {type(value).__name__}")


def _unpacked(packed: Any, file: TensorFile) -> Any:
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return file.tensors[packed["tensor"]]
    if "dtype" in packed:
        return _dtype(packed["dtype"])
    if "class" in packed:
        return _made(packed["class"], packed["fields"], file)
    ((kind, parts),) = packed.items()
    return (torch.Size if kind == "size" else tuple)(_unpacked(part, file) for part in parts)


def _dtype(name: str) -> torch.dtype:
    if not isinstance(found := getattr(torch, name), torch.dtype):
        raise TypeError(f"{name} is no type of numbers")
    return found


def _made(name: Any, packed: Parts, file: TensorFile) -> Any:
    """A value of a registered class; the first format has the module and the name of each, of which the name counts."""
    name = name if isinstance(name, str) else name[-1]
    if (known := _BY_NAME.get(name)) is None:
        raise TypeError(f"it holds a {name}, which is no class of this version")
    parts = {key: _unpacked(part, file) for key, part in packed.items()}
    return known.made(**known.upgraded(parts, str(file.form)))
