"""Effects of a small change of the data beside those of removal: how smooth a training is."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .._require import AbstractTraining
from .._results.agreement import Agreement, compare
from .._results.scores import Scores
from .._types import Objective
from ..errors import DataError
from .leave_out import answers
from .subsets import without_random


@dataclass(frozen=True)
class Nudges:
    """Settings of a comparison.

    Attributes:
        drop: Share of the samples in each group.
        groups: Random groups.
        nudge: Share of the groups' weight that makes a small change.
        seed: Of the groups.
    """

    drop: float
    groups: int
    nudge: float
    seed: int

    def __post_init__(self) -> None:
        if self.groups < 3 or not 0 < self.nudge < 1:
            raise DataError(
                f"Got groups={self.groups} and nudge={self.nudge}; needed at least 3 groups, and a share of their "
                f"weight."
            )

    def compared(
        self,
        train: AbstractTraining,
        objective: Objective,
        executor: Executor | None,
        store: str | os.PathLike[str] | None,
    ) -> tuple[Agreement, Float[Tensor, " m"]]:
        """Trains once as it is, once for each small change and once for each removal.

        Args:
            train: The training.
            objective: The question.
            executor: As in `leave_out`.
            store: As in `leave_out`.

        Returns:
            Effects of small changes, scaled up, as predictions of removals; and the answers of all samples' model.
        """
        without = without_random(train.n, self.groups, self.drop, self.seed)
        weights = torch.cat([torch.ones_like(without[:1]), 1 - self.nudge * (1 - without), without])
        names, values = answers(train, objective, weights, executor=executor, store=store)
        ids = tuple(range(self.groups))
        small, whole = ((values[:1] - part) for part in values[1:].split(self.groups))
        method = f"removal of {self.nudge:g} of the weight"
        found = compare(Scores(small / self.nudge, ids, names, method), Scores(whole, ids, names, "retraining"))
        return found, values[0]
