"""All actions on single samples as changes of weights in one risk that holds every row they may need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._autodiff.trained import Decay
from .._data.batch import digest
from .._data.batches import probe
from .._losses import counted
from .._require import takes
from .._risk.base import AbstractRisk
from .._risk.risk import Risk
from .._types import Batch, Id
from ..errors import CrossfluenceError, DataError, UnsupportedError

ACTIONS = ("remove", "relabel", "duplicate", "add")
"""Names of the actions."""

Labels = Callable[[Batch], Batch]
"""A batch to the same batch with other labels."""


@dataclass(frozen=True, eq=False)
class Joined:
    """Batches of the training data, their versions with other labels, and those of a pool, in this order.

    Attributes:
        data: The training data.
        labels: Functions of a batch.
        pool: Samples that were not trained on.
    """

    data: Iterable[Batch]
    labels: tuple[Labels, ...]
    pool: Iterable[Batch]

    def __iter__(self) -> Iterator[Batch]:
        yield from self.data
        for label in self.labels:
            yield from map(label, self.data)
        yield from self.pool


@dataclass(frozen=True, eq=False)
class Options:
    """Every action on every sample: it takes one row's weight down by one, another's up by one, or both.

    Attributes:
        risk: Of all rows: those trained on with weight 1, all others with weight 0.
        n: Number of rows trained on.
        ids: For each option, the action and the id, and the name of the label where there are several.
        samples: For each option, the row that it is about: no row is acted on twice.
        down: For each option, the row that loses weight; -1 for none.
        up: For each option, the row that gains weight; -1 for none.
    """

    risk: AbstractRisk
    n: int
    ids: tuple[tuple[Id, ...], ...] = field(repr=False)
    samples: Int[Tensor, " o"] = field(repr=False)
    down: Int[Tensor, " o"] = field(repr=False)
    up: Int[Tensor, " o"] = field(repr=False)

    def effects(self, scores: Float[Tensor, "rows m"]) -> Float[Tensor, "o m"]:
        """The change that each option makes, from the effect of each row's weight."""
        padded = torch.cat([scores, scores.new_zeros(1, scores.shape[1])])  # the last row: no row
        return padded[self.up] - padded[self.down]

    def weights(self, chosen: Iterable[int]) -> Float[Tensor, " rows"]:
        """Sample weights after some options were taken."""
        found = self.risk.weights.clone()
        for option in chosen:
            for place, step in ((self.down[option], -1), (self.up[option], 1)):
                if place >= 0:
                    found[place] += step
        return found


def options_of(
    risk: AbstractRisk,
    actions: tuple[str, ...],
    labels: Labels | Mapping[str, Labels] | None,
    pool: Iterable[Batch] | None,
) -> Options:
    """The options that some actions give.

    Args:
        risk: The trained model.
        actions: Names of actions.
        labels: One function of a batch, or several by name.
        pool: Batches of samples that may be added.

    Returns:
        The options, and the risk of all their rows.

    Raises:
        DataError: If the pool or the new labels cannot be read as the training data is, or new labels change nothing.
        UnsupportedError: If relabelling or adding is asked for where samples have no losses of their own.
    """
    named = _named(labels) if "relabel" in actions else {}
    added = pool if pool is not None and "add" in actions else ()
    joint, pooled = (risk, 0) if not named and added == () else _joint(risk, tuple(named.values()), added)
    n, rows = risk.n, torch.arange(risk.n)
    none = torch.full((n,), -1)
    parts: list[tuple[list[tuple[Id, ...]], Tensor, Tensor, Tensor]] = []
    for action in actions:
        if action == "remove":
            parts.append(([("remove", label) for label in risk.labels], rows, rows, none))
        elif action == "duplicate":
            parts.append(([("duplicate", label) for label in risk.labels], rows, none, rows))
        elif action == "relabel":
            for place, name in enumerate(named, start=1):
                own = [("relabel", label, *([name] if name else [])) for label in risk.labels]
                parts.append((own, rows, rows, rows + place * n))
        else:
            up = torch.arange(pooled) + (1 + len(named)) * n
            parts.append(([("add", place) for place in range(pooled)], up, torch.full((pooled,), -1), up))
    ids = tuple(label for part in parts for label in part[0])
    _, samples, down, up = zip(*parts, strict=True)
    return Options(joint, n, ids, torch.cat(samples), torch.cat(down), torch.cat(up))


