"""Pairwise scores of queries and samples, layer by layer, from layer inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.params import Layout
from .._data.dealt import dealt
from .._data.samples import first_samples
from .._losses import length_of
from .._risk.objectives import QUERY_CHUNK, EachOf, check_each_question, refuse_independent, refuse_not_finite
from .._risk.risk import Risk
from .._risk.sharper import sharper
from .._solvers.base import AbstractPairwise, QueryScores
from .._solvers.cost import Timing
from .._types import Batch, Params
from ..errors import NonFiniteError
from .block_inverses import BlockInverse, PreconditionedQueries, SameBlock
from .factors import layers_at, layers_of_risk
from .gradients import AbstractGradients, ParameterBlock
from .layers import Layers
from .rounding import Rounding, faster_type, within
from .streamed import StreamedPass, gradient_of_sums, streams

Asked: TypeAlias = list[tuple[int, dict[ParameterBlock, PreconditionedQueries]]]
"""The number of queries of each piece, and their preconditioned gradients by block."""


@dataclass(frozen=True, eq=False)
class QueryBatch:
    """Some questions: their values `(m,)`, and their gradients by block."""

    values: Tensor
    gradients: dict[ParameterBlock, AbstractGradients]

    def __getitem__(self, questions: slice) -> QueryBatch:
        return QueryBatch(self.values[questions], {slot: part[questions] for slot, part in self.gradients.items()})

    def squared_norms(self) -> Shaped[Tensor, " m"]:
        """Of the questions' gradients."""
        parts = (part.squared_norms() for part in self.gradients.values())
        return sum(parts, torch.zeros_like(self.values))

    def along(self, step: Params) -> Shaped[Tensor, " m"]:
        """The questions' derivatives along a step in parameter space."""
        parts = (part.along(slot.gather(step).unsqueeze(0))[:, 0] for slot, part in self.gradients.items())
        return sum(parts, torch.zeros_like(self.values))


