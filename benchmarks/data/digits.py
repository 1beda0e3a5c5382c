"""The 1,797 digits that come with scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor


def digits() -> tuple[Tensor, Tensor]:
    """All images, `(1797, 64)` between 0 and 1 in float64, and their labels."""
    pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    return pixels / 16, labels
