"""Sentences about columns that are equal, nearly constant, of very different size, or hold odd cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .columns import far_cells, goes_up, stand_ins

if TYPE_CHECKING:
    from .._types import Id

FAR_APART = 1e6  # times that one column varies more than another
ROUNDING = 1e-9  # deviation per size, below which a column varies by rounding


def oddities(columns: Mapping[str, np.ndarray], ids: Sequence[Id]) -> list[str]:
    """Sentences about columns that should perhaps not be used as they are.

    Args:
        columns: Finite numbers by name, none of them constant.
        ids: Of the rows.

    Returns:
        Sentences with their names: numbers that stand for missing ones or count rows, cells far away, columns that
        are equal, nearly constant or of very different size.
    """
    far = {name: found for name, numbers in columns.items() if (found := far_cells(name, numbers, ids))}
    near = {name: numbers for name, numbers in columns.items() if name not in far}
    alone = [one for name, numbers in near.items() for one in (stand_ins(name, numbers), goes_up(name, numbers)) if one]
    scaled = {name: _scaled(numbers) for name, numbers in near.items()}
    return [*alone, *far.values(), *_equal(scaled), *_nearly_constant(near), *_of_other_size(near)]


def _scaled(numbers: np.ndarray) -> bytes:
    """The same for columns that are multiples of one another, plus a number."""
    size = np.abs(numbers).max()
    centred = numbers / size - (numbers / size).mean()
    unit = centred / np.abs(centred).max()
    sign = np.sign(unit[np.flatnonzero(np.abs(unit) > 0.5)[0]])
    return np.round(sign * unit, 9).tobytes()


def _equal(scaled: Mapping[str, bytes]) -> list[str]:
    groups: dict[bytes, list[str]] = {}
    for name, key in scaled.items():
        groups.setdefault(key, []).append(name)
    return [
        f"Columns {', '.join(map(repr, names))} say the same, up to scale, so it counts {len(names)} times; leave "
        f"{'one' if len(names) == 2 else 'all but one'} out with --exclude."
        for names in groups.values()
        if len(names) > 1
    ]


def _nearly_constant(columns: Mapping[str, np.ndarray]) -> list[str]:
    return [
        f"Column {name!r} varies by {np.ptp(numbers / 2) * 2:.2g} around {np.median(numbers):.6g}: perhaps nothing but "
        f"rounding, and it counts as much as any other. If so, leave it out with --exclude."
        for name, numbers in columns.items()
        if np.ptp(numbers / 2) < ROUNDING * np.abs(numbers / 2).max()
    ]


def _of_other_size(columns: Mapping[str, np.ndarray]) -> list[str]:
    if not columns:
        return []
    sizes = {name: np.abs(numbers).max() * (numbers / np.abs(numbers).max()).std() for name, numbers in columns.items()}
    least, most = min(sizes, key=lambda name: sizes[name]), max(sizes, key=lambda name: sizes[name])
    if not sizes[least] or sizes[most] / FAR_APART <= sizes[least]:
        return []
    times = round(np.log10(sizes[most]) - np.log10(sizes[least]))
    return [
        f"Columns are of very different size: {most!r} varies about 1e+{times} times as much as "
        f"{least!r}. Each is brought to standard deviation 1, so all count alike."
    ]
