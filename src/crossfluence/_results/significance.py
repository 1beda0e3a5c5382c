"""Means that are significant beside their errors: Student's t, with control for the number of tests."""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor


def significant(
    means: Float[Tensor, " n"], errors: Float[Tensor, " n"], members: int, level: float
) -> Bool[Tensor, " n"]:
    """Means further from zero than chance would put any of them.

    Each is tested on both sides at the share `level / n`, so that one or more means of the wrong sign, or of nothing,
    are among those that stand out with probability `level` at most, however their errors depend on each other
    (Bonferroni's inequality). The members must be independent, and spread about as a normal distribution does.

    Args:
        means: Of the members.
        errors: Their standard errors, from the same members.
        members: How many there are.
        level: Probability of one false name or more in the whole list.

    Returns:
        Whether each stands out; a NaN never does.
    """
    return means.abs() > student_limit(level / len(means), members - 1) * errors if len(means) else means.bool()


@functools.cache
def student_limit(level: float, freedom: int) -> float:
    r"""The standard errors from zero that Student's t exceeds with probability `level`, both sides together.

    The $t$ at which the probability of anything further out falls to `level`, found by bisection:

    $$P(|T| \ge t) = \frac{2\,\Gamma((\nu+1)/2)}{\sqrt\pi\,\Gamma(\nu/2)}
    \int_0^{\arctan(\sqrt\nu/t)} \sin^{\nu-1}\varphi\,d\varphi$$

    Args:
        level: Between 0 and 1.
        freedom: Degrees of freedom $\nu$.

    Returns:
        $t$, larger than the normal distribution has it, much larger for few degrees of freedom.

    Example:
        >>> round(student_limit(0.05, freedom=7), 3), round(student_limit(0.05 / 500, freedom=7), 3)
        (2.365, 7.885)
    """
    nodes, parts = np.polynomial.legendre.leggauss(64)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)

    def beyond(t: float) -> float:
        angle = math.atan2(math.sqrt(freedom), t)
        return scale * angle * float(parts @ np.sin(angle * (nodes + 1) / 2) ** (freedom - 1))

    low, high = 0.0, 1.0
    while beyond(high) > level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) > level else (low, middle)
    return high
