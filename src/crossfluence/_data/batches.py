"""Batches that come back in the same order, and the probe that makes sure they do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from .._types import Batch
from ..errors import DataError, RankError
from .batch import device_of, digest, length_of, moved, tensors_in
from .ranks import ALONE, Ranks

SIZE = 256  # samples in a batch where nothing else is known

Count: TypeAlias = int | Sequence[int] | Callable[[Batch], int]
"""How many samples there are: in all, in each batch, or in the batch that is given."""


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches in order, again and again.

    Attributes:
        source: Tensors of one length, or one map-style dataset.
        size: Samples in a batch; the last may hold fewer.
        names: Of the tensors, where batches are dictionaries.
        collate: What makes one batch of a data set's samples.
        free: Whether nobody asked for this size, so that another may be chosen.
        device: Where batches are moved; by default nowhere.
    """

    source: Sequence[Any]
    size: int
    names: tuple[str, ...] = ()
    collate: Callable[[list[Any]], Batch] = default_collate
    free: bool = False
    device: torch.device | None = None

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.size):
            yield self.take(slice(start, min(start + self.size, self.samples)))

    def __len__(self) -> int:
        return -(-self.samples // self.size)

    def take(self, rows: slice | Tensor) -> Batch:
        """One batch of chosen samples.

        Args:
            rows: Their numbers.

        Returns:
            What iteration yields: a tensor, a tuple or a dictionary of tensors, or what the data set's samples collate
            to.
        """
        if not self.fixed:
            numbers = range(self.samples)[rows] if isinstance(rows, slice) else rows.tolist()
            return moved(self._collated([self.source[0][number] for number in numbers]), self.device)
        parts = [moved(tensor[rows], self.device) for tensor in self.source]
        if self.names:
            return dict(zip(self.names, parts, strict=True))
        return parts[0] if len(parts) == 1 else tuple(parts)

    def _collated(self, samples: list[Any]) -> Batch:
        if self.collate is default_collate:
            _refuse_lists_of_numbers(samples[0])
        try:
            return self.collate(samples)
        except (RuntimeError, TypeError) as error:
            if self.collate is not default_collate:
                raise
            raise DataError(
                f"PyTorch's default_collate cannot make one batch of these samples: {str(error)[:200]}. Pad them to "
                f"one length, for instance crossfluence.batches(dataset, collate=fn), fn(list of samples) -> batch."
            ) from error

    @property
    def fixed(self) -> bool:
        """True if the source is tensors, so that batches come in the same order by construction."""
        return isinstance(self.source[0], Tensor)

    @property
    def growing(self) -> bool:
        """True if larger batches may be chosen, and would be fewer."""
        return self.free and self.fixed and self.samples > self.size

    @property
    def samples(self) -> int:
        """The number n of samples."""
        return len(self.source[0])


def batches(
    *source: Tensor | Mapping[str, Tensor] | Dataset[Any],
    size: int | None = None,
    collate: Callable[[list[Any]], Batch] = default_collate,
) -> Batches:
    """Batches in order, from tensors or a map-style dataset.

    Args:
        source: Tensors whose first dimensions agree (one tensor gives batches that are tensors, several give tuples),
            one mapping of such tensors (what a tokenizer returns; batches are then dictionaries), or one dataset with
            `__len__` and `__getitem__`.
        size: Samples in a batch. Default: 256; a `Risk` or `Recipe` with a loss of each sample takes more of small
            tensors and models: as many as need half a million numbers of activations and 64 million of gradients (one
            gradient per sample), at most 65,536. Scores do not depend on it.
        collate: What makes one batch of a list of a dataset's samples; by default as PyTorch's `DataLoader` does.

    Returns:
        An iterable that yields the same batches every time.

    Raises:
        DataError: If there is nothing, the lengths differ or the size is not positive.

    Example:
        >>> import torch
        >>> x, y = torch.arange(5), torch.arange(5) * 10
        >>> [len(batch_x) for batch_x, batch_y in batches(x, y, size=2)]
        [2, 2, 1]
    """
    if size is not None and size < 1:
        raise DataError(f"Got size={size}; needed at least 1.")
    if len(source) == 0:
        raise DataError("Got no tensors; needed at least one tensor or a map-style dataset.")
    names, parts = _columns(source[0]) if isinstance(source[0], Mapping) and len(source) == 1 else ((), source)
    if all(isinstance(part, Tensor) for part in parts):
        _refuse_lengths(names, parts)
    elif len(parts) > 1 or not (hasattr(parts[0], "__len__") and hasattr(parts[0], "__getitem__")):
        kinds = [type(part).__name__ for part in parts]
        arrays = " Make tensors of the arrays: torch.from_numpy(x)." if "ndarray" in kinds else ""
        raise DataError(f"Got {kinds}; needed tensors, or one dataset with __len__ and __getitem__.{arrays}")
    else:
        _refuse_lists(parts[0])
    return Batches(parts, size or SIZE, names, collate, free=size is None)


@dataclass(frozen=True, eq=False)
class Moved:
    """Batches of an iterable, each moved to a device as it comes.

    Attributes:
        source: Batches that come back.
        device: Where to.
    """

    source: Iterable[Batch]
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source:
            yield moved(batch, self.device)


def beside(data: Iterable[Batch], model: nn.Module) -> Iterable[Batch]:
    """The data as it is, or batch by batch on the accelerator that all of the model's parameters are on.

    Args:
        data: Batches that come back; their own tensors stay where they are.
        model: The model that they go into.

    Returns:
        Batches on the model's device.
    """
    device = device_of(model)
    if (
        device is None
        or device.type == "cpu"
        or all(part.device == device for part in tensors_in(next(iter(data), ())))
    ):
        return data
    return replace(data, device=device) if isinstance(data, Batches) else Moved(data, device)


def _columns(mapping: Mapping[str, Any]) -> tuple[tuple[str, ...], Sequence[Any]]:
    """Names and tensors of a mapping that holds nothing else."""
    wrong = {name: type(value).__name__ for name, value in mapping.items() if not isinstance(value, Tensor)}
    if wrong or not mapping:
        raise DataError(
            f"Got a {type(mapping).__name__} with {wrong or 'nothing in it'}; needed tensors of one length. Of a "
            f"tokenizer, type tokenizer(texts, padding=True, return_tensors='pt'); of a list, torch.tensor(list)."
        )
    return tuple(mapping), tuple(mapping.values())


def _refuse_lengths(names: tuple[str, ...], tensors: Sequence[Any]) -> None:
    lengths = [len(part) if part.ndim else 0 for part in tensors]
    if len(set(lengths)) > 1:
        came = dict(zip(names, lengths, strict=True)) if names else lengths
        raise DataError(f"Got tensors of lengths {came}; needed one length: the number of samples.")


def _refuse_lists(source: Any) -> None:
    """Tensors in a list are columns to one reader and samples to another."""
    listed = isinstance(source, (list, tuple)) and len(source) > 0
    if listed and all(isinstance(part, (Tensor, np.ndarray)) for part in source):
        kind = type(source).__name__
        raise DataError(
            f"Got one {kind} of {len(source)} tensors or arrays; needed to know whether each is a column or a sample. "
            f"If columns of one length, type crossfluence.batches(*tensors), or Recipe(data=tuple(tensors)); if "
            f"samples, torch.stack(tensors)."
        )


def _refuse_lists_of_numbers(sample: Any) -> None:
    """PyTorch's default_collate makes of a list of numbers in each sample a list of columns."""
    parts = sample if isinstance(sample, Mapping) else dict(enumerate(sample)) if isinstance(sample, tuple) else {}
    for name, part in parts.items():
        if isinstance(part, list) and part and isinstance(part[0], (int, float)):
            raise DataError(
                f"A sample holds a list of {len(part)} numbers under {name!r}; needed a tensor. Of datasets.Dataset, "
                f"type dataset.with_format('torch'), or crossfluence.batches(dataset, collate=fn), fn(list of samples) "
                f"-> batch."
            )


@dataclass(frozen=True)
class DataManifest:
    """Lengths and content hashes of the data at their first reading.

    Attributes:
        sizes: Samples in each batch.
        digests: A content hash of each batch.
    """

    sizes: tuple[int, ...]
    digests: tuple[str, ...]


def numbered_batches(data: Iterable[Batch], wanted: Collection[int] | None = None) -> Iterator[tuple[int, Batch]]:
    """Batches with their numbers; batches that are not wanted are not read, where the data can leave them out.

    Args:
        data: An iterable of batches.
        wanted: Numbers of batches; default: all.

    Yields:
        Number and batch, in order.
    """
    if wanted is None:
        yield from enumerate(data)
    elif isinstance(data, Batches):
        for start in (index * data.size for index in sorted(wanted) if index < len(data)):
            yield start // data.size, data.take(slice(start, min(start + data.size, data.samples)))
    elif isinstance(data, (list, tuple)):
        yield from ((index, data[index]) for index in sorted(wanted) if index < len(data))
    elif (loader := _only(data, wanted)) is not None:
        yield from zip(sorted(wanted), loader, strict=False)
    else:
        end = max(wanted, default=-1) + 1
        yield from ((index, batch) for index, batch in enumerate(islice(data, end)) if index in wanted)


def _only(data: Iterable[Batch], wanted: Collection[int]) -> DataLoader[Any] | None:
    """A `DataLoader` of the same batches without those that are not wanted; nothing where it cannot be made."""
    if type(data) is not DataLoader or isinstance(data.dataset, IterableDataset) or data.batch_sampler is None:
        return None
    return DataLoader(
        data.dataset,
        batch_sampler=[rows for index, rows in enumerate(data.batch_sampler) if index in wanted],
        collate_fn=data.collate_fn,
        num_workers=data.num_workers,
        pin_memory=data.pin_memory,
        worker_init_fn=data.worker_init_fn,
        multiprocessing_context=data.multiprocessing_context,
    )


def probe(data: Iterable[Batch], what: str = "data", n: Count | None = None, ranks: Ranks = ALONE) -> DataManifest:
    """Reads the data and makes sure that it comes back in the same order.

    Args:
        data: An iterable of batches.
        what: What it is called in errors.
        n: How many samples there are, where the user says so.
        ranks: Who share it: each reads its part, and the first batch of the next rank.

    Returns:
        Length and content hash of each batch; lengths as they seem, where n is not given.

    Raises:
        DataError: If there is none, it can be read only once, or it changes from one reading to the next.
    """
    if isinstance(data, Tensor):
        raise DataError(f"Got a tensor as {what}; needed batches. Type: crossfluence.batches(tensor, size=256).")
    if isinstance(data, Dataset) and not hasattr(data, "__iter__"):
        raise DataError(f"Got a {type(data).__name__} as {what}; needed batches. Type: crossfluence.batches(dataset).")
    if isinstance(data, Mapping):
        raise DataError(f"Got a {type(data).__name__} as {what}; needed batches. Type: crossfluence.batches(mapping).")
    if not isinstance(data, Iterable):
        raise DataError(f"Got {what} of type {type(data).__name__}; needed batches. Type: crossfluence.batches(x, y).")
    if iter(data) is iter(data):
        raise DataError(
            f"The {what} is a {type(data).__name__} that can be read only once; needed an iterable that starts again, "
            f"such as a list of batches or crossfluence.batches(x, y)."
        )
    if isinstance(data, tuple) and all(isinstance(part, Tensor) and part.ndim for part in data):
        columns = len({len(part) for part in data}) == 1 and len({part.ndim for part in data}) > 1
        if columns:
            raise DataError(f"Got a tuple of tensors as {what}; needed batches. Type: crossfluence.batches(*tensors).")
    fixed = isinstance(data, Batches) and data.fixed  # the same order by construction
    count = _counter(n)
    readings = [_read(data, count, ranks) for _ in range(1 if fixed else 2)]
    _refuse_changes(readings[0], readings[-1])
    sizes = _settled(tuple(length for length, _ in readings[0]), n)
    if not sum(sizes):
        raise DataError(f"The {what} holds no samples; needed at least one batch.")
    return DataManifest(sizes, tuple(found for _, found in readings[0]))


def _read(data: Iterable[Batch], count: Callable[[Batch], int], ranks: Ranks) -> list[tuple[int, str]]:
    """Length and content hash of each batch, of which each rank reads its part if there are several."""
    if ranks.count == 1 or not isinstance(data, Sized):
        return [(count(batch), digest(batch)) for batch in data]
    ones = [1] * len(data)
    parts = [replace(ranks, number=number).part(ones) for number in range(ranks.count)]
    beside = parts[(ranks.number + 1) % ranks.count]  # its first batch shows whether that rank has the same data
    wanted = {*parts[ranks.number], *beside[:1]}
    found = {index: (count(batch), digest(batch)) for index, batch in numbered_batches(data, wanted)}
    heard = ranks.told("reading the data", (len(data), found))
    for number, (length, other) in enumerate(heard):
        if length != len(data) or any(found.get(index, each) != each for index, each in other.items()):
            raise RankError(
                f"Ranks {ranks.number} and {number} have different data ({len(data)} and {length} batches). Every "
                f"rank needs all of the data, in the same order, of which it reads its part: leave samplers that split "
                f"it away, and seed what makes it."
            )
    whole = dict(pair for _, other in heard for pair in other.items())
    return [whole[index] for index in range(len(data))]


def _counter(n: Count | None) -> Callable[[Batch], int]:
    if callable(n):
        return lambda batch: _whole(n(batch))
    return length_of if n is None else lambda batch: length_of(batch) if any(True for _ in tensors_in(batch)) else 0


def _whole(count: Any) -> int:
    """A number of samples, if it is one."""
    try:
        if int(count) == count and count >= 0:
            return int(count)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise DataError(f"Got n={count!r} for a batch; needed its number of samples, a whole number.")


def _settled(seeming: tuple[int, ...], n: Count | None) -> tuple[int, ...]:
    """The lengths of the batches, where n decides them."""
    if n is None or callable(n):
        return seeming
    if isinstance(n, Sequence):
        if len(n) != len(seeming):
            raise DataError(f"Got n with {len(n)} numbers for {len(seeming)} batches; needed one for each.")
        return tuple(map(_whole, n))
    return (_whole(n),) if len(seeming) == 1 else seeming


def _refuse_changes(first: Sequence[tuple[int, str]], second: Sequence[tuple[int, str]]) -> None:
    if len(first) != len(second):
        raise DataError(f"The data gave {len(first)} batches at first and {len(second)} the second time.")
    for index, (before, after) in enumerate(zip(first, second, strict=True)):
        if before != after:
            raise DataError(
                f"The data changes from one reading to the next: batch {index} differs. Scores belong to samples in "
                f"order: use DataLoader(shuffle=False) without random augmentation, or crossfluence.batches(x, y)."
            )
