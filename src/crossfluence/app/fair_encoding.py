"""People as numbers: quantities standardised, categories one-hot, missing values by a stated rule; parts at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..tabular.fairness import Part
from .fair_table import People

ABSENT = "missing"


@dataclass(frozen=True, eq=False)
class Encoding:
    """From cells to numbers, as learnt from the training rows.

    Attributes:
        means: Of each numeric column.
        deviations: Of each numeric column; 1 where all training rows hold one number.
        medians: Of each numeric column.
        gaps: Numeric columns with missing cells: they get a mark.
        levels: Of each category.
    """

    means: dict[str, float]
    deviations: dict[str, float]
    medians: dict[str, float]
    gaps: tuple[str, ...]
    levels: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, people: People, rows: np.ndarray) -> Encoding:
        """Statistics of the training rows' columns."""
        means, deviations, medians = dict[str, float](), dict[str, float](), dict[str, float]()
        gaps, levels = list[str](), dict[str, tuple[str, ...]]()
        for name in people.frame.columns:
            if name not in people.numbers:
                levels[name] = tuple(sorted(set(people.frame[name].iloc[rows].replace("", ABSENT))))
                continue
            numbers = people.numbers[name][rows]
            known = numbers[~np.isnan(numbers)]
            medians[name] = float(np.median(known / 2)) * 2 if len(known) else 0.0  # halves: two of 1e308 have a sum
            means[name], deviations[name] = _moments(np.where(np.isnan(numbers), medians[name], numbers))
            if len(known) < len(numbers):
                gaps.append(name)
        return cls(means, deviations, medians, tuple(gaps), levels)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features."""
        marks = [f"{name} {ABSENT}" for name in self.gaps]
        return (*self.means, *marks, *(f"{name}={level}" for name, levels in self.levels.items() for level in levels))

    def features(self, people: People, rows: np.ndarray) -> np.ndarray:
        """Numbers standardised, marks and categories 0 or 1; shape `(n, f)`."""
        columns = list[np.ndarray]()
        numbers = {name: people.numbers[name][rows] for name in self.means}
        for name, held in numbers.items():
            filled = np.where(np.isnan(held), self.medians[name], held)
            columns.append((filled / 2 - self.means[name] / 2) / (self.deviations[name] / 2))
        columns += [np.isnan(numbers[name]).astype(float) for name in self.gaps]
        for name, levels in self.levels.items():
            cells = people.frame[name].iloc[rows].replace("", ABSENT).to_numpy()
            columns += [(cells == level).astype(float) for level in levels]
        return np.stack(columns, axis=1)

    def part(self, people: People, rows: np.ndarray) -> Part:
        """Some rows, encoded."""
        return Part(self.features(people, rows), people.y[rows], people.groups[rows])


def _moments(numbers: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, also of 1e200, whose square is no number, and of 0.1, whose mean rounds."""
    if not np.ptp(numbers / 2):
        return float(numbers[0]), 1.0
    scale = 2.0 ** float(np.frexp(np.abs(numbers).max())[1] - 1)  # rounds nothing
    scaled = numbers / scale
    return float(scaled.mean() * scale), float(scaled.std() * scale) or 1.0


def split(people: People, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """Row numbers of parts drawn at random.

    Args:
        people: The table.
        shares: Of each part; they add up to one.
        seed: Of the draw.

    Returns:
        One array of row numbers for each part.
    """
    order = np.random.default_rng(seed).permutation(len(people))
    cuts = np.round(np.cumsum(shares)[:-1] * len(people)).astype(int)
    return np.split(order, cuts)
