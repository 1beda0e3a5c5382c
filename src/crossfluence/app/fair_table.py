"""A table of people: its label, its groups, and columns to predict from, as any table here is read."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from .categories import joined
from .chosen_columns import ids_of, known_columns, meant, written
from .columns import NO_NUMBER, TRUTH, Column, TableError, no_quantity, numbers_of, spelled
from .oddities import oddities
from .table_files import is_number, listed, read_frame

MISSING = frozenset({"", "?", "na", "n/a", "nan", "none", "null"})
MOST_LEVELS = 60  # of a category; columns with more are names, dates or free text
MOST_GROUPS = 12
OFTEN = 10  # rows for each value of a column that says the label
REST = "all others"
RULE = "Missing cells: of a category, a category of their own; of a number, the median of the training rows and a mark."


@dataclass(frozen=True, eq=False)
class People:
    """The rows of a table that have a label and a group.

    Attributes:
        frame: Feature columns, text as it stands there, "" where a cell is missing.
        numbers: Of each feature that holds quantities, `(n,)`; NaN where a cell holds none.
        y: 1 for the favourable label, `(n,)`.
        groups: The group of each row.
        ids: Of each row: its number in the file from 0, or its own.
        labels: The unfavourable and the favourable label.
        remarks: Sentences: which label is favourable, what is not used, what may be wrong.
    """

    frame: pd.DataFrame = field(repr=False)
    numbers: Mapping[str, np.ndarray] = field(repr=False)
    y: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    labels: tuple[str, str]
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)

    def with_remarks(self, other: People) -> People:
        """The same people, with what is said of a hold-out too."""
        return replace(self, remarks=tuple(dict.fromkeys((*self.remarks, *other.remarks))))


def read_people(
    path: Path,
    *,
    label: str,
    group: str,
    favourable: str | None = None,
    columns: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    id_column: str | None = None,
    header: bool = True,
    encoding: str | None = None,
    like: People | None = None,
) -> People:
    """Reads a table with one row for each person.

    Args:
        path: A file as `read_frame` reads it.
        label: The column to predict; it must hold two values.
        group: A column, or `column=value` for that value against all others.
        favourable: The label whose rate is compared; default: true or yes, or the one that sorts last, such as >50K.
        columns: Features; default: all but the label, ids and free text.
        exclude: Columns that are no features.
        id_column: The column that names the rows; it is no feature.
        header: Whether the first line holds column names.
        encoding: Of a text file; default: told.
        like: Another table whose columns and labels this one must have: a hold-out.

    Returns:
        Rows with a label and a group.

    Raises:
        TableError: If the file or a column is missing, the label has not two values, a group is alone, or a column
            says the label again.
    """
    cells, said = _Cells.of(path, header, encoding)
    column, value = _group_of(group, cells.frame)
    use = list(like.frame.columns) if like is not None else None if columns is None else list(dict.fromkeys(columns))
    known_columns([label, column, *(use or ()), *exclude], cells.frame, path, header=header)
    _refuse_same(label, column, use)
    ids = ids_of(cells.frame, id_column, path)
    kept = ((cells.text[label] != "") & (cells.text[column] != "")).to_numpy()
    said += _dropped(cells, kept, (label, column), path.name)
    y, labels = _labels(cells, label, favourable if like is None else like.labels[1], kept, path.name)
    if like is not None and labels != like.labels:
        raise TableError(f"Column {label!r} of {path.name} holds {labels}; that of the table holds {like.labels}.")
    none, cells = _taken_for_none(cells, [column]), cells.some(kept)
    groups = _groups(cells.text[column], column, value, path.name, none)
    compared = [f"Rates of {label} = {labels[1]}, not {labels[0]}, are compared between groups of {column}."]
    if favourable is None and like is None and not all(map(_has_value, labels)):
        compared.append(f"The other way round: --favourable {shlex.quote(labels[0])}.")
    wanted = [name for name in (cells.text.columns if use is None else use) if name not in {label, id_column, *exclude}]
    found = {name: _quantity(cells, name, like, path.name) for name in wanted}
    features, left_out = (wanted, []) if use is not None else _features(cells.text, found)
    if not features:
        raise TableError(f"{path.name} has no column to predict {label!r} from; name some with --columns.")
    used = pd.DataFrame({name: cells.text[name] for name in features}, dtype=object)
    if like is None:
        _refuse_label_again(used, y, label, column)
    quantities = {name: one for name in features if (one := found[name]) is not None}
    own = tuple(str(one) for one, keep in zip(ids, kept, strict=True) if keep)
    said += [*left_out, *spelled(quantities), *_alike(cells.alike, {label, column, *features}), *_without(quantities)]
    said += _unseen(cells.text, like, path.name) if like is not None else _odd(quantities, own)
    numbers = {name: one.numbers for name, one in quantities.items()}
    return People(used, numbers, y, groups, own, labels, (*compared, *said, RULE))


@dataclass(frozen=True, eq=False)
class _Cells:
    """The cells of a table as read, and as text.

    Attributes:
        frame: As read.
        shown: As written.
        text: The same, "" where a cell is missing, and values that differ in capitals alone as one.
        alike: Of each column, spellings that were taken for one value.
    """

    frame: pd.DataFrame
    shown: pd.DataFrame
    text: pd.DataFrame
    alike: Mapping[str, Sequence[Sequence[str]]]

    @classmethod
    def of(cls, path: Path, header: bool, encoding: str | None) -> tuple[_Cells, list[str]]:
        """The cells of a file, and sentences about what was guessed."""
        if not path.exists():
            raise TableError(f"There is no file {path}.")
        frame, said = read_frame(path, header=header, encoding=encoding)
        if not len(frame):
            raise TableError(f"{path.name} holds no rows.")
        shown = pd.DataFrame({name: written(frame[name]) for name in frame.columns}, dtype=object)
        known = shown.mask(shown.apply(lambda cells: cells.str.lower().isin(MISSING)), "")
        found = {name: joined(known[name]) for name in known.columns}
        text = pd.DataFrame({name: cells for name, (cells, _) in found.items()}, dtype=object)
        return cls(frame, shown, text, {name: alike for name, (_, alike) in found.items()}), said

    def some(self, kept: np.ndarray) -> _Cells:
        """Some of the rows."""
        frame, shown, text = (part.loc[kept].reset_index(drop=True) for part in (self.frame, self.shown, self.text))
        return _Cells(frame, shown, text, self.alike)


def _group_of(group: str, frame: pd.DataFrame) -> tuple[str, str]:
    """The column of the groups, and the one value that is asked about, or none."""
    if group in frame.columns:
        return group, ""
    cuts = [place for place, sign in enumerate(group) if sign == "="]
    column, value = next(
        ((group[:cut], group[cut + 1 :]) for cut in cuts if group[:cut].strip() in frame.columns),
        (group.partition("=")[0], group.partition("=")[2]),
    )
    return column.strip(), value.strip()


def _refuse_same(label: str, column: str, use: Sequence[str] | None) -> None:
    if label == column:
        raise TableError(f"--label and --group are both {label!r}; needed two columns.")
    if use and label in use:
        raise TableError(f"The label {label!r} is among --columns; a label cannot predict itself.")


def _dropped(cells: _Cells, kept: np.ndarray, names: tuple[str, str], file: str) -> list[str]:
    """A sentence about rows without label or group, and words of theirs that count as none."""
    if kept.all():
        return []
    count = int((~kept).sum())
    rows = "1 row" if count == 1 else f"{count:,} rows"
    return [f"Not used: {rows} of {file} without {names[0]} or {names[1]}{_taken_for_none(cells, names)}."]


def _taken_for_none(cells: _Cells, names: Sequence[str]) -> str:
    words = {one for name in names for one in cells.shown[name][cells.text[name] == ""] if one}
    return f" ({listed(sorted(words))} counted as missing)" if words else ""


def _labels(
    cells: _Cells, name: str, favourable: str | None, kept: np.ndarray, file: str
) -> tuple[np.ndarray, tuple[str, str]]:
    """1 for the favourable label, and both labels."""
    text = cells.text[name].loc[kept]
    text = text.str.rstrip(".") if set(text.str[-1:]) == {"."} else text  # as in adult.test
    held = sorted(set(text), key=lambda one: (_value(one), one.casefold(), one))
    if len(held) != 2:
        many = "one value" if len(held) == 1 else f"{len(held)} values"
        found = f"{many}{', ' if held else ''}{listed(held)}{_taken_for_none(cells, [name])}"
        way = "" if len(held) < 2 else " Join the others, or name another column with --label."
        raise TableError(f"Column {name!r} of {file} holds {found}; needed two labels.{way}")
    if favourable is not None and favourable not in held:
        hint = meant(favourable, held)
        raise TableError(f"Column {name!r} of {file} does not hold {favourable!r}; it holds {listed(held)}.{hint}")
    wanted = favourable or held[1]
    other = held[0] if held[1] == wanted else held[1]
    return (text == wanted).to_numpy().astype(int), (other, wanted)


def _value(text: str) -> float:
    """A label's place in order: 1 for true and yes, 0 for false and no and for words."""
    return float(TRUTH.get(text.lower(), text)) if _has_value(text) else 0.0


