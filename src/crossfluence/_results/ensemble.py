"""Several answers to one question, from other seeds or points of a training: their mean, and its error."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from .._require import require
from ..errors import DataError, IdError
from .scores import Scores
from .verdict import merged


def ensemble(members: Iterable[Scores]) -> Scores:
    r"""The mean of several scores, with its standard error.

    $$\text{values} = \frac1k\sum_s \text{scores}^{(s)}, \qquad
    \text{errors} = \sqrt{\frac{1}{k(k-1)}\sum_s \left(\text{scores}^{(s)} - \text{values}\right)^2}$$

    One training says what a sample did in that training; the mean over seeds says what it does in a training like it,
    and `Scores.top(significance=...)` lists what seeds do not explain. The errors are those of independent members,
    such as trainings with other seeds. Points of one training are not independent: take their mean first, then the
    mean over trainings, `ensemble(ensemble(points) for points in trainings)`.

    Args:
        members: Scores of the same ids and objectives, in any order; of the same unit. Errors that they carry are not
            used: they are in the spread of the members.

    Returns:
        Mean and error in float64, with the ids and objectives of the first; the reports stay with the members. The
        verdict is the lowest of theirs.

    Raises:
        DataError: If there are fewer than two.
        IdError: If ids or objectives differ.

    Example:
        >>> seeds = [Scores(torch.tensor([[1.0 + x / 10], [x]]), ("a", "b"), ("margin",), "replay") for x in (-2, 0, 3)]
        >>> found = ensemble(seeds)
        >>> found
        Scores(2 samples x 1 objectives [margin], method='mean of 3: replay')
        >>> [round(float(error), 3) for error in found.errors]
        [0.145, 1.453]
        >>> [label for label, _ in found.top()], [label for label, _ in found.top(significance=0.05)]
        (['a', 'b'], ['a'])
    """
    line = "ensemble([replay(recipe.with_seed(seed), objective) for seed in range(5)])"
    require(members, Iterable, "ensemble", "several Scores", line)
    kept = list(members)
    for member in kept:
        require(member, Scores, "ensemble", "several Scores", line)
    if len(kept) < 2:
        raise DataError(f"Got {len(kept)} members; needed at least 2, for a mean to have an error.")
    first = kept[0]
    start = first.values.detach().cpu().double()
    moved = torch.stack([_aligned(member, first, number) - start for number, member in enumerate(kept)])  # (k, n, m)
    methods = ", ".join(dict.fromkeys(member.method for member in kept))
    return Scores(
        start + moved.mean(0),  # moved first: equal members have no error, to the bit
        first.ids,
        first.objectives,
        f"mean of {len(kept)}: {methods}",
        errors=moved.std(0) / len(kept) ** 0.5,
        members=len(kept),
        verdict=merged(member.verdict for member in kept),
    )


def _aligned(member: Scores, first: Scores, number: int) -> Float[Tensor, "n m"]:
    _refuse_others("ids", first._rows, member._rows, number)
    rows, columns = ({name: place for place, name in enumerate(one.objectives)} for one in (member, first))
    _refuse_others("objectives", columns, rows, number)
    chosen = member.select(first.ids).values[:, [rows[name] for name in first.objectives]]
    return chosen.detach().cpu().double()


def _refuse_others(what: str, needed: Collection[Hashable], came: Collection[Hashable], number: int) -> None:
    parts = [
        f"{len(names)} {word}: {', '.join(map(repr, names[:5]))}{', ...' if len(names) > 5 else ''}"
        for word, names in (
            ("missing", [name for name in needed if name not in came]),
            ("too many", [name for name in came if name not in needed]),
        )
        if names
    ]
    if parts:
        raise IdError(
            f"Member {number} has other {what} than member 0, {'; '.join(parts)}. Needed the same {what} in all."
        )
