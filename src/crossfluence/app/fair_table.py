"""A table of people as features, labels and groups: categories one-hot, missing values by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..tabular.fairness import Part
from .columns import TableError, no_quantity
from .table_files import listed, read_frame

MISSING = frozenset({"", "?", "na", "n/a", "nan", "none", "null"})
MOST_LEVELS = 60  # of a category; columns with more are names, dates or free text
REST = "all others"
ABSENT = "missing"
RULE = "Missing cells: of a category, a category of their own; of a number, the median of the training rows and a mark."


@dataclass(frozen=True, eq=False)
class People:
    """The rows of a table that have a label and a group.

    Attributes:
        frame: Feature columns, text as it stands there, "" where a cell is missing.
        y: 1 for the favourable label, `(n,)`.
        groups: The group of each row.
        ids: Of each row: its number in the file from 0, or its own.
        labels: The unfavourable and the favourable label.
        numeric: Names of the columns that hold numbers.
        remarks: Sentences: which label is favourable, which columns and rows are not used.
    """

    frame: pd.DataFrame = field(repr=False)
    y: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    labels: tuple[str, str]
    numeric: tuple[str, ...]
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Encoding:
    """From cells to numbers, as learnt from the training rows.

    Attributes:
        means: Of each numeric column.
        deviations: Of each numeric column.
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
            cells = people.frame[name].iloc[rows]
            if name not in people.numeric:
                levels[name] = tuple(sorted(set(cells.replace("", ABSENT))))
                continue
            numbers = _numbers(cells)
            known = numbers[np.isfinite(numbers)]
            medians[name] = float(np.median(known)) if len(known) else 0.0
            filled = np.where(np.isfinite(numbers), numbers, medians[name])
            means[name], deviations[name] = float(filled.mean()), float(filled.std()) or 1.0
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
        numbers = {name: _numbers(people.frame[name].iloc[rows]) for name in self.means}
        for name, held in numbers.items():
            filled = np.where(np.isfinite(held), held, self.medians[name])
            columns.append((filled - self.means[name]) / self.deviations[name])
        columns += [(~np.isfinite(numbers[name])).astype(float) for name in self.gaps]
        for name, levels in self.levels.items():
            cells = people.frame[name].iloc[rows].replace("", ABSENT).to_numpy()
            columns += [(cells == level).astype(float) for level in levels]
        return np.stack(columns, axis=1)

    def part(self, people: People, rows: np.ndarray) -> Part:
        """Some rows, encoded."""
        return Part(self.features(people, rows), people.y[rows], people.groups[rows])


def read_people(
    path: Path,
    *,
    label: str,
    group: str,
    favourable: str | None = None,
    columns: Sequence[str] | None = None,
    id_column: str | None = None,
    header: bool = True,
    encoding: str | None = None,
    like: People | None = None,
) -> People:
    """Reads a table with one row for each person.

    Args:
        path: `.csv`, `.tsv`, `.parquet` or `.npy`; text also as `.gz`.
        label: The column to predict; it must hold two values.
        group: A column, or `column=value` for that value against all others.
        favourable: The label whose rate is compared; default: the one that sorts last, such as 1, yes, >50K.
        columns: Features; default: all but the label, ids and free text.
        id_column: The column that names the rows; it is no feature.
        header: Whether the first line holds column names.
        encoding: Of a text file; default: told.
        like: Another table whose columns and labels this one must have: a hold-out.

    Returns:
        Rows with a label and a group.

    Raises:
        TableError: If the file or a column is missing, the label has not two values, or a group is alone.
    """
    if not path.exists():
        raise TableError(f"There is no file {path}.")
    frame, _ = read_frame(path, header=header, encoding=encoding, twins=True)
    frame = frame.map(lambda cell: "" if pd.isna(cell) else str(cell).strip())
    frame = frame.mask(frame.apply(lambda column: column.str.lower().isin(MISSING)), "")
    column, _, value = group.partition("=")
    use = list(like.frame.columns) if like is not None else None if columns is None else list(columns)
    for name in (label, column, *(use or ()), *([id_column] if id_column else [])):
        if name not in frame.columns:
            raise TableError(f"{path.name} has no column {name!r}; its columns are {listed(frame.columns)}.")
    _refuse_same(label, column, use)
    kept = (frame[label] != "") & (frame[column] != "")
    dropped = int((~kept).sum())
    ids = tuple(map(str, frame[id_column][kept])) if id_column else tuple(map(str, np.flatnonzero(kept)))
    frame = frame[kept].reset_index(drop=True)
    y, labels = _labels(frame[label], label, favourable if like is None else like.labels[1], path.name)
    if like is not None and labels != like.labels:
        raise TableError(f"Column {label!r} of {path.name} holds {labels}; that of the table holds {like.labels}.")
    groups = _groups(frame[column], column, value, path.name)
    remarks = [f"Rates of {label} = {labels[1]}, not {labels[0]}, are compared between groups of {column}."]
    if dropped:
        remarks.append(f"Not used: {dropped:,} rows of {path.name} without {label} or {column}.")
    features, left_out = (use, []) if use is not None else _features(frame, (label, id_column))
    if left_out:
        remarks.append(f"Not used, as they hold ids, one value or over {MOST_LEVELS} texts: {listed(left_out)}.")
    if not features:
        raise TableError(f"{path.name} has no column to predict {label!r} from; name some with --columns.")
    numeric = like.numeric if like is not None else tuple(name for name in features if _is_numeric(frame[name]))
    if like is not None:
        _refuse_text(frame, numeric, path.name)
    return People(frame[features], y, groups, ids, labels, numeric, (*remarks, RULE))