@dataclass(frozen=True, eq=False)
class PairwiseScores(AbstractPairwise):
    """All pairs of samples and questions, where hooks explain the gradients of both.

    Attributes:
        risk: Gives the samples.
        objective: Gives the questions.
        inverses: The inverse, by block.
        query_layers: Layers as the questions use them.
        sample_layers: Layers as the samples' losses use them.
        solve: Gives $J^{-1} v$, for the drift.
    """

    risk: Risk
    objective: EachOf
    inverses: Mapping[ParameterBlock, BlockInverse | SameBlock]
    query_layers: Layers
    sample_layers: Layers
    solve: Callable[[Tensor], Params]

    def scores(self, candidates: Iterable[Batch] | None) -> Iterator[QueryScores]:
        """Chunks of some hundred questions, each in one pass over the samples.

        Args:
            candidates: Samples that were not trained on, instead of the training data.

        Yields:
            One chunk after another.

        Raises:
            NonFiniteError: If a gradient of a question or a sample is not finite.
        """
        start, dependent, rounding = 0, False, None
        for pieces in self._questions():
            values = torch.cat([piece.values for piece in pieces])
            names = tuple(str(position) for position in range(start, start + len(values)))
            sizes = torch.cat([piece.squared_norms() for piece in pieces])
            for what, finite in (("", values.isfinite()), ("gradient of the ", sizes.isfinite())):
                refuse_not_finite(names, what, finite)
            dependent = dependent or bool(sizes.any())
            asked = [self._preconditioned(piece) for piece in pieces]
            rounding = self._rounding(asked) if not start else rounding
            derivatives, norm = self._derivatives(asked, candidates, rounding)
            drift = self._drift(pieces, derivatives if candidates is None else None)
            notes = (self._note(asked), *(rounding.notes if rounding else ()))
            yield QueryScores(names, values, derivatives, -drift, notes=notes, gradient_norm=norm)
            start += len(values)
        if not dependent:
            refuse_independent(self.risk.theta)

    def _drift(self, pieces: list[QueryBatch], derivatives: Shaped[Tensor, "n m"] | None) -> Shaped[Tensor, " m"]:
        """Of each question: the column sum of its scores, and the l2 term; or along a Newton step, for candidates."""
        risk = self.risk
        if derivatives is None:
            step = self.solve(risk.gradient)
            return torch.cat([piece.along(step) for piece in pieces])
        decay, found = risk.decay * risk.layout.flatten(risk.theta), risk.weights @ derivatives
        if not decay.any():
            return found
        step = self.solve(decay)
        return found + torch.cat([piece.along(step) for piece in pieces])

    def dry_run(self, m: int) -> tuple[Timing, ...]:
        """The first questions' gradients, and a pass over the samples for up to m of them."""
        first = next(self._questions())
        asked = [self._preconditioned(first[0][:m])]
        return (
            Timing(
                lambda: [self._preconditioned(piece) for piece in next(self._questions())],
                questions=sum(len(piece.values) for piece in first),
            ),
            Timing(lambda: self._derivatives(asked, None), grows=True, questions=asked[0][0]),
        )

    def _note(self, asked: Asked) -> str:
        lengths = [len(one.short[0]) for _, by in asked for one in by.values() if one.short]
        short = f", in sums of {min(lengths)} to {max(lengths)} products where that is shorter" if lengths else ""
        if self.sample_layers.outside:
            return f"All pairs of samples and questions, parameters outside of layers sample by sample{short}."
        return f"All pairs of samples and questions were met layer by layer{short}."

    def _questions(self) -> Iterator[list[QueryBatch]]:
        """At least 256 questions at a time, fewer at the end."""
        pieces: list[QueryBatch] = []
        for batch in self.objective.batches:
            values = self.objective.losses(self.risk.model, batch)
            whole = QueryBatch(values, self.query_layers.gradients(self.objective.losses, batch))
            starts = range(0, len(values), QUERY_CHUNK)
            pieces += [whole[start : start + QUERY_CHUNK] for start in starts]
            if sum(len(piece.values) for piece in pieces) >= QUERY_CHUNK:
                yield pieces
                pieces = []
        if pieces:
            yield pieces

    def _preconditioned(self, piece: QueryBatch) -> tuple[int, dict[ParameterBlock, PreconditionedQueries]]:
        """The number of queries, and their preconditioned gradients in each block."""
        return len(piece.values), {
            slot: self.inverses[slot].preconditioned(part) for slot, part in piece.gradients.items()
        }

    def _derivatives(
        self, asked: Asked, candidates: Iterable[Batch] | None, rounding: Rounding | None = None
    ) -> tuple[Tensor, float | None]:
        """The samples' gradients along the preconditioned questions `(n, m)`, and the norm of the risk's gradient.

        Returns:
            No norm where the risk keeps the gradient, since it was added up without rounding, or it was not added up.
        """
        chunks, risk = [by for _, by in asked], self.risk
        whole_model = sum(slot.size for slot in self.inverses) == risk.p
        summed = self.streamed and candidates is None and whole_model and "gradient" not in vars(risk)
        whole = StreamedPass(self.sample_layers, chunks, rounded=rounding and rounding.dtype)

        def rows() -> Iterator[tuple[int, Tensor]]:
            for index, batch, weights, nan_message in self._samples(candidates):
                b = len(weights) if candidates is None else length_of(batch)
                if summed:
                    whole.weights = weights
                parts = whole.scores(risk.kind.losses, batch, b) if self.streamed else self._plainly(chunks, batch)
                row = self._added(parts, asked, b) / risk.n
                if not row.isfinite().all():
                    raise NonFiniteError(nan_message())
                yield index, row

        if candidates is not None:
            return risk.in_order("scoring candidates", rows, sum(m for m, _ in asked)), None
        derivatives = risk.in_rows("scoring samples", rows, sum(m for m, _ in asked))
        if not summed:
            return derivatives, None
        sums = risk.ranks.added("taking the gradient", lambda: whole.sums, risk.weights.device)
        found = gradient_of_sums(self.sample_layers, sums, risk.theta)
        gradient = Layout.of(risk.theta).flatten(found).to(risk.weights) / risk.n + (
            risk.decay * risk.layout.flatten(risk.theta)
        )
        if rounding is not None:
            return derivatives, rounding.norm(gradient, risk.n)
        vars(risk)["gradient"] = gradient
        return derivatives, None

    def _added(self, parts: Sequence[Sequence[Tensor]], asked: Asked, b: int) -> Shaped[Tensor, "b m"]:
        """Parts of scores, added up and side by side."""
        blank = self.risk.weights.new_zeros(b, 1)
        return torch.cat([sum(found, blank.expand(-1, m)) for found, (m, _) in zip(parts, asked, strict=True)], dim=1)

    def _rounding(self, asked: Asked) -> Rounding | None:
        """Whether products are rounded: if that is faster, and moves the scores of a few samples by little enough."""
        risk, dtype = self.risk, faster_type(self.risk.weights)
        tolerance = min(each.tolerance for each in self.inverses.values())
        if dtype is None or not tolerance or not self.streamed:
            return None
        chunks, batch = [by for _, by in asked], next(iter(risk.data))
        few = first_samples(batch, risk.reading.sizes[0])
        batch, b = few or (batch, risk.reading.sizes[0])
        found = self.sample_layers.gradients(risk.kind.losses, batch)
        if not any(map(StreamedPass.in_pieces, found.values())):
            return None
        exact = [[by[slot].scores_with(part) for slot, part in found.items() if slot in by] for by in chunks]
        rounded = StreamedPass(self.sample_layers, chunks, rounded=dtype).scores(risk.kind.losses, batch, b)
        if not within(tolerance, self._added(exact, asked, b), self._added(rounded, asked, b)):
            return None
        return Rounding(dtype, sum(float(part.squared_norms().sum()) for part in found.values()) / b)

    def _plainly(self, chunks: list[dict[ParameterBlock, PreconditionedQueries]], batch: Batch) -> list[list[Tensor]]:
        """The same, from all layers' gradients together, where a model refuses to be streamed."""
        found = self.sample_layers.gradients(self.risk.kind.losses, batch)
        return [[by[slot].scores_with(found[slot]) for slot in by if slot in found] for by in chunks]

    @cached_property
    def streamed(self) -> bool:
        """True if gradients can be taken while the backward pass runs."""
        risk = self.risk
        batch = next(iter(risk.data))
        return streams(self.sample_layers, risk.theta, risk.kind.losses, batch, risk.reading.sizes[0], risk.precision)

    def _samples(self, candidates: Iterable[Batch] | None) -> Iterator[tuple[int, Batch, Tensor, Callable[[], str]]]:
        """Batches, their weights, and a sentence for the case that one is not finite."""
        if candidates is None:
            for index, batch, weights in self.risk.passes(self.risk.part):
                yield index, batch, weights, partial(self.risk.nan_message, index, batch)
            return
        for index, batch in dealt(candidates, self.risk.ranks):
            nan_message = partial("Candidate batch {} gives a NaN or an infinity. Clean or drop it.".format, index)
            yield index, batch, self.risk.weights[:0], nan_message


