"""The size of a vector of effects, in a unit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from .scores import Scores

Metric: TypeAlias = Literal["euclid", "fisher"]
UNITS = {"euclid": "units of the parameters", "fisher": "standard errors"}


def norm_of(scores: Scores, metric: Metric | Tensor) -> Scores:
    """The length of each row of effects; see `Scores.norm`."""
    if not isinstance(metric, Tensor) and metric not in UNITS:
        raise ValueError(f"Got metric={metric!r}; needed 'euclid', 'fisher' or a matrix.")
    values = scores.values.double()
    m = values.shape[1]
    if isinstance(metric, Tensor) or metric == "fisher":
        matrix = metric if isinstance(metric, Tensor) else _kept(scores)
        if tuple(matrix.shape) != (m, m):
            raise ValueError(f"Got a metric of shape {tuple(matrix.shape)}; needed ({m}, {m}), the number of effects.")
        lengths = ((values @ matrix.to(values)) * values).sum(1).clamp(min=0).sqrt()
    else:
        lengths = torch.linalg.vector_norm(values, dim=1)
    name = metric if isinstance(metric, str) else "given"
    unit = f", {UNITS[name]}" if name in UNITS else ""
    return replace(
        scores, values=lengths.unsqueeze(1), objectives=(f"norm ({name}{unit})",), errors=None, members=1, metric=None
    )


def _kept(scores: Scores) -> Tensor:
    if scores.metric is None:
        raise UnsupportedError(
            "These scores hold no Fisher matrix: influence keeps one for parameters(...) of up to 4,096 numbers. Of "
            "others, type norm(matrix); of retraining, norm(predicted.metric)."
        )
    return scores.metric
