"""The choice of samples: to explain, to leave out alone, and to leave out together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crossfluence import Scores
from crossfluence.extend import Id


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
    """Samples to leave out: the strongest third of `count`, and the rest evenly spaced down to the weakest.

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


def groups_of(
    scores: Scores, ids: tuple[Id, ...], query: int, group: int, sizes: Sequence[int], draws: int, seed: int
) -> dict[tuple[str, str], list[Id]]:
    """Samples that are removed together: the strongest, and as many random ones, none of them the one asked about.

    Args:
        scores: Of one objective.
        ids: n labels.
        query: The row asked about.
        group: How many; at most a twentieth of all.
        sizes: How many in further groups of the strongest.
        draws: Random groups.
        seed: Of these.

    Returns:
        Ids by ("group", name).
    """
    others = [label for label in ids if label != ids[query]]
    size = max(1, min(group, len(ids) // 20))  # first-order effects add up only while a group is small
    strongest = {
        many: [label for label, _ in scores.top(many + 1) if label != ids[query]][:many] for many in (size, *sizes)
    }
    groups = {("group", f"top {len(members)}"): members for members in strongest.values()}
    count, generator = len(strongest[size]), torch.Generator().manual_seed(seed)
    for draw in range(1, draws + 1):
        rows = torch.randperm(len(others), generator=generator)[:count].tolist()
        groups["group", f"random {count}, draw {draw}"] = [others[row] for row in rows]
    return groups
