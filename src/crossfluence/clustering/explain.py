"""The samples behind a sample's cluster: training, influence, and a check by training again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crossfluence import Agreement, Risk, Scores, compare, influence, leave_out, unlearn
from crossfluence.extend import AbstractInverse, AbstractSolver, AbstractTraining, Id, Objective

from .choice import between_clusters, checked_ids, groups_of
from .objectives import margin
from .processes import one_thread, side_by_side
from .settings import CheckSettings, ClusterSettings
from .settle import KEPT, Settled, settled
from .sharpen import one_by_one

__all__ = [
    "KEPT",
    "CheckSettings",
    "ClusterSettings",
    "Clustered",
    "Explanation",
    "First",
    "Removal",
    "Settled",
    "explain",
    "explain_clustered",
    "settled",
]


@dataclass(frozen=True, eq=False)
class Removal:
    """A group of samples removed together.

    Attributes:
        name: Which group.
        ids: Its members.
        predicted: Change of the margin, from the scores.
        newton: The same from one Newton step without the group, see `unlearn`; of the strongest group only.
        achieved: Change of the margin, from training again.
    """

    name: str
    ids: tuple[Id, ...] = field(repr=False)
    predicted: float
    newton: float | None
    achieved: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """The answer for one sample, with its check.

    Attributes:
        settings: What was asked for.
        ids: n labels.
        query: The row asked about.
        first: Its cluster.
        second: The cluster it is nearest to otherwise.
        margin: How much more it belongs to the first, in nats.
        assignments: Soft assignments `(n, k)`.
        embedding: Shape `(n, d)`.
        centres: Shape `(k, d)`.
        scores: What every sample did to the margin.
        agreement: The scores of the checked samples beside leave-one-out.
        removals: The strongest group, then the random ones.
        gradient_norm: Of the trained model.
        seconds: Of each phase.
    """

    settings: CheckSettings
    ids: tuple[Id, ...] = field(repr=False)
    query: int
    first: int
    second: int
    margin: float
    assignments: Float[Tensor, "n k"] = field(repr=False)
    embedding: Float[Tensor, "n d"] = field(repr=False)
    centres: Float[Tensor, "k d"] = field(repr=False)
    scores: Scores = field(repr=False)
    agreement: Agreement
    removals: tuple[Removal, ...]
    gradient_norm: float
    seconds: dict[str, float]

    def strongest(self, k: int, *, raises: bool) -> list[tuple[Id, float]]:
        """The k other samples that pulled the sample into its cluster, or pushed it out."""
        listed = self.scores.top(k + 1, effect="raises" if raises else "lowers")
        return [(label, value) for label, value in listed if label != self.ids[self.query]][:k]


@one_thread()
def explain(
    x: Float[Tensor, "n f"],
    ids: Sequence[Id],
    settings: ClusterSettings,
    *,
    query: int | None = None,
    store: Path | None = None,
    found: Settled | None = None,
    processes: int = 1,
    tell: Callable[[First], object] | None = None,
) -> Explanation:
    """Clusters the data, explains one sample's membership and checks the explanation by training again.

    Args:
        x: Features of comparable size, float64.
        ids: n labels.
        settings: Sizes, lengths and the extent of the check.
        query: The row asked about; default: one that lies between two clusters, see `between_clusters`.
        store: Keeps the trained model and finished retrainings, so that a stopped run goes on.
        found: What `settled` returned for the same data and settings, for a further question.
        processes: In which retrainings run side by side, each of one thread; a script that asks for several needs
            `if __name__ == "__main__":`.
        tell: Is called with the answer before it is checked.

    Returns:
        Scores, their agreement with leave-one-out, and the removal of the strongest group beside random ones.
    """
    found = found or settled(x, ids, settings, store=store)
    model = found.model
    with torch.no_grad():
        q, z = model(x), model.embed(x)
    of_all = Clustered(
        found.settings, found.risk, found.inverse, found.solver, q, z, model.centres.detach(),
        lambda row, first, second: margin(x[row], first, second), found.seconds,
    )  # fmt: skip
    apart = processes > 1 or store is not None
    again = one_by_one(found.recipe) if apart else found.recipe
    return explain_clustered(of_all, ids, again, query=query, store=store, processes=processes, tell=tell)


@dataclass(frozen=True, eq=False)
class Clustered:
    """A clustering of any kind, as its explanation needs it.

    Attributes:
        settings: Of the check.
        risk: What was minimised.
        inverse: Of the curvature there.
        solver: For the curvature without a few samples.
        assignments: Soft assignments `(n, k)`.
        embedding: Where distances count, `(n, d)`.
        centres: Shape `(k, d)`.
        question: From a row and two clusters to the margin between them, in nats.
        seconds: That it took.
    """

    settings: CheckSettings
    risk: Risk
    inverse: AbstractInverse
    solver: AbstractSolver
    assignments: Float[Tensor, "n k"] = field(repr=False)
    embedding: Float[Tensor, "n d"] = field(repr=False)
    centres: Float[Tensor, "k d"] = field(repr=False)
    question: Callable[[int, int, int], Objective]
    seconds: float


@one_thread()
def explain_clustered(
    found: Clustered,
    ids: Sequence[Id],
    again: AbstractTraining | Callable[[Tensor], nn.Module],
    *,
    query: int | None = None,
    store: Path | None = None,
    processes: int = 1,
    tell: Callable[[First], object] | None = None,
) -> Explanation:
    """Explains one sample's membership in a clustering, and checks the explanation by training again.

    Args:
        found: The clustering.
        ids: n labels.
        again: How to train without some samples, as for `leave_out`.
        query: The row asked about; default: one that lies between two clusters, see `between_clusters`.
        store: Keeps finished retrainings.
        processes: In which retrainings run side by side.
        tell: Is called with the answer before it is checked.

    Returns:
        As `explain` does.
    """
    clock, settings, q = _Clock({"clustering, and its curvature": found.seconds}), found.settings, found.assignments
    row = between_clusters(q) if query is None else query
    first, second = q[row].topk(2).indices.tolist()
    question = found.question(row, first, second)
    scores = influence(found.risk, question, found.inverse)
    report = scores.report
    assert report is not None
    clock.lap("influence of all samples")
    if tell is not None:
        tell(First(row, first, second, report.values[0], scores))
    groups = groups_of(scores, tuple(ids), row, settings.group, settings.sizes, settings.draws, settings.seed)
    alone = {label: [label] for label in checked_ids(scores, settings.check)}
    count = len(alone) + len(groups) + 1
    with side_by_side(min(processes, count)) as executor:
        truth = leave_out(
            again, question, alone | groups, n=found.risk.n, ids=tuple(ids), store=store, executor=executor
        )
    clock.lap(f"{count} retrainings")
    chosen = [members for (_, name), members in groups.items() if not name.startswith("random")]
    steps = [float(unlearn(found.risk, members, found.solver, watch=question).achieved) for members in chosen]
    clock.lap("one Newton step")
    predicted, achieved = (-table.values[:, 0] for table in (scores.sum_by(groups), truth.select(groups)))
    newton = [*steps, *[None] * (len(groups) - len(steps))]
    removals = [
        Removal(name, tuple(members), float(change), step, float(truth_change))
        for ((_, name), members), change, step, truth_change in zip(
            groups.items(), predicted, newton, achieved, strict=True
        )
    ]
    return Explanation(
        settings, tuple(ids), row, first, second, report.values[0], q, found.embedding, found.centres, scores,
        compare(scores, truth.select(alone)), tuple(removals), report.gradient_norm, clock.laps,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class First:
    """The answer before it is checked.

    Attributes:
        query: The row asked about.
        first: Its cluster.
        second: The cluster it is nearest to otherwise.
        margin: How much more it belongs to the first, in nats.
        scores: Of all samples.
    """

    query: int
    first: int
    second: int
    margin: float
    scores: Scores = field(repr=False)


class _Clock:
    """Seconds between laps."""

    def __init__(self, laps: dict[str, float]) -> None:
        self.laps = laps
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
