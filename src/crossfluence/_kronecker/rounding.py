"""Products of gradients in bfloat16, where the processor multiplies it faster and the tolerance leaves room for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

PART = 10  # of the tolerance, that rounding may take on a few samples
LOST = 2.0**-9  # of a number, that rounding to bfloat16 and products of rounded numbers lose in root mean square
CLEAR = 10  # times its own rounding error, above which the norm of a sum of rounded gradients is reported


@dataclass(frozen=True)
class Rounding:
    """Gradients rounded before they are multiplied.

    Attributes:
        dtype: Of the rounded numbers.
        squares: Mean squared norm of samples' gradients.
    """

    dtype: torch.dtype
    squares: float

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for the report."""
        return (
            f"Gradients were multiplied in {str(self.dtype).rpartition('.')[2]}, within the tolerance; 0 is exact.",
        )

    def norm(self, gradient: Tensor, n: int) -> float | None:
        """The norm of the mean of n rounded gradients, unless rounding could be all that is left of it.

        Args:
            gradient: Their mean.
            n: How many.

        Returns:
            Nothing where it has to be found without rounding.

        Example:
            >>> Rounding(torch.bfloat16, squares=100.0).norm(torch.tensor([3.0, 4.0]), n=100)
            5.0
            >>> Rounding(torch.bfloat16, squares=100.0).norm(torch.tensor([0.001]), n=100)
        """
        norm = float(gradient.norm())
        return norm if norm > CLEAR * LOST * (self.squares / n) ** 0.5 else None


def faster_type(like: Tensor) -> torch.dtype | None:
    """The type of numbers of which products are faster than those of a tensor's own, at less precision.

    Args:
        like: Of the numbers that are multiplied.

    Returns:
        bfloat16 for single precision on a processor that has instructions for it; otherwise nothing.
    """
    if like.dtype != torch.float32 or like.device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return None
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.bfloat16 if any(supported and supported() for supported in known) else None


def within(tolerance: float, exact: Shaped[Tensor, "b m"], rounded: Shaped[Tensor, "b m"]) -> bool:
    """True if rounding moves scores by less than a part of the tolerance, in root mean square.

    Args:
        tolerance: Share of the scores.
        exact: Scores of a few samples.
        rounded: The same from rounded numbers.

    Returns:
        False also where a score is not finite.

    Example:
        >>> within(0.05, torch.ones(2, 3), torch.ones(2, 3) + 0.001)
        True
    """
    return bool((rounded - exact).norm() <= tolerance / PART * exact.norm())
