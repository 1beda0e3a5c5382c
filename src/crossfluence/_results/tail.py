"""Strong samples beside the tail of all others: how many as strong as these the others alone would have."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

FROM, TO = 1.5, 3.0  # times the share that counts as strong: the ranks between which the tail is measured
FALSE = 0.05  # share of the named, by the tail, that may belong to it
ROUNDS = 20  # until the number of the named does not change


def doubts(values: Float[Tensor, " n"], strong: float) -> Float[Tensor, " n"]:
    r"""For each sample, how many of those as strong or stronger the tail of all others explains, as a share of them.

    Beyond the strongest, sizes fall off exponentially with a scale $s$, measured between the ranks of 1.5 and 3 times
    the share `strong`: a tail that has $r$ samples above $v_r$ has $r\,e^{-(v - v_r)/s}$ above $v$. Samples that stand
    out of it are not counted among its ranks, so this is repeated until their number stays.

    Args:
        values: Sizes with a sign; each sign has a tail of its own.
        strong: Share of the samples that is strong at most; 0 < strong < 1.

    Returns:
        Between 0 and 1; 1 where a sign has too few samples to have a tail.

    References:
        Efron, "Large-scale simultaneous hypothesis testing: the choice of a null hypothesis", JASA 2004; Benjamini and
        Hochberg, "Controlling the false discovery rate", JRSS B 1995.
    """
    found = torch.ones_like(values)
    for sign in (1, -1):
        own = (values * sign > 0).nonzero()[:, 0]
        ordered, places = (values[own] * sign).sort(descending=True, stable=True)
        found[own[places]] = _of_one_sign(ordered, strong * len(values))
    return found


def _of_one_sign(values: Float[Tensor, " k"], most: float) -> Float[Tensor, " k"]:
    """The doubts of falling values, of which so many may stand out."""
    last = min(math.floor(TO * most), len(values))
    first = min(max(1, math.floor(FROM * most)), last // 2)
    if first < 1:
        return torch.ones_like(values)
    start, ranks = values[first - 1], torch.arange(1, len(values) + 1).to(values)
    standing, doubt = 0, torch.ones_like(values)
    for _ in range(ROUNDS):
        inside = max(1, first - standing)  # of the tail, above its start
        scale = (start - values[last - 1]) / math.log((last - first + inside) / inside)
        expected = inside * (-(values - start) / scale.clamp(min=torch.finfo(values.dtype).tiny)).exp()
        doubt = (expected / ranks).clamp(max=1.0)
        doubt[first:] = 1  # the tail itself
        named = (doubt <= FALSE).nonzero()[:, 0]
        count = min(int(named[-1]) + 1 if len(named) else 0, math.floor(most))
        if count == standing:
            break
        standing = count
    return doubt.flip(0).cummin(0).values.flip(0)
