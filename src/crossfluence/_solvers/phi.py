"""The two functions of an exponent x that a finite training makes of curvature."""

from __future__ import annotations

import torch
from torch import Tensor


def phi(x: Tensor) -> Tensor:
    r"""$(1 - e^{-x}) / x$, and 1 at zero: the mean of $e^{-x t}$ over the training, t from 0 to 1."""
    held = x.clamp_min(0)
    return torch.where(held > 1e-8, -torch.expm1(-held) / held.clamp_min(1e-300), 1 - held / 2)


def faded(x: Tensor) -> Tensor:
    r"""$e^{-x} - 1$: the change of a lasting deviation until the end of a stretch of training."""
    return torch.expm1(-x.clamp_min(0))
