"""Gradients of samples' losses and of questions by the blocks of a fit, by hooks where these explain the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .._autodiff.functional import bind
from .._autodiff.params import Layout
from .._autodiff.ways import value_and_rows
from .._data.batch import length_of
from .._kronecker.factors import LONGEST_SIDE
from .._kronecker.gradients import ByBlock, DenseGradients, ParameterBlock
from .._kronecker.layers import Layers, layers_of
from .._risk.objectives import (
    QUERY_CHUNK,
    EachOf,
    check_each_question,
    queries_at_once,
    questions,
    refuse_independent,
    refuse_not_finite,
)
from .._risk.sharper import sharper
from .._types import Batch, Objective, Params, SampleLoss


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, and what is known of how it was trained.

    Attributes:
        model: The module.
        theta: Its trained parameters.
        precision: Relative rounding error of the losses.
        decays: The l2 coefficient of each parameter, where these differ.
        slots: Blocks of the fit.
    """

    model: nn.Module
    theta: Params
    precision: float
    decays: Mapping[str, float]
    slots: Sequence[ParameterBlock]

    def sample_gradients(self, losses: SampleLoss, largest: Batch) -> Callable[[Batch], ByBlock]:
        """A function that differentiates the losses of a batch by block.

        Args:
            losses: `(model, batch) -> (b,)`.
            largest: A batch to look at the layers with.

        Returns:
            From a batch to the gradients of its samples: by hooks, or written out where hooks do not explain them.
        """
        layers = layers_of(self.model, self.theta, losses, largest, precision=self.precision, decay=dict(self.decays))
        fitting = self._fitting(layers)
        if fitting is not None:
            return lambda batch: fitting.gradients(losses, batch)
        bound = bind(losses, self.model)
        return lambda batch: self._dense(value_and_rows(lambda at: bound(at, batch), self.theta)[1])

    def questions(self, objective: Objective) -> Iterator[Asked]:
        """Questions and their gradients by block, in chunks that fit in memory.

        Args:
            objective: As `influence` takes it.

        Yields:
            At most 256 at a time.

        Raises:
            ObjectiveError: If the objective has another form or does not depend on the parameters.
            NonFiniteError: If a value is not finite.
        """
        objective = sharper(objective, self.model, self.theta)
        by_hooks = self._layers_of_each(objective) if isinstance(objective, EachOf) else None
        if by_hooks is not None:
            assert isinstance(objective, EachOf)
            yield from self._each(objective, by_hooks)
            return
        layout = Layout.of(self.theta)
        for chunk in questions(objective, self.model, self.theta):
            yield Asked(chunk.names, chunk.values, self._dense(layout.split(chunk.gradients)))

    def _each(self, objective: EachOf, layers: Layers) -> Iterator[Asked]:
        start, dependent, step = 0, False, min(QUERY_CHUNK, queries_at_once(Layout.of(self.theta).size))
        for batch in objective.batches:
            values = objective.losses(self.model, batch)
            found = layers.gradients(objective.losses, batch)
            names = tuple(map(str, range(start, start + len(values))))
            refuse_not_finite(names, "", values.isfinite())
            dependent = dependent or any(bool(part.squares().any()) for part in found.values())
            for at in range(0, len(values), step):
                part = {slot: each[at : at + step] for slot, each in found.items()}
                yield Asked(names[at : at + step], values[at : at + step], part)
            start += len(values)
        if not dependent:
            refuse_independent(self.theta)

    def _layers_of_each(self, objective: EachOf) -> Layers | None:
        largest = max(objective.batches, key=length_of, default=None)
        if largest is None:
            return None
        check_each_question(objective, self.model, self.theta, largest)
        found = layers_of(
            self.model, self.theta, objective.losses, largest, precision=self.precision, decay=dict(self.decays)
        )
        return self._fitting(found)

    def _fitting(self, layers: Layers) -> Layers | None:
        """The layers, if their blocks are those of the fit."""
        for found in (layers, replace(layers, rows=LONGEST_SIDE)):
            if set(self.slots) <= set(found.slots):
                return found
        return None

    def _dense(self, rows: Params) -> ByBlock:
        return {slot: DenseGradients(slot.gather(rows).movedim(0, 1)) for slot in self.slots}


@dataclass(frozen=True, eq=False)
class Asked:
    """Some questions: names, values `(m,)`, and gradients by block."""

    names: tuple[str, ...]
    values: Tensor
    gradients: ByBlock


def largest_of(batches: Iterable[Batch]) -> Batch:
    """The batch to look at the layers with: one sample alone does not tell samples from positions."""
    return max(batches, key=length_of)


def cpu(parts: Sequence[Tensor]) -> list[Tensor]:
    """Tensors in the memory that files are read into."""
    return [part.detach().to(torch.device("cpu")) for part in parts]
