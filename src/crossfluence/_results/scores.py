"""Results: one number per training sample and question. Knows nothing of solvers, so it opens without a model."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .._storage.archive import fitting, read_tensors, write_tensors
from .._types import Id
from ..errors import IdError, import_optional
from .ids import label_from_json, label_to_json, numbered, plain_id, row_of
from .norms import Metric, lengths_of
from .significance import significant
from .verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

FORMAT = "crossfluence.scores/1"


@dataclass(frozen=True)
class SolveReport:
    """The report of an answer: its computation, its residuals and its errors.

    Attributes:
        solver: The solver that did the work (what `Auto` chose, for one).
        damping: Added to the curvature's eigenvalues, in units of the mean loss per squared parameter.
        steps: Iterations for each objective; empty for direct solvers.
        residuals: `‖J'u - a‖ / ‖a‖` for each objective, in units of the parameters in which the diagonal of the
            curvature is about one.
        errors: For each objective, how far a score may be off because the solve ended where it did, in the objective's
            unit: the estimated error of the solution, in the norm of the curvature, times the largest score. Empty
            where it is not known.
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
        verdict: Whether the scores can be believed, as a sentence; see `Verdict`.
    """

    solver: str
    damping: float = 0.0
    steps: tuple[int, ...] = ()
    residuals: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    drift: tuple[float, ...] = ()
    gradient_norm: float = float("nan")
    smallest_eigenvalue: float | None = None
    coverage: float = 1.0
    seconds: float = 0.0
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    verdict: str = ""


@dataclass(frozen=True, eq=False)
class Scores:
    """Influence of each training sample on each objective.

    Positive: having the sample in the training set raised the objective, by so much, in the objective's own unit.
    Estimates and retraining return this same type, so they can be compared number by number.

    Attributes:
        values: Shape `(n, m)`, in units of the objectives.
        ids: n labels, one for each sample or group.
        objectives: m labels.
        method: How the numbers came about: the solver, or "retraining".
        report: Details of the computation, if there was a solve.
        errors: Standard errors of the values, if they are means over members; see `ensemble`.
        members: How many answers the values are the means of.
        verdict: Whether the values can be believed, or their order; `None` for scores made by hand.
        metric: The Fisher matrix `(m, m)` of the parameters asked about, for `norm`; see `parameters`.

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
    errors: Tensor | None = None
    members: int = 1
    verdict: Verdict | None = None
    metric: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "objectives", tuple(self.objectives))
        if tuple(self.values.shape) != (len(self.ids), len(self.objectives)):
            raise ValueError(
                f"Scores got values of shape {tuple(self.values.shape)} for {len(self.ids)} ids and "
                f"{len(self.objectives)} objectives; needed ({len(self.ids)}, {len(self.objectives)})."
            )
        if self.errors is not None and (self.errors.shape != self.values.shape or self.members < 2):
            raise ValueError(
                f"Scores got errors of shape {tuple(self.errors.shape)} and members={self.members}; needed the shape "
                f"of the values, {tuple(self.values.shape)}, and the number of members, at least 2."
            )
        _ = self._rows  # labels that repeat are refused here

    @cached_property
    def _rows(self) -> dict[Id, int]:
        return numbered(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        names = ", ".join(self.objectives[:3]) + (", ..." if len(self.objectives) > 3 else "")
        size = f"{len(self.ids)} samples x {len(self.objectives)} objectives [{names}]"
        verdict = "" if self.verdict is None else f", verdict={self.verdict.level!r}"
        return f"Scores({size}, method={self.method!r}{verdict})"

    def _column(self, objective: str | None) -> int:
        if objective is None and len(self.objectives) == 1:
            return 0
        if objective in self.objectives:
            return self.objectives.index(objective)
        came = "no objective" if objective is None else repr(objective)
        shown = ", ".join(repr(name) for name in self.objectives[:8])
        raise IdError(f"Got {came}; these scores answer {len(self.objectives)}: {shown}. Pass objective=one of them.")

    def top(
        self,
        k: int = 10,
        objective: str | None = None,
        *,
        effect: Literal["raises", "lowers"] = "raises",
        significance: float | None = None,
    ) -> list[tuple[Id, float]]:
        """The k samples whose presence raised (or lowered) the objective most, strongest first.

        With `significance=0.05` the probability that one or more of all listed samples have no such effect in the mean
        over members is at most 5 %: Student's t for the number of members, on both sides, at a level divided by the
        number of samples (Bonferroni), which holds however their errors depend on each other.

        Args:
            k: How many at most; samples of the other sign are never listed.
            objective: Which question, needed if there are several.
            effect: "raises" for positive scores, "lowers" for negative ones.
            significance: List only scores that stand out of their errors: the probability of a false name in the list.
                It counts all samples of these scores; those that were selected for being strong must not be tested.

        Returns:
            Pairs of id and score.

        Raises:
            IdError: If the objective is not one of the answered ones.
            ValueError: If `effect` is neither word, k is negative, or there is nothing to tell significance by.
        """
        if effect not in ("raises", "lowers"):
            raise ValueError(f"Got effect={effect!r}; needed 'raises' or 'lowers'.")
        if k < 0:
            raise ValueError(f"Got k={k}; needed zero or more.")
        sign = 1 if effect == "raises" else -1
        at = self._column(objective)
        column = self.values[:, at].double().nan_to_num(0.0)  # a NaN is no effect to list
        if significance is not None:
            column = column * self._standing_out(at, significance)
        order = torch.argsort(column * sign, descending=True, stable=True)[:k].tolist()
        return [(self.ids[row], float(column[row])) for row in order if float(column[row]) * sign > 0]

    def _standing_out(self, column: int, level: float) -> Tensor:
        if not 0 < level < 1:
            raise ValueError(f"Got significance={level}; needed a probability between 0 and 1, such as 0.05.")
        if self.errors is None:
            raise ValueError(
                f"These scores ({self.method}) have no errors to tell significance by. Make them from several seeds: "
                f"ensemble([scores of each seed]); of groups: ensemble(member.sum_by(groups) for member in members)."
            )
        if len(self) and not self.errors[:, column].any():
            raise ValueError(
                f"All errors of {self.objectives[column]!r} are zero: the {self.members} members are equal, so they "
                f"say nothing about seeds. Give each member a training with a seed that changes it."
            )
        return significant(self.values[:, column].double(), self.errors[:, column].double(), self.members, level)

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
        errors = None if self.errors is None else self.errors[rows]
        return replace(self, values=self.values[rows], ids=wanted, errors=errors)

    def sum_by(self, groups: Sequence[Hashable] | Mapping[Any, Any]) -> Scores:
        """Adds up the scores of groups: to first order, effects of samples add.

        Errors do not: samples of one seed err together. Sums carry none; to have them, sum each member and take the
        mean afterwards, `ensemble(member.sum_by(groups) for member in members)`.

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
        members = self._grouped(groups)
        totals = [self.values[rows].sum(0) for rows in members.values()]
        return replace(self, values=torch.stack(totals), ids=tuple(members), errors=None)

    def norm(self, metric: Metric | Tensor = "euclid") -> Scores:
        r"""The length of each row of effects: how far a sample, or a group after `sum_by`, moves all of them.

        Args:
            metric: "euclid", in the effects' own unit; "fisher" for parameters, $\sqrt{\delta^\top F\,\delta}$ with the
                information $F$ of all samples: in standard errors of the estimate, whatever the unit of a parameter;
                or a matrix `(m, m)`.

        Returns:
            One number for each row, never negative. Lengths do not add up: sum groups first.

        Raises:
            UnsupportedError: If there is no Fisher matrix.
            ValueError: If the metric is neither word, or of another shape.

        Example:
            >>> Scores(torch.tensor([[3.0, 4.0]]), ("a",), ("x", "y"), "by hand").norm().values.item()
            5.0
        """
        lengths, name = lengths_of(self.values, metric, self.metric)
        return replace(self, values=lengths, objectives=(name,), errors=None, members=1, metric=None)

    def _grouped(self, groups: Sequence[Hashable] | Mapping[Any, Any]) -> dict[Id, list[int]]:
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
        """A table with one row for each sample and one column for each objective, and for its errors if there are any.

        Returns:
            A pandas DataFrame whose index is the ids, with the verdict as a sentence in `attrs["verdict"]`.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        pd = import_optional("pandas", "Scores.to_frame", "frame")
        index = pd.Index(self.ids, name="id", tupleize_cols=False)
        names, parts = list(self.objectives), [self.values]
        if self.errors is not None:
            names, parts = names + [f"error of {name}" for name in names], [*parts, self.errors]
        frame = pd.DataFrame(torch.cat(parts, 1).detach().cpu().double().numpy(), index=index, columns=names)
        if self.verdict is not None:
            frame.attrs["verdict"] = str(self.verdict)
        return frame

    def plot(self, objective: str | None = None, *, k: int = 10) -> Figure:
        """The strongest samples in both directions, as bars, with one standard error on each side if there are errors.

        Args:
            objective: Which question, needed if there are several.
            k: How many on each side.

        Returns:
            A plotly figure.

        Raises:
            MissingExtraError: If plotly is not installed.
        """
        go = import_optional("plotly.graph_objects", "Scores.plot", "plot")
        column = self._column(objective)
        name = self.objectives[column]
        rows = self.top(k, name) + self.top(k, name, effect="lowers")[::-1]
        colours = ["#c0392b" if value > 0 else "#2c5f8a" for _, value in rows]
        bars = go.Bar(
            x=[value for _, value in rows], y=[str(label) for label, _ in rows], orientation="h", marker_color=colours
        )
        if self.errors is not None:
            bars.error_x = {"array": [float(self.errors[self._rows[label], column]) for label, _ in rows]}
        layout = go.Layout(
            title=_titled(f"What raised and what lowered {name}", self.verdict),
            xaxis_title=f"effect on {name} of having the sample",
            yaxis={"autorange": "reversed", "type": "category", "title": "sample"},
            template="plotly_white",
        )
        return go.Figure(bars, layout)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes values, errors and provenance to one safetensors file, atomically.

        Args:
            path: Where to.

        Raises:
            ResultFileError: If the folder cannot be written.
            TypeError: If an id is not an integer, a string, a float, a boolean, None or a tuple of such.
        """
        texts = {
            "ids": json.dumps([label_to_json(label) for label in self.ids]),
            "objectives": json.dumps(self.objectives),
            "method": self.method,
            "report": json.dumps(None if self.report is None else asdict(self.report)),
            "members": str(self.members),
            "verdict": json.dumps(None if self.verdict is None else asdict(self.verdict)),
        }
        given = {"values": self.values, "errors": self.errors, "metric": self.metric}
        kept = {name: tensor for name, tensor in given.items() if tensor is not None}
        write_tensors(path, FORMAT, kept, **texts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Reads what `save` wrote; no model and no solver is needed.

        Args:
            path: A file written by `save`.

        Returns:
            Equal values, ids, objectives, method, report, errors, members and verdict; none in files of older
            versions.

        Raises:
            ResultFileError: If the file is missing, damaged or of another format.
        """
        found = read_tensors(path, FORMAT)
        with fitting(path):
            kept = {name: found.tensors.get(name) for name in ("errors", "metric")}
            return cls(found.tensors["values"], **kept, **_provenance(found.texts))


def _provenance(texts: Mapping[str, str]) -> dict[str, Any]:
    """All that a file says of the values."""
    return {
        "ids": tuple(label_from_json(label) for label in json.loads(texts["ids"])),
        "objectives": tuple(json.loads(texts["objectives"])),
        "method": texts["method"],
        "report": _read(SolveReport, texts.get("report")),
        "members": int(texts.get("members", 1)),
        "verdict": _read(Verdict, texts.get("verdict")),
    }


def _read(kind: type[Any], text: str | None) -> Any:
    """A dataclass of numbers, strings and tuples from a text of a file; nothing, where it has none."""
    content = json.loads(text or "null")
    if content is None:
        return None
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


def _titled(title: str, verdict: Verdict | None) -> str:
    """A title with the verdict's first clause below it."""
    return title if verdict is None else f"{title}<br><sup>{str(verdict).partition(': ')[0]}</sup>"


def _no_group(label: Id) -> Any:
    raise IdError(f"The id {label!r} has no group: needed a label for every id, or {{group name: [ids]}}.")
