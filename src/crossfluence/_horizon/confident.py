"""Overfitted classifiers, of which no formula at the end of training knows the sizes."""

from __future__ import annotations

import torch

from .._autodiff.functional import evaluated
from .._losses import OnOutputs
from .._risk.risk import Risk

FITTED = 0.02  # mean loss of training, in nats
LOOKED_AT = 1_024  # samples
REASON = (
    "training went on until hardly any loss was left, where each sample's gradient was much larger for most of the "
    "time than it is at the end"
)


def confident(risk: Risk) -> bool:
    """True if a classifier has a training loss under .02 nats, and is only held back from more by its outputs' length.

    Twice the outputs then have less than half of the loss, as no loss does that pulls outputs towards targets, whatever
    its unit.

    Args:
        risk: The trained model.

    Returns:
        False where no outputs are found in the loss.
    """
    split = risk.split
    if not isinstance(split, OnOutputs):
        return False
    seen, plain, doubled = 0, 0.0, 0.0
    for _, batch, weights in risk.passes():
        z = evaluated(lambda batch=batch: split.outputs(risk.model, batch)).detach()
        with torch.no_grad():
            plain += float(split.criterion(z, batch).sum())
            doubled += float(split.criterion(2 * z, batch).sum())
        seen += len(weights)
        if seen >= LOOKED_AT:
            break
    return plain <= FITTED * seen and doubled < plain / 2
