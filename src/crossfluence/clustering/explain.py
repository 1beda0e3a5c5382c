"""Why is this sample in its cluster? Train, ask, and check the answer by training again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from crossfluence import Adam, Agreement, Auto, Recipe, Risk, Scores, compare, cosine, influence, leave_out, unlearn
from crossfluence.extend import AbstractInverse, Id

from .dec import DEC, anchored_target, encoder, pretrain, rescaled, start_centres
from .objectives import margin

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


@dataclass(frozen=True, eq=False)
class Settled:
    """A clustering whose end is well determined.

    Attributes:
        settings: With the anchor that it took.
        recipe: How it was trained.
        model: What came out.
        risk: What was minimised.
        inverse: Of the curvature there.
    """

    settings: ClusterSettings
    recipe: Recipe
    model: DEC
    risk: Risk
    inverse: AbstractInverse


def settled(x: Float[Tensor, "n f"], ids: Sequence[Id], settings: ClusterSettings) -> Settled:
    """Trains, and doubles the anchor until the end is well determined.

    Sharpening feeds on itself: its curvature is negative along some directions, and only the anchor holds it. Where
    that takes nearly all of the anchor, a small change of the data tips the clustering over, and neither influence nor
    one retraining says much about the next. So the smallest eigenvalue of the curvature must keep 35 % of the anchor.
    This needs no retraining. Models too large for a dense curvature are taken as they are.

    Args:
        x: Features of comparable size.
        ids: n labels.
        settings: With the anchor to begin with.

    Returns:
        The trained clustering.
    """
    start = pretrained(x, settings)
    while True:
        recipe = sharpening(start, x, settings)
        model = recipe.train()
        assert isinstance(model, DEC)
        risk = recipe.risk(model, ids=ids)
        inverse = Auto().invert(risk)
        smallest = inverse.smallest_eigenvalue
        if smallest is None or smallest >= KEPT * settings.anchor or settings.anchor >= STRONGEST_ANCHOR:
            return Settled(settings, recipe, model, risk, inverse)
        settings = replace(settings, anchor=2 * settings.anchor)


def explain(
    x: Float[Tensor, "n f"],
    ids: Sequence[Id],
    settings: ClusterSettings,
    *,
    query: int | None = None,
    store: Path | None = None,
) -> Explanation:
    """Clusters the data, explains one sample's membership and checks the explanation by training again.

    Args:
        x: Features of comparable size, float64.
        ids: n labels.
        settings: Sizes, lengths and the extent of the check.
        query: The row asked about; default: one that lies between two clusters, see `between_clusters`.
        store: Keeps finished retrainings, so that a stopped run goes on.

    Returns:
        Scores, their agreement with leave-one-out, and the removal of the strongest group beside random ones.
    """
    clock = _Clock()
    found = settled(x, ids, settings)
    recipe, model = found.recipe, found.model
    with torch.no_grad():
        q, z = model(x), model.embed(x)
    clock.lap("clustering, and its curvature")
    row = between_clusters(q) if query is None else query
    first, second = q[row].topk(2).indices.tolist()
    question = margin(x[row], first, second)
    scores = influence(found.risk, question, found.inverse)
    clock.lap("influence of all samples")
    groups = _groups(scores, tuple(ids), row, settings)
    alone = {label: [label] for label in checked_ids(scores, settings.check)}
    truth = leave_out(recipe, question, alone | groups, ids=tuple(ids), store=store)
    clock.lap(f"{len(alone) + len(groups) + 1} retrainings")
    strongest = next(iter(groups.values()))
    newton = [float(unlearn(found.risk, strongest, watch=question).achieved), *[None] * settings.draws]
    clock.lap("one Newton step")
    predicted, achieved = (-table.values[:, 0] for table in (scores.sum_by(groups), truth.select(groups)))
    removals = [
        Removal(name, tuple(members), float(change), step, float(truth_change))
        for ((_, name), members), change, step, truth_change in zip(
            groups.items(), predicted, newton, achieved, strict=True
        )
    ]
    report = scores.report
    assert report is not None
    return Explanation(
        found.settings, tuple(ids), row, first, second, report.values[0], q, z, model.centres.detach(), scores,
        compare(scores, truth.select(alone)), tuple(removals), report.gradient_norm, clock.laps,
    )  # fmt: skip


def between_clusters(q: Float[Tensor, "n k"]) -> int:
    """A sample that clearly belongs to two clusters: ambiguous, but not on the edge, where any change tips it over.

    Among the samples with a margin of 0.2 to 0.6 nats between their two most likely clusters, the one that gives
    these two the most probability; if there is none, the one with the margin nearest to 0.4.

    Args:
        q: Soft assignments.

    Returns:
        A row number.

    Example:
        >>> between_clusters(torch.tensor([[0.9, 0.05, 0.05], [0.55, 0.4, 0.05], [0.4, 0.3, 0.3]]))
        1
    """
    best = q.topk(2, dim=1).values
    margins = (best[:, 0] / best[:, 1]).log()
    inside = (margins >= 0.2) & (margins <= 0.6)
    if not inside.any():
        return int((margins - 0.4).abs().argmin())
    return int(best.sum(1).where(inside, -1.0).argmax())


def checked_ids(scores: Scores, count: int) -> list[Id]:
    """Which samples to leave out: the strongest third of `count`, and the rest evenly spaced down to the weakest.

    Args:
        scores: Of one objective.
        count: How many; all, if there are fewer.

    Returns:
        Ids, strongest first.

    Example:
        >>> scores = Scores(torch.arange(10.0).unsqueeze(1), range(10), ("m",), "by hand")
        >>> checked_ids(scores, 6)
        [9, 8, 7, 5, 2, 0]
    """
    order = scores.values[:, 0].abs().argsort(descending=True, stable=True).tolist()
    strong = min(count // 3, len(order))
    rest = order[strong:]
    wanted = min(count - strong, len(rest))
    spaced = [rest[round(place)] for place in torch.linspace(0, len(rest) - 1, wanted).tolist()] if wanted else []
    return [scores.ids[row] for row in order[:strong] + spaced]


def _groups(
    scores: Scores, ids: tuple[Id, ...], query: int, settings: ClusterSettings
) -> dict[tuple[str, str], list[Id]]:
    others = [label for label in ids if label != ids[query]]
    size = max(1, min(settings.group, len(ids) // 20))  # first-order effects add up only while a group is small
    strongest = [label for label, _ in scores.top(size + 1) if label != ids[query]][:size]
    groups = {("group", f"top {len(strongest)}"): strongest}
    generator = torch.Generator().manual_seed(settings.seed)
    for draw in range(1, settings.draws + 1):
        rows = torch.randperm(len(others), generator=generator)[: len(strongest)].tolist()
        groups["group", f"random {len(strongest)}, draw {draw}"] = [others[row] for row in rows]
    return groups


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
