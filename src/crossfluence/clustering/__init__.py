"""Cluster memberships explained: deep embedded clustering and questions about it."""

from .dec import (
    DEC,
    anchored_target,
    divergence,
    encoder,
    fixed_target_loss,
    moving_target,
    pretrain,
    start_centres,
    target,
)
from .explain import ClusterSettings, Explanation, explain
from .objectives import assignments, log_assignment, margin
from .settle import Settled, settled

__all__ = [
    "ClusterSettings",
    "DEC",
    "Explanation",
    "Settled",
    "anchored_target",
    "assignments",
    "divergence",
    "encoder",
    "explain",
    "fixed_target_loss",
    "log_assignment",
    "margin",
    "moving_target",
    "pretrain",
    "settled",
    "start_centres",
    "target",
]
