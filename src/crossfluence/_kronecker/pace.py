r"""The training's own horizon in blocks: its scaling of rank one, and $\varphi$ along the eigenvectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._risk.risk import Risk
from .._solvers.phi import phi
from .._types import Params
from ..errors import UnsupportedError
from .gradients import ParameterBlock


@dataclass(frozen=True, eq=False)
class Pace:
    """What a training did to each parameter, from its record.

    Attributes:
        scaling: A of each parameter.
        decay: D, the exponent of the weight decay outside of the loss.
    """

    scaling: Params
    decay: Params

    @classmethod
    def of(cls, risk: Risk, who: str) -> Pace:
        """Of the risk's record.

        Args:
            risk: The trained model.
            who: Needs it.

        Returns:
            Scaling and decay.

        Raises:
            UnsupportedError: If there is no record.
        """
        if risk.record is None:
            raise UnsupportedError(
                f"{who} needs a record of the training: Risk(..., record=TrainingRecord.from_settings(risk, "
                f"optimizer=AdamW(lr), steps=..., batch_size=...)). Without one, type Horizon(), which guesses it, or "
                f"give a damping such as Relative(0.1)."
            )
        return cls(risk.record.scaling(risk.theta), risk.record.decay(risk.theta))

    def whole(self, slot: ParameterBlock) -> Shaped[Tensor, "g r c"]:
        """A of one block."""
        return slot.gather(self.scaling)

    def sides(self, slot: ParameterBlock) -> tuple[Shaped[Tensor, "g r"], Shaped[Tensor, "g c"]]:
        """Factors of a matrix of rank one that has its row and column sums.

        Args:
            slot: The block.

        Returns:
            Rows and columns.

        References:
            Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018.
        """
        whole = self.whole(slot)
        mean = whole.mean((1, 2))[:, None].clamp_min(torch.finfo(whole.dtype).tiny)
        return whole.mean(2), whole.mean(1) / mean

    def response(
        self,
        slot: ParameterBlock,
        left: Tensor | None,
        right: Tensor | None,
        values: Shaped[Tensor, "g r c"],
        l2: float,
    ) -> Shaped[Tensor, "g r c"]:
        r"""$A^{1/2}\varphi(X)A^{1/2}$ of one block, as numbers along its eigenvectors.

        Bases hold $A^{1/2}$ of their side already; A of sides without a basis is put here, and of blocks without any
        basis all of it. The l2 term, A itself in these coordinates, counts by its diagonal.

        Args:
            slot: The block.
            left: Scaled eigenvectors in columns, or nothing.
            right: The same of the other side.
            values: Mean squared gradients along both.
            l2: The coefficient of the block.

        Returns:
            To multiply components with.
        """
        rows, columns = self.sides(slot)
        if left is None and right is None:
            scale = norms = self.whole(slot)
        else:
            ahead = rows if left is None else torch.ones_like(rows)
            behind = columns if right is None else torch.ones_like(columns)
            scale = ahead.unsqueeze(2) * behind.unsqueeze(1)
            norms = _squares(left, rows).unsqueeze(2) * _squares(right, columns).unsqueeze(1)
        scale, norms = scale.to(values), norms.to(values)
        decay = float(self.decay[slot.names[0]].flatten()[0])
        return scale * phi(scale * values + l2 * norms + decay)


def _squares(side: Tensor | None, scale: Tensor) -> Tensor:
    """Squared lengths of scaled eigenvectors: A along each."""
    return scale if side is None else side.square().sum(1)
