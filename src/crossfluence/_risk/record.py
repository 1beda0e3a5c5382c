"""The interface of a training record: how far a lasting gradient moved each parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from .._require import require
from .._types import Params


class AbstractRecord(ABC):
    """A record of a training, beside the loss that it minimised."""

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """Sentences for every report."""

    @property
    @abstractmethod
    def content(self) -> str:
        """A content hash."""

    @property
    @abstractmethod
    def batch_gradient(self) -> tuple[int | None, float] | None:
        """Samples in a step's batch, and the length of its gradient in the last steps; what is not known is `None`."""

    @abstractmethod
    def check(self, theta: Params) -> None:
        """Refuses parameters of another model with a `StaleError`."""

    @abstractmethod
    def scaling(self, theta: Params) -> Params:
        """The factor by which all steps together multiplied a small lasting gradient, for every parameter."""

    @abstractmethod
    def decay(self, theta: Params) -> Params:
        """The exponent by which weight decay outside of the loss shrank each parameter."""

    @abstractmethod
    def earlier(self, theta: Params, count: int) -> Iterator[tuple[Params, Params, Params]]:
        """So many segments of the training from the last to the first: parameters at the end, scaling and decay."""


def check_record(record: object, theta: Params) -> None:
    """Refuses a record of another model, and what is no record.

    Args:
        record: Or nothing.
        theta: The trained parameters.
    """
    if record is None:
        return
    line = "record=crossfluence.TrainingRecord.from_settings(risk, optimizer=..., steps=..., batch_size=...)"
    require(record, AbstractRecord, "Risk(record=)", "a TrainingRecord", line)
    assert isinstance(record, AbstractRecord)
    record.check(theta)
