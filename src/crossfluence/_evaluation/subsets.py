"""Random subsets of the training samples, as weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DataError


def without_random(n: int, subsets: int, drop: float, seed: int) -> Float[Tensor, "r n"]:
    """Weights 0 for a random share of the samples and 1 for the others, once for each subset.

    Args:
        n: Samples.
        subsets: How many.
        drop: Share of the samples that is left out; rounded, at least one sample and not all.
        seed: Of the draws.

    Returns:
        Shape `(subsets, n)`.

    Raises:
        DataError: If the share is not between 0 and 1.

    Example:
        >>> without_random(5, 3, 0.4, seed=0).sum(1)
        tensor([3., 3., 3.], dtype=torch.float64)
    """
    if not 0 < drop < 1:
        raise DataError(f"Got drop={drop}; needed a share of the samples between 0 and 1, such as 0.01.")
    size = min(max(1, round(drop * n)), n - 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(subsets, n, generator=generator).argsort(1)
    return torch.ones(subsets, n, dtype=torch.float64).scatter(1, order[:, :size], 0.0)
