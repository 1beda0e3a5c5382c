"""Direct preference optimisation, on scores of a reference model that were computed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from crossfluence.errors import DataError
from crossfluence.extend import Batch, SampleLoss

from .batches import Columns, columns_of
from .losses import Causal

SIDES = ("chosen", "rejected")
REFERENCE = "ref_{}_logps"  # as in trl


def dpo_loss(beta: float = 0.1) -> SampleLoss:
    r"""The loss of direct preference optimisation.

    $$-\log\sigma\big(\beta\,[\log\tfrac{\pi(y_+)}{\pi_0(y_+)} - \log\tfrac{\pi(y_-)}{\pi_0(y_-)}]\big)$$

    Batches have the columns `chosen_input_ids`, `chosen_attention_mask`, `chosen_labels` (-100 for the prompt), the
    same for `rejected`, and the reference's `ref_chosen_logps` and `ref_rejected_logps`: see `with_reference`.

    Args:
        beta: Strength of the pull towards the reference.

    Returns:
        A loss of each sample, in nats.

    Raises:
        DataError: If beta is not positive.

    Example:
        >>> dpo_loss(0.1).beta
        0.1

    References:
        Rafailov et al., "Direct preference optimization", NeurIPS 2023.
    """
    if not beta > 0:
        raise DataError(f"Got beta={beta}; needed a positive number such as 0.1.")
    return Preference(beta)


@dataclass(frozen=True)
class Preference:
    """Cross-entropy of a preference.

    Attributes:
        beta: Strength of the pull towards the reference.
    """

    beta: float

    def __call__(self, model: nn.Module, batch: Batch) -> Shaped[Tensor, " b"]:
        """One loss for each pair."""
        columns = columns_of(batch)
        gains = [log_probabilities(model, columns, side) - _reference(columns, side) for side in SIDES]
        return -nn.functional.logsigmoid(self.beta * (gains[0] - gains[1]))


def log_probabilities(model: nn.Module, batch: Batch, side: str) -> Shaped[Tensor, " b"]:
    """Log-probabilities of the answers on one side.

    Args:
        model: A causal model.
        batch: With the columns of both sides.
        side: "chosen" or "rejected".

    Returns:
        In nats, summed over tokens.

    Raises:
        DataError: If there are no such columns.
    """
    columns = {
        name.removeprefix(f"{side}_"): column
        for name, column in columns_of(batch).items()
        if name.startswith(f"{side}_")
    }
    if not {"input_ids", "labels"} <= set(columns):
        raise DataError(
            f"A batch has the columns {list(columns_of(batch))}; needed {side}_input_ids, {side}_attention_mask and "
            f"{side}_labels, -100 for the prompt."
        )
    parts = Causal(mean=False, pad=None, seq2seq=False)
    return -parts.losses(parts.outputs(model, columns), columns).sum(1)


@torch.no_grad()
def with_reference(reference: nn.Module, batches: Iterable[Batch]) -> list[Columns]:
    """Batches with the log-probabilities that a reference model gives to both sides.

    Args:
        reference: The model before preference training, in evaluation mode.
        batches: With the columns of both sides.

    Returns:
        New batches, for `dpo_loss`.
    """
    return [
        columns_of(batch) | {REFERENCE.format(side): log_probabilities(reference, batch, side) for side in SIDES}
        for batch in batches
    ]


def _reference(columns: Columns, side: str) -> Shaped[Tensor, " b"]:
    if not isinstance(found := columns.get(REFERENCE.format(side)), Tensor):
        raise DataError(
            f"A batch has no {REFERENCE.format(side)}; type batches = language.with_reference(reference, batches)."
        )
    return found
