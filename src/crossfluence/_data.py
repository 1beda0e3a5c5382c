"""Batches that come back in the same order, and the probe that makes sure they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ._errors import DataError
from ._losses import length_of, tensors_in
from ._params import digest_tensors
from ._types import Batch


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches in order, again and again.

    Attributes:
        source: Tensors of one length, or one map-style dataset.
        size: Samples in a batch; the last may hold fewer.
    """

    source: Sequence[Any]
    size: int

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
            What iteration yields: a tensor, a tuple of tensors, or what the data set's samples collate to.
        """
        first = self.source[0]
        if not isinstance(first, Tensor):
            numbers = range(self.samples)[rows] if isinstance(rows, slice) else rows.tolist()
            return default_collate([first[number] for number in numbers])
        return first[rows] if len(self.source) == 1 else tuple(tensor[rows] for tensor in self.source)

    @property
    def versions(self) -> tuple[int, ...] | None:
        """Counts of in-place changes, where the source keeps them: equal counts mean equal content."""
        try:
            return tuple(tensor._version for tensor in self.source)
        except (AttributeError, RuntimeError):  # a dataset, or tensors made in inference mode
            return None

    @property
    def samples(self) -> int:
        """The number n of samples."""
        return len(self.source[0])


def batches(*source: Tensor | Dataset[Any], size: int = 256) -> Batches:
    """Batches in order, from tensors or a map-style dataset.

    Args:
        source: Tensors whose first dimensions agree (one tensor gives batches that are tensors, several give tuples),
            or one dataset with `__len__` and `__getitem__` (collated as PyTorch's `DataLoader` does).
        size: Samples in a batch.

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
    if size < 1:
        raise DataError(f"Got size={size}; needed at least 1.")
    if len(source) == 0:
        raise DataError("Got no tensors; needed at least one tensor or a map-style dataset.")
    if all(isinstance(part, Tensor) for part in source):
        lengths = [len(part) if part.ndim else 0 for part in source if isinstance(part, Tensor)]
        if len(set(lengths)) > 1:
            raise DataError(f"Got tensors of lengths {lengths}; needed one length: the number of samples.")
    elif len(source) > 1 or not (hasattr(source[0], "__len__") and hasattr(source[0], "__getitem__")):
        kinds = [type(part).__name__ for part in source]
        raise DataError(f"Got {kinds}; needed tensors, or one dataset with __len__ and __getitem__.")
    return Batches(source, size)


@dataclass(frozen=True)
class Reading:
    """What the data was when it was first read.

    Attributes:
        sizes: Samples in each batch.
        digests: A content hash of each batch.
        versions: Of the tensors behind the batches, where they are known.
    """

    sizes: tuple[int, ...]
    digests: tuple[str, ...]
    versions: tuple[int, ...] | None = None


def probe(data: Iterable[Batch], what: str = "data") -> Reading:
    """Reads the data and makes sure that it comes back in the same order.

    Args:
        data: An iterable of batches.
        what: What it is called in errors.

    Returns:
        Length and content hash of each batch.

    Raises:
        DataError: If there is none, it can be read only once, or it changes from one reading to the next.
    """
    if isinstance(data, Tensor):
        raise DataError(f"Got a tensor as {what}; needed batches. Type: crossfluence.batches(tensor, size=256).")
    if isinstance(data, Dataset) and not hasattr(data, "__iter__"):
        raise DataError(f"Got a {type(data).__name__} as {what}; needed batches. Type: crossfluence.batches(dataset).")
    if not isinstance(data, Iterable):
        raise DataError(f"Got {what} of type {type(data).__name__}; needed batches. Type: crossfluence.batches(x, y).")
    if iter(data) is iter(data):
        raise DataError(
            f"The {what} is a {type(data).__name__} that can be read only once; needed an iterable that starts again, "
            f"such as a list of batches or crossfluence.batches(x, y)."
        )
    fixed = isinstance(data, Batches) and isinstance(data.source[0], Tensor)  # the same order by construction
    readings = [[(length_of(batch), digest(batch)) for batch in data] for _ in range(1 if fixed else 2)]
    _refuse_changes(readings[0], readings[-1])
    if not sum(length for length, _ in readings[0]):
        raise DataError(f"The {what} holds no samples; needed at least one batch.")
    versions = data.versions if isinstance(data, Batches) else None
    return Reading(tuple(length for length, _ in readings[0]), tuple(found for _, found in readings[0]), versions)


def _refuse_changes(first: Sequence[tuple[int, str]], second: Sequence[tuple[int, str]]) -> None:
    if len(first) != len(second):
        raise DataError(f"The data gave {len(first)} batches at first and {len(second)} the second time.")
    for index, (before, after) in enumerate(zip(first, second, strict=True)):
        if before != after:
            raise DataError(
                f"The data changes from one reading to the next: batch {index} differs. Scores belong to samples in "
                f"order: use DataLoader(shuffle=False) without random augmentation, or crossfluence.batches(x, y)."
            )


def digest(batch: Batch) -> str:
    """A content hash of all tensors in a batch.

    Args:
        batch: As for `length_of`.

    Returns:
        32 hexadecimal digits.
    """
    return digest_tensors((str(place), tensor) for place, tensor in enumerate(tensors_in(batch)))
