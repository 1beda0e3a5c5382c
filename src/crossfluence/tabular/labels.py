"""The same batch with other labels: replacements whose effect `recommend` predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Features `(b, f)`, labels `(b,)` and sample weights `(b,)`: a batch of `risk_of`."""


def flipped(batch: Rows) -> Rows:
    """The batch of a classifier with two classes, every label replaced by the other one.

    Args:
        batch: Features, labels 0 or 1, sample weights.

    Returns:
        A batch of the same form.

    Example:
        >>> flipped((torch.zeros(2, 1), torch.tensor([0, 1]), torch.ones(2)))[1]
        tensor([1, 0])
    """
    x, y, weights = batch
    return x, 1 - y, weights


def relabelled(label: float) -> Callable[[Rows], Rows]:
    """A function that gives every sample of a batch one label.

    Args:
        label: The number of the class in `estimator.classes_`, or the target of a regression.

    Returns:
        A function of a batch.

    Example:
        >>> relabelled(2)((torch.zeros(2, 1), torch.tensor([0, 1]), torch.ones(2)))[1]
        tensor([2, 2])
    """

    def given(batch: Rows) -> Rows:
        x, y, weights = batch
        return x, torch.full_like(y, label), weights

    return given
