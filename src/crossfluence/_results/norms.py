"""The size of a vector of effects, in a unit."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedError

Metric: TypeAlias = Literal["euclid", "fisher"]
UNITS = {"euclid": "units of the parameters", "fisher": "standard errors"}


def lengths_of(values: Float[Tensor, "n m"], metric: Any, kept: Tensor | None) -> tuple[Float[Tensor, "n 1"], str]:
    """The length of each row of effects; see `Scores.norm`.

    Args:
        values: The effects.
        metric: "euclid", "fisher" or a matrix.
        kept: The Fisher matrix, if there is one.

    Returns:
        Lengths, and their name with the unit.

    Raises:
        UnsupportedError: If there is no Fisher matrix.
        ValueError: If the metric is neither word, or of another shape.
    """
    if not isinstance(metric, Tensor) and metric not in UNITS:
        raise ValueError(f"Got metric={metric!r}; needed 'euclid', 'fisher' or a matrix.")
    wide, m = values.double(), values.shape[1]
    name = f"norm ({metric}, {UNITS[metric]})" if isinstance(metric, str) else "norm (given)"
    if metric == "euclid":
        return torch.linalg.vector_norm(wide, dim=1, keepdim=True), name
    matrix = metric if isinstance(metric, Tensor) else kept
    if matrix is None:
        raise UnsupportedError(
            "These scores hold no Fisher matrix: influence keeps one for parameters(...) of up to 4,096 numbers. Of "
            "others, type norm(matrix); of retraining, norm(predicted.metric)."
        )
    if tuple(matrix.shape) != (m, m):
        raise ValueError(f"Got a metric of shape {tuple(matrix.shape)}; needed ({m}, {m}), the number of effects.")
    return ((wide @ matrix.to(wide)) * wide).sum(1, keepdim=True).clamp(min=0).sqrt(), name
