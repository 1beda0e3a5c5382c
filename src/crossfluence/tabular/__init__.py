"""Tables: fitted scikit-learn estimators as risks, questions about clusters, and gaps between groups as objectives."""

from .clusters import centre, log_responsibility, margin
from .estimators import batches_of, inputs_of, model_of, risk_of
from .gaps import METRICS, GroupGap, group_gap
from .labels import flipped, relabelled
from .refit import training_of

__all__ = [
    "GroupGap",
    "METRICS",
    "batches_of",
    "centre",
    "flipped",
    "group_gap",
    "inputs_of",
    "log_responsibility",
    "margin",
    "model_of",
    "relabelled",
    "risk_of",
    "training_of",
]
