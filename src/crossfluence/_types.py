"""Aliases shared by every module. Shape letters: n samples, b batch, m objectives, p parameters, r retrainings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

Params: TypeAlias = dict[str, Tensor]
"""Named tensors; names as in `model.named_parameters()`."""

Batch: TypeAlias = Any
"""Whatever the user's data yields: a tensor, a tuple, a dict. The library only reads its length."""

Id: TypeAlias = Hashable
"""A sample's label."""

SampleLoss: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""`(model, batch) -> (b,)`, one loss per sample, not reduced."""

Objective: TypeAlias = Callable[[nn.Module], Tensor | Mapping[str, Tensor]]
"""A question: a scalar, `(m,)` values, or scalars by name."""

Train: TypeAlias = Callable[[Tensor], nn.Module]
"""Sample weights `(n,)` to a trained model."""
