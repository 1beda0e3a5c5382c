"""Labels of samples: looked up, refused, kept in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._types import Id
from ..errors import DataError, IdError

PLAIN = {int, str}  # labels that are Python's own


def plain_id(label: Any) -> Id:
    """A label as Python has it, where NumPy, pandas or PyTorch gave a scalar of theirs."""
    return label.item() if hasattr(label, "item") and getattr(label, "ndim", 1) == 0 else label


def numbered(ids: Sequence[Id]) -> dict[Id, int]:
    """Row numbers by label.

    Args:
        ids: Labels.

    Returns:
        The row of each.

    Raises:
        DataError: If labels repeat or cannot be labels.
    """
    try:
        plain = ids if set(map(type, ids)) <= PLAIN else map(plain_id, ids)  # a million labels take a while one by one
        rows = dict(zip(plain, range(len(ids)), strict=True))
    except TypeError as error:
        raise DataError(f"An id cannot be used as a label: {error}. Use strings, numbers or tuples.") from error
    if len(rows) != len(ids):
        raise DataError(f"Got {len(ids)} ids of which only {len(rows)} differ; needed unique ones.")
    return rows


def row_of(label: Id, rows: Mapping[Id, int]) -> int:
    """The row of a label, or a sentence about what is there instead.

    Args:
        label: What is looked for.
        rows: Row numbers by label.

    Returns:
        The row number.

    Raises:
        IdError: If the label is unknown.
    """
    try:
        return rows[plain_id(label)]
    except (KeyError, TypeError):
        shown = ", ".join(repr(known) for known in list(rows)[:5])
        raise IdError(f"Unknown id {label!r}; there are {len(rows)} ids: {shown}, ...") from None


def label_to_json(label: Any) -> Any:
    """A label as JSON has it, tuples as lists.

    Args:
        label: A string, a number, None, or a tuple of such.

    Returns:
        What `label_from_json` makes an equal label of.

    Raises:
        TypeError: If it is anything else.
    """
    if label is None or isinstance(label, (str, bool, int, float)):
        return label
    if isinstance(label, tuple):
        return [label_to_json(part) for part in label]
    raise TypeError(
        f"Cannot save the id {label!r} of type {type(label).__name__}: needed int, str, float, bool, None or a tuple "
        f"of such. Give the risk ids=[str(x) for x in ...]."
    )


def label_from_json(label: Any) -> Id:
    """The label that `label_to_json` wrote."""
    return tuple(label_from_json(part) for part in label) if isinstance(label, list) else label
