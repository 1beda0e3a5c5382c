"""Real data that comes with scikit-learn: 1,797 handwritten digits."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .explain import ClusterSettings

SETTINGS = ClusterSettings(k=10, anchor=0.06)


def digits() -> Float[Tensor, "n 64"]:
    """The 8 x 8 grey values in [0, 1], float64."""
    from sklearn.datasets import load_digits

    x, _ = load_digits(return_X_y=True)
    return torch.as_tensor(x, dtype=torch.float64) / 16
