"""The same risk at other parameters, such as those of an earlier point of a training."""

from __future__ import annotations

from .._autodiff.copies import copied
from .._autodiff.params import fingerprint, put, trained_parameters
from .._types import Params
from .risk import Risk


def moved_to(risk: Risk, theta: Params) -> Risk:
    """The same risk at other parameters, with a model of its own; nothing is looked at anew.

    Args:
        risk: A trained model.
        theta: Its parameters at another point of the training.

    Returns:
        A risk that reads the same data, without a record.
    """
    model = copied(risk.model)
    put(theta, model)
    named = trained_parameters(model, risk.params)
    made = risk.rebuilt(model, risk.kind, {name: named[name] for name in risk.theta}, risk.weights)
    made._set(fingerprint=fingerprint(model), record=None)
    return made