def _has_value(text: str) -> bool:
    return text.lower() in TRUTH or is_number(text)


def _groups(cells: pd.Series, name: str, value: str, file: str, none: str) -> np.ndarray:
    held = sorted(set(cells))
    if len(held) < 2:
        one = f"one value, {held[0]!r}{none}"
        raise TableError(f"Column {name!r} of {file} holds {one}; a gap needs at least two groups.")
    if value and value not in held:
        hint = meant(value, held)
        raise TableError(f"Column {name!r} of {file} does not hold {value!r}; it holds {listed(held)}.{hint}")
    if not value and len(held) > MOST_GROUPS:
        largest = cells.value_counts().index[0]
        raise TableError(
            f"Column {name!r} of {file} holds {len(held)} values, too many for groups. Name one, to be compared with "
            f"all others: --group {shlex.quote(f'{name}={largest}')}. Or add a column with fewer groups."
        )
    return np.array(np.where(cells == value, value, REST) if value else cells, dtype=object)


def _quantity(cells: _Cells, name: str, like: People | None, file: str) -> Column | None:
    """A column of numbers; nothing for a category: text, true and false, or few values of which some are words."""
    found, text = numbers_of(cells.frame[name]), cells.text[name]
    if like is None:
        if found is None or found.truths:
            return None
        words = any(cell.lower() not in NO_NUMBER for cell in found.faults.values())
        return None if words and text.nunique() <= MOST_LEVELS else found
    if name not in like.numbers:
        return None
    if found is None and (text != "").any():
        word = next(cell for cell in text if cell and not is_number(cell))
        raise TableError(f"Column {name!r} of {file} holds {word!r}; in the table it holds numbers.")
    return found or Column(np.full(len(text), np.nan), {})


