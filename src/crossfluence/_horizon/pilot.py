"""A random part of the data as a risk of its own, at the same parameters."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.data import Subset

from .._data.batches import Batches, DataManifest, probe
from .._risk.risk import Risk


def pilots(risk: Risk, count: int, seed: int, parts: int = 1) -> tuple[Risk, ...]:
    """Random samples with weight, in so many parts of about equal size; whole batches where the data has no rows.

    Args:
        risk: The trained model.
        count: Samples in all parts together, at most.
        seed: Of the choice.
        parts: How many risks.

    Returns:
        Risks at the same parameters; sums over their samples are means over them.
    """
    if count >= risk.n and parts == 1 and bool((risk.weights == 1).all()):
        return (risk,)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(risk.data, Batches):
        rows = risk.weights.cpu().nonzero()[:, 0]
        chosen = rows[torch.randperm(len(rows), generator=generator)[:count]]
        return tuple(_of_rows(risk, part.sort().values) for part in chosen.tensor_split(parts) if len(part))
    return _of_batches(risk, count, parts, generator)


def _of_rows(risk: Risk, rows: Tensor) -> Risk:
    data = risk.data
    assert isinstance(data, Batches)
    source = [part[rows] for part in data.source] if data.fixed else [Subset(data.source[0], rows.tolist())]
    chosen = replace(data, source=source, size=min(data.size, len(rows)), free=False)
    weights = risk.weights[rows.to(risk.weights.device)]
    return _made(risk, chosen, probe(chosen), weights, tuple(risk.labels[row] for row in rows.tolist()))


def _of_batches(risk: Risk, count: int, parts: int, generator: torch.Generator) -> tuple[Risk, ...]:
    """Whole batches in random order, until there are enough samples, dealt out to the parts."""
    sizes, starts = risk.reading.sizes, [0, *torch.tensor(risk.reading.sizes).cumsum(0).tolist()]
    order = [
        index for index in torch.randperm(len(sizes), generator=generator).tolist() if _weighed(risk, starts, index)
    ]
    enough = [index for place, index in enumerate(order) if sum(sizes[i] for i in order[:place]) < count]
    enough = order[:parts] if len(enough) < parts else enough
    held = {index: batch for index, batch, _ in risk.passes() if index in set(enough)}
    found = []
    for part in (enough[start::parts] for start in range(parts)):
        if not part:
            continue
        reading = DataManifest(tuple(sizes[i] for i in part), tuple(risk.reading.digests[i] for i in part))
        weights = torch.cat([risk.weights[starts[i] : starts[i + 1]] for i in part])
        labels = tuple(label for i in part for label in risk.labels_of(i))
        found.append(_made(risk, [held[i] for i in part], reading, weights, labels))
    return tuple(found)


def _weighed(risk: Risk, starts: list[int], index: int) -> bool:
    start, end = list(pairwise(starts))[index]
    return bool(risk.weights[start:end].any())


def _made(risk: Risk, data, reading: DataManifest, weights: Tensor, labels: tuple) -> Risk:
    rows = {label: row for row, label in enumerate(labels)}
    return risk._changed(data=data, reading=reading, weights=weights, n=len(weights), ids=labels, rows=rows)
