"""Convergence of the scores themselves while a solve goes on, from a few random sums of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .._curvature.operator import Operator
from .._curvature.scale import signed_gradient
from .._risk.base import AbstractRisk
from .._risk.risk import Risk

SUMS = 4  # random sums of scores; their size is off by a third or so, which only decides when to stop
LAST = 2  # moves that count: one step may go where samples see nothing
ROUNDINGS = 10  # rounding errors of the largest move that scores may hold


@dataclass(frozen=True, eq=False)
class Settled:
    r"""Random sums $\sum_i \xi_i\,\text{scores}_i$ of every solution so far, and their last move.

    The error of a solution in the norm of the curvature bounds that of a score only beside
    $\lVert u\rVert_H\,\lVert k_i\rVert_{H^{-1}}$. Where scores nearly cancel they are far below it, and may be all
    wrong though the solution is right. The sums cost one inner product each and have the size of the scores.

    Attributes:
        rows: The same sums of the samples' gradients, one in each column, shape `(p, s)`; s is zero where a risk has
            no samples to sum over, and then scores always count as settled.
        sums: Of the solutions so far, shape `(m, s)`.
        largest: Largest move of the sums so far, `(m,)`.
        moves: The last moves of the sums, `(LAST, m)`.
        share: Largest of the last moves of the sums, or their estimated error, as a share of them; zero where rounding
            is all that moves, `(m,)`.

    References:
        Johnson and Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984.
    """

    rows: Shaped[Tensor, "p s"]
    sums: Float[Tensor, "m s"]
    largest: Float[Tensor, " m"]
    moves: Float[Tensor, "last m"]
    share: Float[Tensor, " m"]

    @classmethod
    def start(cls, matrix: Operator, count: int) -> Settled:
        """Before the first step: nothing has settled.

        Args:
            matrix: What is solved with.
            count: How many right-hand sides there are.

        Returns:
            The state to move.
        """
        rows = matrix.inside(score_sums(matrix.risk)).T
        sums = torch.zeros(count, rows.shape[1], dtype=torch.float64, device=rows.device)
        unknown = sums.new_full((count,), torch.inf if rows.shape[1] else 0.0)
        return cls(rows, sums, sums.new_zeros(count), sums.new_zeros(LAST, count), unknown)

    def move(self, chosen: Tensor, by: Shaped[Tensor, "k s"]) -> None:
        """Adds to the sums of some solutions.

        Args:
            chosen: Numbers of the solutions, `(k,)`.
            by: What is added.
        """
        if not by.shape[1]:
            return
        moved = by.double().norm(dim=1)
        self.sums[chosen] += by.double()
        self.largest[chosen] = torch.maximum(self.largest[chosen], moved)
        moves = torch.cat([self.moves[1:, chosen], moved.unsqueeze(0)])
        self.moves[:, chosen] = moves
        noise = ROUNDINGS * torch.finfo(by.dtype).eps * self.largest[chosen]
        share = (moves.amax(0) / self.sums[chosen].norm(dim=1)).nan_to_num(0.0, 1.0, 1.0)
        self.share[chosen] = torch.where(moved <= noise, 0.0, share)

    def leave(self, chosen: Tensor, error: Shaped[Tensor, "k s"]) -> None:
        """Counts an estimated error of the sums of some solutions, where it is more than they last moved.

        Args:
            chosen: Numbers of the solutions, `(k,)`.
            error: Of their sums.
        """
        share = (error.norm(dim=1) / self.sums[chosen].norm(dim=1)).nan_to_num(0.0, 1.0)
        self.share[chosen] = torch.maximum(self.share[chosen], share)


def score_sums(risk: AbstractRisk) -> Shaped[Tensor, "s p"]:
    """Random sums of the samples' gradients: one pass over the data, remembered.

    Args:
        risk: Where.

    Returns:
        All gradients where there are few; no rows for a risk with a structure of its own.
    """
    if "score sums" not in risk.remembered:
        risk.remembered["score sums"] = _summed(risk)
    return risk.remembered["score sums"]


def _summed(risk: AbstractRisk) -> Shaped[Tensor, "s p"]:
    flat = risk.layout.flatten(risk.theta)
    if not isinstance(risk, Risk):
        return flat.new_zeros(0, len(flat))
    few, generator = risk.n <= SUMS, torch.Generator().manual_seed(2)
    factors = torch.eye(risk.n) if few else torch.randn(SUMS, risk.n, generator=generator)
    each = factors.split(list(risk.reading.sizes), dim=1)

    def part() -> dict[str, Tensor]:
        total = flat.new_zeros(len(factors), len(flat))
        for index, batch, weights in risk.passes(risk.part):
            for row, xi in zip(total, each[index], strict=True):
                row += risk.layout.flatten(signed_gradient(risk, batch, weights, xi.to(weights)))
        return {"total": total}

    return risk.ranks.added("adding up gradients", part)["total"].nan_to_num(0.0, 0.0, 0.0)