def _features(text: pd.DataFrame, found: Mapping[str, Column | None]) -> tuple[list[str], list[str]]:
    """Columns that may be features, and a sentence about those that are not."""
    features, left_out = list[str](), list[str]()
    for name, column in found.items():
        good = text[name].nunique() > 1 and (
            text[name].nunique() <= MOST_LEVELS if column is None
            else bool(column.faults) or no_quantity(name, column.numbers) is None
        )  # fmt: skip
        (features if good else left_out).append(name)
    said = f"Not used, as they hold ids, one value or over {MOST_LEVELS} texts: {listed(left_out)}."
    return features, [said] if left_out else []


def _refuse_label_again(text: pd.DataFrame, y: np.ndarray, label: str, column: str) -> None:
    """Refuses a column each of whose values goes with one label: a model of it learns nothing from people."""
    for name in text.columns:
        few = 2 <= text[name].nunique() <= len(y) / OFTEN
        if name != column and few and (pd.Series(y).groupby(text[name]).nunique() == 1).all():
            raise TableError(
                f"Column {name!r} says {label!r} again: each of its values goes with one label, so that a model need "
                f"look at nothing else. Leave it out: --exclude {shlex.quote(name)}."
            )


def _alike(alike: Mapping[str, Sequence[Sequence[str]]], names: set[str]) -> list[str]:
    shown = [f"{listed(group)} of {name!r}" for name, groups in alike.items() if name in names for group in groups]
    return [f"Read as one value each: {'; '.join(shown)}."] if shown else []


def _without(quantities: Mapping[str, Column]) -> list[str]:
    """A sentence about cells that hold no number and do not look empty."""
    words = {
        name: found for name, one in quantities.items()
        if (found := [cell for cell in one.faults.values() if cell.lower() not in MISSING])
    }  # fmt: skip
    shown = [f"{len(found):,} in {name!r}, such as {found[0]!r}" for name, found in words.items()]
    return [f"Cells that hold no number count as missing: {'; '.join(shown)}."] if shown else []


def _odd(quantities: Mapping[str, Column], ids: Sequence[str]) -> list[str]:
    whole = {name: one.numbers for name, one in quantities.items() if not one.faults}
    return oddities({name: numbers for name, numbers in whole.items() if np.ptp(numbers / 2) > 0}, ids)


def _unseen(text: pd.DataFrame, like: People, file: str) -> list[str]:
    """A sentence about categories of a hold-out that the table lacks; refuses a column that has no other."""
    found = dict[str, list[str]]()
    for name in like.frame.columns:
        here, there = set(text[name]) - {""}, set(like.frame[name]) - {""}
        if name in like.numbers or here <= there:
            continue
        if not here & there:
            raise TableError(
                f"Column {name!r} of {file} holds {listed(sorted(here))}; that of the table holds "
                f"{listed(sorted(there))}. Needed the same spelling in both."
            )
        found[name] = sorted(here - there)
    shown = [f"{name!r} holds {listed(levels)}" for name, levels in found.items()]
    return [f"Of {file}, {'; '.join(shown)}, which the table does not: of no category there."] if shown else []
