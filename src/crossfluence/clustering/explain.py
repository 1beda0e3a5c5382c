"""The samples behind a sample's cluster: training, influence, and a check by training again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from crossfluence import (
    GMRES,
    Adam,
    Agreement,
    Auto,
    Recipe,
    Risk,
    Scores,
    compare,
    cosine,
    influence,
    leave_out,
    unlearn,
)
from crossfluence.extend import AbstractInverse, AbstractRisk, AbstractSolver, AbstractTraining, Id, Work

from .choice import between_clusters, checked_ids, groups_of
from .dec import DEC, anchored_target, encoder, pretrain, rescaled, start_centres
from .kept import kept_model
from .objectives import margin
from .processes import side_by_side
from .sharpen import closed_form, one_by_one

KEPT = 0.35  # share of the anchor that the smallest eigenvalue must keep; chosen on digits and two small tables
STRONGEST_ANCHOR = 2.0  # by then nothing sharpens any more


@dataclass(frozen=True)
class ClusterSettings:
    """Everything that decides a clustering and its check.

    Attributes:
        k: Clusters.
        hidden: Units of the encoder's hidden layer.
        embedding: Size of the space in which clusters are found.
        anchor: Strength with which sharpening is held near its start, see `anchored_target`; raised if that is
            too weak, see `settled`.
        pretraining: Full-batch steps of the autoencoder.
        pretraining_l2: Its l2 term.
        steps: Full-batch steps of the clustering.
        lr: Adam's learning rate, falling along a cosine.
        hold: Steps for which the target is held.
        check: Samples that are left out one by one.
        group: Samples that are removed together; at most a twentieth of all.
        draws: Random groups that stand beside it.
        sizes: Samples of further groups of the strongest that are removed together.
        seed: Of the weights, k-means and random groups.
    """

    k: int
    hidden: int = 24
    embedding: int = 16
    anchor: float = 0.03
    pretraining: int = 300
    pretraining_l2: float = 0.02
    steps: int = 300
    lr: float = 1e-2
    hold: int = 1
    check: int = 100
    group: int = 20
    draws: int = 5
    sizes: tuple[int, ...] = ()
    seed: int = 0


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

    settings: ClusterSettings
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


def pretrained(x: Float[Tensor, "n f"], settings: ClusterSettings) -> DEC:
    """Deep Embedded Clustering before its last stage: a pre-trained encoder and k-means centres.

    Args:
        x: Features of comparable size.
        settings: Sizes and lengths.

    Returns:
        Where sharpening starts.
    """
    fresh = encoder([x.shape[1], settings.hidden, settings.embedding], seed=settings.seed)
    trained = pretrain(fresh, x, steps=settings.pretraining, l2=settings.pretraining_l2, seed=settings.seed)
    network = rescaled(trained, x)
    return DEC(network, start_centres(network, x, settings.k, seed=settings.seed))


def sharpening(start: DEC, x: Float[Tensor, "n f"], settings: ClusterSettings) -> Recipe:
    """The last stage, which is trained and retrained.

    Args:
        start: From `pretrained`.
        x: The same features.
        settings: Anchor and lengths.

    Returns:
        A recipe.
    """
    loss = anchored_target(start, settings.anchor)
    rate = Adam(settings.lr)
    return Recipe(start, loss, x, optimizer=rate, epochs=settings.steps, schedule=cosine, hold=settings.hold)


@dataclass(frozen=True)
class Known(AbstractSolver):
    """An inverse that is known already, as a preconditioner: leaving out a few samples changes the curvature little.

    Attributes:
        inverse: Of the curvature with all samples.
    """

    inverse: AbstractInverse = field(repr=False)

    def work(self, risk: AbstractRisk) -> Work:
        """Nothing."""
        return Work()

    def _invert(self, risk: AbstractRisk) -> AbstractInverse:
        return self.inverse


@dataclass(frozen=True, eq=False)
class Settled:
    """A clustering whose end is well determined.

    Attributes:
        settings: With the anchor that it took.
        recipe: How it was trained.
        model: What came out.
        risk: What was minimised.
        inverse: Of the curvature there.
        seconds: That it took.
    """

    settings: ClusterSettings
    recipe: AbstractTraining
    model: DEC
    risk: Risk
    inverse: AbstractInverse
    seconds: float

    @property
    def exact(self) -> bool:
        """True if the curvature was small enough to be written out."""
        return self.inverse.smallest_eigenvalue is not None


def settled(
    x: Float[Tensor, "n f"], ids: Sequence[Id], settings: ClusterSettings, *, store: Path | None = None
) -> Settled:
    """Trains, and doubles the anchor until the end is well determined.

    Sharpening feeds on itself: its curvature is negative along some directions, and only the anchor holds it. Where
    that takes nearly all of the anchor, a small change of the data tips the clustering over, and neither influence nor
    one retraining says much about the next. So the smallest eigenvalue of the curvature must keep 35 % of the anchor.
    This needs no retraining. Models too large for a dense curvature are taken as they are.

    Args:
        x: Features of comparable size.
        ids: n labels.
        settings: With the anchor to begin with.
        store: Keeps what is trained, so that a stopped run goes on.

    Returns:
        The trained clustering.
    """
    began = time.perf_counter()
    beginning = replace(settings, anchor=0.0, check=0, group=0, draws=0, sizes=())  # the rest does not matter to it
    start = kept_model(store, (x, beginning), lambda: pretrained(x, settings))
    while True:
        recipe = sharpening(start, x, settings)
        training = closed_form(recipe, x, settings.anchor)
        model = kept_model(store, recipe.content, partial(_trained, training))
        risk = recipe.risk(model, ids=ids)
        inverse = Auto().invert(risk)
        smallest = inverse.smallest_eigenvalue
        if smallest is None or smallest >= KEPT * settings.anchor or settings.anchor >= STRONGEST_ANCHOR:
            return Settled(settings, training, model, risk, inverse, time.perf_counter() - began)
        settings = replace(settings, anchor=2 * settings.anchor)


def _trained(training: AbstractTraining) -> DEC:
    model = next(training.retrain(torch.ones(1, training.n)))
    assert isinstance(model, DEC)
    return model


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
    clock = _Clock({"clustering, and its curvature": found.seconds})
    model = found.model
    with torch.no_grad():
        q, z = model(x), model.embed(x)
    row = between_clusters(q) if query is None else query
    first, second = q[row].topk(2).indices.tolist()
    question = margin(x[row], first, second)
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
        again = one_by_one(found.recipe) if executor or store else found.recipe
        truth = leave_out(again, question, alone | groups, ids=tuple(ids), store=store, executor=executor)
    clock.lap(f"{count} retrainings")
    chosen = [members for (_, name), members in groups.items() if not name.startswith("random")]
    solver = GMRES(rtol=1e-9, preconditioner=Known(found.inverse)) if found.exact else Auto()
    steps = [float(unlearn(found.risk, members, solver, watch=question).achieved) for members in chosen]
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
        found.settings, tuple(ids), row, first, second, report.values[0], q, z, model.centres.detach(), scores,
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
