"""Some samples of a batch, taken out of whatever holds them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .._types import Batch

SAMPLES = 8  # that are looked at more closely


def first_samples(batch: Batch, b: int) -> tuple[Batch, int] | None:
    """The first few samples of a batch: of every tensor and list in it that holds one entry for each sample.

    Args:
        batch: A tensor, or tuples, lists and mappings of tensors.
        b: Its number of samples.

    Returns:
        A batch of the same form and how many samples it holds; `None` where nothing in it counts the samples.

    Example:
        >>> import torch
        >>> part, count = first_samples({"x": torch.zeros(20, 3), "y": torch.zeros(20)}, 20)
        >>> part["x"].shape, count
        (torch.Size([8, 3]), 8)
    """
    count = min(SAMPLES, b - 1)
    small = cut(batch, b, lambda part: part[:count]) if count > 0 else None
    return None if small is None else (small, count)


def chosen_samples(batch: Batch, b: int, places: list[int]) -> Batch | None:
    """Some samples of a batch, in any order.

    Args:
        batch: A tensor, or tuples, lists and mappings of tensors.
        b: Its number of samples.
        places: Their numbers.

    Returns:
        A batch of the same form; `None` where nothing in it counts the samples.

    Example:
        >>> import torch
        >>> chosen_samples({"x": torch.arange(4) * 10}, 4, [3, 1])
        {'x': tensor([30, 10])}
    """
    return cut(batch, b, lambda part: _taken(part, places)) if places else None


def _taken(part: Any, places: list[int]) -> Any:
    return part[torch.tensor(places).to(part.device)] if isinstance(part, Tensor) else [part[k] for k in places]


def cut(batch: Batch, b: int, take: Callable[[Any], Any]) -> Batch | None:
    """A batch with everything in it that holds one entry for each sample replaced.

    Args:
        batch: A tensor, or tuples, lists and mappings of tensors.
        b: Its number of samples.
        take: Of a tensor whose first dimension counts the samples, or a list of as many items.

    Returns:
        A batch of the same form; `None` where nothing in it counts the samples, or it cannot be made anew.

    Example:
        >>> import torch
        >>> cut({"x": torch.zeros(20, 3), "scale": 2.0}, 20, lambda part: part[4:6])["x"].shape
        torch.Size([2, 3])
    """
    taken = False

    def of(part: Any) -> Any:
        nonlocal taken
        if isinstance(part, Tensor):
            if not part.ndim or len(part) != b:
                return part
            taken = True
            return take(part)
        if isinstance(part, PackedSequence):
            raise _CannotCutError
        if isinstance(part, Mapping):
            found = {key: of(value) for key, value in part.items()}
            return found if type(part) is dict else type(part)(found)  # pyright: ignore[reportCallIssue]
        if isinstance(part, list) and len(part) == b and not all(isinstance(item, (int, float)) for item in part):
            taken = True
            return take(part)
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*(of(item) for item in part))
        if isinstance(part, (list, tuple)):
            return type(part)(of(item) for item in part)
        if part is None or isinstance(part, (str, bytes, int, float, bool)):
            return part
        return _made_anew(part, of)

    try:
        small = of(batch)
    except Exception:  # a container that cannot be made anew
        return None
    return small if taken else None


def _made_anew(whole: Any, of: Callable[[Any], Any]) -> Any:
    """A plain object with its attributes cut."""
    if not hasattr(whole, "__dict__") or isinstance(whole, type) or callable(whole):
        raise _CannotCutError
    made = copy.copy(whole)
    made.__dict__.update({name: of(value) for name, value in vars(whole).items()})
    return made


class _CannotCutError(Exception):
    """A part that holds samples in a way of its own."""