def _refuse_same(label: str, column: str, use: Sequence[str] | None) -> None:
    if label == column:
        raise TableError(f"--label and --group are both {label!r}; needed two columns.")
    if use and label in use:
        raise TableError(f"The label {label!r} is among --columns; a label cannot predict itself.")


def _labels(cells: pd.Series, name: str, favourable: str | None, file: str) -> tuple[np.ndarray, tuple[str, str]]:
    """1 for the favourable label, and both labels."""
    text = cells.str.rstrip(".") if set(cells.str[-1:]) == {"."} else cells  # as in adult.test
    held = sorted(set(text), key=lambda one: (_value(one), one))
    if len(held) != 2:
        raise TableError(
            f"Column {name!r} of {file} holds {len(held)} values, {listed(held)}; needed two labels. Join the others, "
            f"or name another column with --label."
        )
    if favourable is not None and favourable not in held:
        raise TableError(f"Column {name!r} of {file} does not hold {favourable!r}; it holds {listed(held)}.")
    wanted = favourable or held[1]
    other = held[0] if held[1] == wanted else held[1]
    return (text == wanted).to_numpy().astype(int), (other, wanted)


def _value(text: str) -> float:
    return float(np.nan_to_num(_value_or_nan(text)))


def _groups(cells: pd.Series, name: str, value: str, file: str) -> np.ndarray:
    held = sorted(set(cells))
    if len(held) < 2:
        raise TableError(f"Column {name!r} of {file} holds one value, {held[0]!r}; a gap needs at least two groups.")
    if value and value not in held:
        raise TableError(f"Column {name!r} of {file} does not hold {value!r}; it holds {listed(held)}.")
    if not value and len(held) > 12:
        raise TableError(
            f"Column {name!r} of {file} holds {len(held)} values, too many for groups. Name one: "
            f"--group {name}={held[0]}."
        )
    return np.array(np.where(cells == value, value, REST) if value else cells, dtype=object)


def _features(frame: pd.DataFrame, taken: tuple[str | None, ...]) -> tuple[list[str], list[str]]:
    """Columns that may be features, and those that are not."""
    features, left_out = list[str](), list[str]()
    for name in frame.columns:
        if name in taken:
            continue
        good = frame[name].nunique() > 1 and (
            no_quantity(name, _numbers(frame[name])) is None
            if _is_numeric(frame[name]) and (frame[name] != "").all()
            else _is_numeric(frame[name]) or frame[name].nunique() <= MOST_LEVELS
        )
        (features if good else left_out).append(name)
    return features, left_out


def _is_numeric(cells: pd.Series) -> bool:
    known = cells[cells != ""]
    return len(known) > 0 and bool(np.isfinite(_numbers(known)).all())


def _numbers(cells: pd.Series) -> np.ndarray:
    return np.array([_value_or_nan(cell) for cell in cells])


def _refuse_text(frame: pd.DataFrame, numeric: Sequence[str], file: str) -> None:
    for name in numeric:
        if not _is_numeric(frame[name]):
            text = next(cell for cell in frame[name] if cell and not np.isfinite(_value_or_nan(cell)))
            raise TableError(f"Column {name!r} of {file} holds {text!r}; in the table it holds numbers.")


def _value_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


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
