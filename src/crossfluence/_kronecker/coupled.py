"""Blocks for losses that couple samples: each sample's row is taken through its whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from .._autodiff.functional import evaluated
from .._risk.risk import Risk
from .._types import Batch, Params
from .gradients import ByBlock, DenseGradients, ParameterBlock
from .layer_blocks import form_of, layer_blocks_of
from .layer_calls import LayerBlock


@dataclass(frozen=True, eq=False)
class CoupledRows:
    r"""The rows $n\,\partial g/\partial w_i$ of every sample, where no sample has a gradient of its own.

    A row holds what a sample does to the terms of all samples beside it. It is written out, so that blocks have the
    Kronecker factors of the rows themselves; a pass costs as many backward passes as a batch has samples.

    Attributes:
        risk: The trained model.
        slots: All blocks.
        layer_blocks: None: no layer explains a row.
        outside: None, for reports.
    """

    risk: Risk
    slots: tuple[ParameterBlock, ...]
    layer_blocks: tuple[LayerBlock, ...] = ()
    outside: Params = field(default_factory=dict)

    @classmethod
    def of(cls, risk: Risk, rows: int = 0) -> CoupledRows:
        """The blocks of a model's layers; those of up to `rows` numbers are seen as one row."""
        _, batch, weights = next(risk.passes())
        theta = risk.theta
        blocks = layer_blocks_of(
            risk.model, theta, risk.decays, lambda: evaluated(lambda: risk.total(theta, theta, batch, weights))
        )
        slots = dict.fromkeys(each.slot for each in blocks)
        inside = {name for slot in slots for name in slot.names}
        single = [
            ParameterBlock.of(theta, (name,), *form_of(part)) for name, part in theta.items() if name not in inside
        ]
        return cls(risk, tuple(slot.row if slot.size <= rows else slot for slot in (*slots, *single)))

    def rows(self, batch: Batch, weights: Tensor) -> Iterator[ByBlock]:
        """The rows of one batch, times the square roots of their weights.

        Args:
            batch: One of the data.
            weights: Of its samples.

        Yields:
            Rows by block, once.
        """
        found = self.risk.rows_of(batch, weights)
        root = {name: part * weights.sqrt().to(part).view(-1, *[1] * (part.ndim - 1)) for name, part in found.items()}
        yield {slot: DenseGradients(slot.gather(root).movedim(0, 1)) for slot in self.slots}
