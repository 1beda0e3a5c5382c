"""Results: one number per training sample and question. Knows nothing of solvers, so it opens without a model."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ._errors import DataError, IdError, ResultFileError
from ._extras import optional
from ._files import write_atomically
from ._types import Id

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

FORMAT = "crossfluence.scores/1"


@dataclass(frozen=True)
class SolveReport:
    """How an answer was computed, and how far it can be trusted.

    Attributes:
        solver: The solver that did the work (what `Auto` chose, for one).
        damping: Added to the curvature's eigenvalues, in units of the mean loss per squared parameter.
        steps: Iterations for each objective; empty for direct solvers.
        residuals: `‖J'u - a‖ / ‖a‖` for each objective.
        values: The objectives at the trained parameters, in their own units.
        drift: For each objective, how much one more Newton step of training would still move it, in its own
            units: what is left of training, to be read beside the scores. Zero at a perfect minimum.
        gradient_norm: `‖g‖` at the trained parameters; zero at a perfect minimum.
        smallest_eigenvalue: Of the curvature, before damping (its real part, if the curvature is not symmetric);
            `None` where the solver does not know it.
        coverage: Share of the model's parameters that count as trained.
        seconds: Wall-clock time of everything together.
        fingerprint: Content hash of the trained model.
        notes: Sentences for a person: choices made, limits met.
    """

    solver: str
    damping: float = 0.0
    steps: tuple[int, ...] = ()
    residuals: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    drift: tuple[float, ...] = ()
    gradient_norm: float = float("nan")
    smallest_eigenvalue: float | None = None
    coverage: float = 1.0
    seconds: float = 0.0
    fingerprint: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scores:
    """What each training sample did to each objective.

    Positive: having the sample in the training set raised the objective, by so much, in the objective's own unit.
    Estimates and retraining return this same type, so they can be compared number by number.

    Attributes:
        values: Shape `(n, m)`, in units of the objectives.
        ids: n labels, one for each sample or group.
        objectives: m labels.
        method: How the numbers came about: the solver, or "retraining".
        report: Details of the computation, if there was a solve.

    Example:
        >>> scores = Scores(torch.tensor([[0.5], [-2.0], [1.0]]), ("a", "b", "c"), ("margin",), "by hand")
        >>> scores.top(1), scores.top(1, effect="lowers")
        ([('c', 1.0)], [('b', -2.0)])
    """

    values: Tensor
    ids: tuple[Id, ...]
    objectives: tuple[str, ...]
    method: str
    report: SolveReport | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "objectives", tuple(self.objectives))
        if tuple(self.values.shape) != (len(self.ids), len(self.objectives)):
            raise ValueError(
                f"Scores got values of shape {tuple(self.values.shape)} for {len(self.ids)} ids and "
                f"{len(self.objectives)} objectives; needed ({len(self.ids)}, {len(self.objectives)})."
            )
        _ = self._rows  # labels that repeat are refused here

    @cached_property
    def _rows(self) -> dict[Id, int]:
        return numbered(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        names = ", ".join(self.objectives[:3]) + (", ..." if len(self.objectives) > 3 else "")
        return f"Scores({len(self.ids)} samples x {len(self.objectives)} objectives [{names}], method={self.method!r})"

    def _column(self, objective: str | None) -> int:
        if objective is None and len(self.objectives) == 1:
            return 0
        if objective in self.objectives:
            return self.objectives.index(objective)
        came = "no objective" if objective is None else repr(objective)
        shown = ", ".join(repr(name) for name in self.objectives[:8])
        raise IdError(f"Got {came}; these scores answer {len(self.objectives)}: {shown}. Pass objective=one of them.")

    def top(
        self, k: int = 10, objective: str | None = None, *, effect: Literal["raises", "lowers"] = "raises"
    ) -> list[tuple[Id, float]]:
        """The k samples whose presence raised (or lowered) the objective most, strongest first.

        Args:
            k: How many at most; samples of the other sign are never listed.
            objective: Which question, needed if there are several.
            effect: "raises" for positive scores, "lowers" for negative ones.

        Returns:
            Pairs of id and score.

        Raises:
            IdError: If the objective is not one of the answered ones.
            ValueError: If `effect` is neither word, or k is negative.
        """
        if effect not in ("raises", "lowers"):
            raise ValueError(f"Got effect={effect!r}; needed 'raises' or 'lowers'.")
        if k < 0:
            raise ValueError(f"Got k={k}; needed zero or more.")
        sign = 1 if effect == "raises" else -1
        column = self.values[:, self._column(objective)].double().nan_to_num(0.0)  # a NaN is no effect to list
        order = torch.argsort(column * sign, descending=True, stable=True)[:k].tolist()
        return [(self.ids[row], float(column[row])) for row in order if float(column[row]) * sign > 0]

    def select(self, ids: Iterable[Id]) -> Scores:
        """The scores of some samples, in the order given.

        Args:
            ids: Labels that occur in `self.ids`.

        Returns:
            Scores of shape `(len(ids), m)`.

        Raises:
            IdError: If an id is unknown.
        """
        wanted = tuple(plain_id(label) for label in ids)
        rows = [row_of(label, self._rows) for label in wanted]
        return replace(self, values=self.values[rows], ids=wanted)

    def sum_by(self, groups: Sequence[Hashable] | Mapping[Any, Any]) -> Scores:
        """Adds up the scores of groups: to first order, effects of samples add.

        Args:
            groups: One label for each sample; or `{id: label}`; or `{group name: [ids]}`, the form that
                `leave_out` takes, in which groups may overlap and need not hold every sample.

        Returns:
            One row for each group, in order of first appearance.

        Raises:
            IdError: If an id is unknown or has no group.
            ValueError: If the number of labels is not n.

        Example:
            >>> scores = Scores(torch.tensor([[1.0], [2.0], [4.0]]), (0, 1, 2), ("m",), "by hand")
            >>> scores.sum_by(["x", "y", "x"]).top()
            [('x', 5.0), ('y', 2.0)]
        """
        members = self._members(groups)
        totals = [self.values[rows].sum(0) for rows in members.values()]
        return replace(self, values=torch.stack(totals), ids=tuple(members))

    def _members(self, groups: Sequence[Hashable] | Mapping[Any, Any]) -> dict[Id, list[int]]:
        if isinstance(groups, Mapping):
            if not groups:
                raise ValueError("Got no groups; needed {group name: [ids]} or {id: label}.")
            several = all(isinstance(value, (list, set, frozenset, range)) for value in groups.values())
            tuples = all(isinstance(value, tuple) for value in groups.values())
            if several or (tuples and not all(label in groups for label in self.ids)):
                return {name: [row_of(label, self._rows) for label in ids] for name, ids in groups.items()}
            labels = [groups[label] if label in groups else _no_group(label) for label in self.ids]
        else:
            labels = [plain_id(label) for label in groups]
        if len(labels) != len(self.ids):
            raise ValueError(f"Got {len(labels)} group labels for {len(self.ids)} samples; needed one for each.")
        members: dict[Id, list[int]] = {}
        for row, label in enumerate(labels):
            members.setdefault(label, []).append(row)
        return members

    def to_frame(self) -> pd.DataFrame:
        """A table with one row for each sample and one column for each objective.

        Returns:
            A pandas DataFrame whose index is the ids.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        pd = optional("pandas", "Scores.to_frame", "frame")
        index = pd.Index(self.ids, name="id", tupleize_cols=False)
        return pd.DataFrame(self.values.detach().cpu().double().numpy(), index=index, columns=list(self.objectives))

    def plot(self, objective: str | None = None, *, k: int = 10) -> Figure:
        """The strongest samples in both directions, as bars.

        Args:
            objective: Which question, needed if there are several.
            k: How many on each side.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: If plotly is not installed.
        """
        go = optional("plotly.graph_objects", "Scores.plot", "plot")
        name = self.objectives[self._column(objective)]
        rows = self.top(k, name) + self.top(k, name, effect="lowers")[::-1]
        colours = ["#c0392b" if value > 0 else "#2c5f8a" for _, value in rows]
        bars = go.Bar(
            x=[value for _, value in rows], y=[str(label) for label, _ in rows], orientation="h", marker_color=colours
        )
        layout = go.Layout(
            title=f"What raised and what lowered {name}",
            xaxis_title=f"effect on {name} of having the sample",
            yaxis={"autorange": "reversed", "type": "category", "title": "sample"},
            template="plotly_white",
        )
        return go.Figure(bars, layout)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes values and provenance to one safetensors file, atomically.

        Args:
            path: Where to.

        Raises:
            ResultFileError: If the folder cannot be written.
            TypeError: If an id is not an integer, a string, a float, a boolean, None or a tuple of such.
        """
        header = {
            "format": FORMAT,
            "ids": json.dumps([_to_json(label) for label in self.ids]),
            "objectives": json.dumps(self.objectives),
            "method": self.method,
            "report": json.dumps(None if self.report is None else asdict(self.report)),
        }
        write_atomically(path, to_bytes({"values": self.values.detach().cpu().contiguous()}, metadata=header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Reads what `save` wrote; no model and no solver is needed.

        Args:
            path: A file written by `save`.

        Returns:
            Equal values, ids, objectives, method and report.

        Raises:
            ResultFileError: If the file is missing, damaged or of another format.
        """
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                header, values = file.metadata() or {}, file.get_tensor("values")
        except (OSError, SafetensorError) as error:
            raise ResultFileError(f"Cannot read scores from {os.fspath(path)}: {error}.") from error
        if header.get("format") != FORMAT:
            raise ResultFileError(f"{os.fspath(path)} has format {header.get('format')!r}; needed {FORMAT!r}.")
        report = json.loads(header["report"])
        if report is not None:
            content: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in report.items()}
            report = SolveReport(**content)
        ids = tuple(_from_json(label) for label in json.loads(header["ids"]))
        return cls(values, ids, tuple(json.loads(header["objectives"])), header["method"], report)


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
        rows = {plain_id(label): row for row, label in enumerate(ids)}
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


def _no_group(label: Id) -> Any:
    raise IdError(f"The id {label!r} has no group: needed a label for every id, or {{group name: [ids]}}.")


def _to_json(label: Any) -> Any:
    if label is None or isinstance(label, (str, bool, int, float)):
        return label
    if isinstance(label, tuple):
        return [_to_json(part) for part in label]
    raise TypeError(
        f"Cannot save the id {label!r} of type {type(label).__name__}: needed int, str, float, bool, None or a tuple "
        f"of such. Give the risk ids=[str(x) for x in ...]."
    )


def _from_json(label: Any) -> Id:
    return tuple(_from_json(part) for part in label) if isinstance(label, list) else label