def labels_of(labels: Labels | Mapping[str, Labels] | None, actions: tuple[str, ...]) -> tuple[Labels, ...]:
    """The functions by which some actions relabel, in the order of the rows they make."""
    return tuple(_named(labels).values()) if "relabel" in actions else ()


def _named(labels: Labels | Mapping[str, Labels] | None) -> dict[str, Labels]:
    return {} if labels is None else dict(labels) if isinstance(labels, Mapping) else {"": labels}


def scaled(l2: Decay, share: float) -> Decay:
    """The l2 coefficients times a share: those of a mean over more rows, where the sum stays."""
    return {glob: share * value for glob, value in l2.items()} if isinstance(l2, Mapping) else share * l2


def _joint(risk: AbstractRisk, labels: tuple[Labels, ...], pool: Iterable[Batch]) -> tuple[Risk, int]:
    """The risk of all rows, up to the factor n / rows, and how many the pool has."""
    if not isinstance(risk, Risk) or not risk.kind.per_sample:
        kind = type(risk.kind).__name__ if isinstance(risk, Risk) else type(risk).__name__
        raise UnsupportedError(
            f"relabel and add need a loss of each sample; this risk has a {kind}, where a new row's effect depends on "
            f"the rows beside it. Type actions=('remove', 'duplicate')."
        )
    for label in labels:
        _refuse_labels(risk, label)
    sizes = _pool_sizes(risk, pool)
    data = Joined(risk.data, labels, pool)
    counts = [*risk.reading.sizes * (1 + len(labels)), *sizes]
    share = risk.n / sum(counts)
    made = Risk(risk.model, risk.loss, data, l2=scaled(risk.l2, share), params=risk.params, n=counts)
    weights = torch.zeros_like(made.weights)
    weights[: risk.n] = risk.weights
    return made._reweighted(weights), sum(sizes)


def _refuse_labels(risk: Risk, label: Labels) -> None:
    """Makes sure that other labels give batches that the loss can read, and that something is new."""
    if not takes(label, 1):
        raise UnsupportedError(
            "labels= must be a function from a batch to the same batch with other labels, or {name: function}. Type, "
            "for instance, labels=lambda batch: (batch[0], 1 - batch[1])."
        )
    changed = False
    for place, batch in enumerate(risk.data):
        other = label(batch)
        found = _readable(risk, [other], "new labels")
        if found != (risk.reading.sizes[place],):
            raise DataError(
                f"With new labels, batch {place} has {found[0]} samples; it had {risk.reading.sizes[place]}."
            )
        changed = changed or digest(other) != digest(batch)
    if not changed:
        raise DataError("The new labels are those that the samples have already; needed others for relabelling.")


def _pool_sizes(risk: Risk, pool: Iterable[Batch]) -> tuple[int, ...]:
    if isinstance(pool, tuple) and not pool:
        return ()
    probe(pool, "pool")
    return _readable(risk, pool, "the pool")


def _readable(risk: Risk, batches: Iterable[Batch], what: str) -> tuple[int, ...]:
    """Samples in each batch, if the loss can read them."""
    try:
        with torch.no_grad():
            return counted(batches, partial(risk.kind.losses, risk.model))
    except CrossfluenceError:
        raise
    except Exception as error:  # whatever the user's code says of a batch that it cannot read
        said = (str(error).splitlines() or [""])[0][:150]
        raise DataError(
            f"The loss cannot read {what} as it reads the training data: {said}. Needed batches of the same form, with "
            f"the same columns."
        ) from error
