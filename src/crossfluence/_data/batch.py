"""The tensors of a batch, its content, and the number of samples it may have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._autodiff.params import digest_parts
from .._types import Batch
from ..errors import DataError

PLAIN = (Tensor, np.ndarray, np.generic, str, bytes, int, float, complex, type(None))


def tensors_in(batch: Batch) -> Iterator[Tensor]:
    """Every tensor of a batch, in order.

    Args:
        batch: A tensor, or tuples, lists, mappings and plain objects that hold tensors.

    Yields:
        The tensors.
    """
    yield from (leaf for leaf in leaves(batch) if isinstance(leaf, Tensor))


def leaves(batch: Batch, above: tuple[int, ...] = ()) -> Iterator[Any]:
    """Every tensor, array, number and string of a batch, in order.

    Args:
        batch: Anything; an object that refers to one that holds it, as the graphs of PyTorch Geometric do, ends there.
        above: Identities of what holds it.

    Yields:
        Leaves.
    """
    if isinstance(batch, PLAIN):
        yield batch
    elif hasattr(batch, "__array__") and not isinstance(batch, type):
        yield np.asarray(batch)  # a table's column, an array of another library
    elif id(batch) not in above:
        for part in _parts(batch):
            yield from leaves(part, (*above, id(batch)))


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's parameters; nothing where they are on several, or there are none."""
    found = {part.device for part in model.parameters()}
    return found.pop() if len(found) == 1 else None


def moved(batch: Batch, device: torch.device | None) -> Batch:
    """A batch on a device.

    Args:
        batch: A tensor, or tuples, lists and mappings that hold tensors; an object with a method `to` moves itself.
        device: Where to; by default nowhere.

    Returns:
        The batch itself, if it is there already.
    """
    if device is None or all(part.device == device for part in tensors_in(batch)):
        return batch
    if isinstance(batch, Tensor) or callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(part, device) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(moved(part, device) for part in batch)
    return batch  # an object that only its loss can move


def _parts(batch: Batch) -> Iterable[Any]:
    if isinstance(batch, Mapping):
        return batch.values()
    if isinstance(batch, (list, tuple)):
        return batch
    if isinstance(batch, type):
        return ()
    slots = [name for kind in type(batch).__mro__ for name in _slots(kind) if hasattr(batch, name)]
    return [*getattr(batch, "__dict__", {}).values(), *(getattr(batch, name) for name in slots)]


def _slots(kind: type) -> Iterable[str]:
    named = vars(kind).get("__slots__", ())
    return [name for name in ([named] if isinstance(named, str) else named) if name not in {"__dict__", "__weakref__"}]


def digest(batch: Batch) -> str:
    """A content hash of all tensors, arrays, numbers and strings in a batch.

    Args:
        batch: As for `length_of`.

    Returns:
        32 hexadecimal digits.
    """
    return digest_parts((str(place), leaf) for place, leaf in enumerate(leaves(batch)))


def length_of(batch: Batch) -> int:
    """Number of samples that a batch seems to have, before any loss is evaluated.

    That is the first dimension of its first tensor; the number of sequences, where a list of them or a
    `PackedSequence` comes first; and the number of graphs, where the batch states it (`num_graphs`).

    Args:
        batch: A tensor, or tuples, lists, mappings and plain objects that hold tensors.

    Returns:
        b.

    Raises:
        DataError: If there is no tensor in it.
    """
    if (found := _length(batch, ())) is not None:
        return found
    arrays = any(isinstance(leaf, np.ndarray) for leaf in leaves(batch))
    raise DataError(
        f"A batch of type {type(batch).__name__} holds no tensor, so its length is unknown. Needed a tensor, a tuple "
        f"or a dict of tensors whose first dimension counts the samples, or Risk(..., n=lambda batch: ...)."
        f"{' Make tensors of its arrays: torch.from_numpy(array).' if arrays else ''}"
    )


def _length(batch: Batch, above: tuple[int, ...], beside: frozenset[int] = frozenset()) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim and not batch.is_nested else batch.size(0) if batch.ndim else None
    if isinstance(batch, PackedSequence):
        return int(batch.batch_sizes[0])
    if isinstance(batch, PLAIN) or id(batch) in above:
        return None
    if isinstance(graphs := getattr(batch, "num_graphs", None), int):
        return graphs
    if _tensors(batch) and _counts_items(batch, beside, outermost=not above):
        return len(batch)
    parts = list(_parts(batch))
    lengths = frozenset(part.shape[0] for part in parts if isinstance(part, Tensor) and part.ndim)
    found = (_length(part, (*above, id(batch)), lengths) for part in parts)
    return next((length for length in found if length is not None), None)


def _tensors(batch: Batch) -> TypeGuard[Sequence[Tensor]]:
    """True for a list or tuple of tensors with dimensions, and nothing else."""
    listed = isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields") and len(batch) > 0
    return listed and all(isinstance(part, Tensor) and part.ndim for part in batch)


def _counts_items(items: Sequence[Tensor], beside: frozenset[int], *, outermost: bool) -> bool:
    """True if tensors in a list are samples, rather than columns of the samples."""
    lengths = {len(item) for item in items}
    if outermost:  # (x, y) are columns; so is everything but a list of sequences that differ in length alone
        alike = len({(item.shape[1:], item.dtype) for item in items}) == 1
        return isinstance(items, list) and len(lengths) > 1 and alike
    return len(lengths) > 1 or (len(items) in beside and not lengths <= beside)


def possible_lengths(batch: Batch) -> set[int]:
    """All numbers of samples that something in a batch speaks for; a loss of any other length is a mistake.

    First dimensions of tensors, lengths of lists, sequences of a `PackedSequence`, graphs (`num_graphs`, `ptr`, or the
    vector `batch` of graph libraries), and samples that a mask or labels of which some are negative leave in.

    Args:
        batch: As for `length_of`.

    Returns:
        Numbers.
    """
    found = {tensor.shape[0] for tensor in tensors_in(batch) if tensor.ndim and not tensor.is_nested}
    found |= {_kept(tensor) for tensor in tensors_in(batch) if tensor.ndim == 1 and not tensor.is_floating_point()}
    found |= set(_lengths_of_lists(batch, ()))
    index, starts, graphs = (_named(batch, name) for name in ("batch", "ptr", "num_graphs"))
    found |= {graphs} if isinstance(graphs, int) else set()
    found |= {len(starts) - 1} if isinstance(starts, Tensor) and starts.ndim == 1 else set()
    if isinstance(index, Tensor) and index.ndim == 1 and index.numel() and not index.is_floating_point():
        found.add(int(index.max()) + 1)
    return found


def _named(batch: Batch, name: str) -> Any:
    return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)


def _kept(tensor: Tensor) -> int:
    return int((tensor if tensor.dtype == torch.bool else tensor >= 0).sum())


def _lengths_of_lists(batch: Batch, above: tuple[int, ...]) -> Iterator[int]:
    if isinstance(batch, PackedSequence):
        yield int(batch.batch_sizes[0])
    elif not isinstance(batch, PLAIN) and id(batch) not in above:
        if isinstance(batch, (list, tuple)) and (above or _is_list_of_samples(batch)):
            yield len(batch)
        for part in _parts(batch):
            yield from _lengths_of_lists(part, (*above, id(batch)))


def _is_list_of_samples(batch: Batch) -> bool:
    """True if the batch itself can be a list of samples: its length is then no dimension of a column."""
    return _tensors(batch) and isinstance(batch, list) and all(len(batch) not in item.shape[1:] for item in batch)