def pairwise_scores(
    risk: Risk,
    objective: EachOf,
    inverses: Sequence[BlockInverse] | None,
    solve: Callable[[Tensor], Params],
    scaling: Params | None = None,
) -> PairwiseScores | None:
    """All pairs, if samples and questions have the inverse's own blocks.

    Args:
        risk: The trained model.
        objective: One question for each test sample.
        inverses: The inverse, block by block; `None` for no curvature.
        solve: Gives $J^{-1} v$ for a vector.
        scaling: Without curvature, what questions are multiplied with.

    Returns:
        PairwiseScores, or `None` where gradients would have to be written out one by one.
    """
    asked = max(objective.batches, key=length_of, default=None)
    if asked is None or not risk.kind.per_sample:
        return None
    check_each_question(objective, risk.model, risk.theta, asked)
    samples = layers_of_risk(risk)
    own = objective.loss in (risk.loss, risk.kind.losses)  # asked about as it was trained: looked at already
    queries = samples if own else layers_at(risk, objective.losses, asked)
    same = {slot: SameBlock(None if scaling is None else slot.gather(scaling)) for slot in samples.slots}
    by_slot = same if inverses is None else {part.block.slot: part for part in inverses}
    queries, samples = queries.only(by_slot), samples.only(by_slot)
    if any(set(layers.slots) != set(by_slot) for layers in (queries, samples)):
        return None
    return PairwiseScores(risk, sharper(objective, risk.model, risk.theta), by_slot, queries, samples, solve)
