"""Pairwise scores of queries and samples, layer by layer, from layer inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.params import Layout
from .._data.dealt import dealt
from .._losses import length_of
from .._risk.objectives import QUERY_CHUNK, EachOf, check_each_question, refuse_independent, refuse_not_finite
from .._risk.risk import Risk
from .._solvers.base import AbstractPairwise, QueryScores
from .._solvers.cost import Timing
from .._types import Batch, Params
from ..errors import NonFiniteError
from .factors import Eigenblock, layers_at, layers_of_risk
from .gradients import AbstractGradients, OuterProducts, ParameterBlock
from .layers import Layers
from .streamed import StreamedPass, gradient_of_sums, streams


@dataclass(frozen=True, eq=False)
class BlockInverse:
    r"""A block of the inverse, between gradients of samples and of questions.

    Both gradients are often single outer products, and then $\langle l r^\top, W \circ l' r'^\top\rangle$ in the
    eigenbasis is a short sum over s of $(l^\top (\alpha_s \circ l'))\,(r^\top (\beta_s \circ r'))$ once
    $W \approx \sum_s \alpha_s \beta_s^\top$: s (r + c) products instead of r c.

    Attributes:
        block: The eigenbasis.
        inverse_eigenvalues: $W$, shape `(g, r, c)`.
        tolerance: Share of the scores, in root mean square, that the short sum may miss.
    """

    block: Eigenblock
    inverse_eigenvalues: Shaped[Tensor, "g r c"]
    tolerance: float

    @cached_property
    def terms(self) -> tuple[Shaped[Tensor, "r s"], Shaped[Tensor, "c s"]] | None:
        r"""$\alpha$ and $\beta$; `None` where the block's own size is cheaper.

        $W$ is weighted with the gradients' energy along each eigenvector, cut off after as many singular values as
        the tolerance needs, and the weights are taken out again.
        """
        (groups, rows, columns), energy = self.block.slot.form, self.block.values[0].double()
        if groups > 1 or not energy.any():
            return None
        left, right = energy.sum(1) / energy.sum(), energy.sum(0)  # of samples times questions: no square roots
        weighted = left.unsqueeze(1) * self.inverse_eigenvalues[0] * right
        wide = columns > rows
        small = weighted @ weighted.T if wide else weighted.T @ weighted
        squares, vectors = (part.flip(-1) for part in torch.linalg.eigh(small))
        left_over = squares.clamp_min(0).flip(0).cumsum(0).flip(0)
        s = int((left_over > self.tolerance**2 * left_over[0]).sum())
        if s * (rows + columns) >= rows * columns:
            return None
        basis = vectors[:, :s]
        alpha, beta = (basis, weighted.T @ basis) if wide else (weighted @ basis, basis)
        return (alpha * _reciprocal(left)).to(self.inverse_eigenvalues), (beta * _reciprocal(right)).to(
            self.inverse_eigenvalues
        )

    def applied(self, directions: Shaped[Tensor, "m g r c"]) -> Shaped[Tensor, "m g r c"]:
        """Directions, multiplied by this block of the inverse."""
        return self.block.apply_eigenfunction(directions, self.inverse_eigenvalues)

    def preconditioned(self, gradients: AbstractGradients) -> PreconditionedQueries:
        """The queries' gradients, multiplied by this block of the inverse."""
        if not isinstance(gradients, OuterProducts) or not gradients.single or self.terms is None:
            return PreconditionedQueries(self, gradients)
        (alpha, beta), (left, right) = self.terms, (self.block.left, self.block.right)
        seen = gradients.rotated(left, right)
        return PreconditionedQueries(
            self, gradients, (_scaled(seen.left, alpha, left), _scaled(seen.right, beta, right))
        )


@dataclass(frozen=True, eq=False)
class SameBlock:
    """No curvature: questions stay as they are, or are multiplied parameter by parameter.

    Attributes:
        scale: Shape `(g, r, c)`.
    """

    scale: Shaped[Tensor, "g r c"] | None = None

    def preconditioned(self, gradients: AbstractGradients) -> PreconditionedQueries:
        """Themselves, or multiplied."""
        short = None
        if (
            self.scale is None
            and isinstance(gradients, OuterProducts)
            and gradients.single
            and len(gradients.left) == 1
        ):
            short = gradients.left[:, :, 0], gradients.right[:, :, 0]
        return PreconditionedQueries(self, gradients, short)

    def applied(self, directions: Shaped[Tensor, "m g r c"]) -> Shaped[Tensor, "m g r c"]:
        """Directions, or multiplied."""
        return directions if self.scale is None else directions * self.scale.to(directions)


@dataclass(frozen=True, eq=False)
class PreconditionedQueries:
    """Gradients of m questions by one block, multiplied by its inverse.

    Attributes:
        inverse: Of the block.
        gradients: Of the questions.
        short: The short sum's vectors, `(s, m, r)` and `(s, m, c)`, if it is the cheaper way.
    """

    inverse: BlockInverse | SameBlock
    gradients: AbstractGradients
    short: tuple[Shaped[Tensor, "s m r"], Shaped[Tensor, "s m c"]] | None = field(default=None, repr=False)

    @cached_property
    def directions(self) -> Shaped[Tensor, "m g r c"]:
        """Written out."""
        return self.inverse.applied(self.gradients.dense().movedim(0, 1))

    def scores_with(self, samples: AbstractGradients) -> Shaped[Tensor, "b m"]:
        """Inner products with samples' gradients."""
        if self.short is None or not isinstance(samples, OuterProducts) or not samples.single:
            return samples.along(self.directions)
        left, right = (
            side[0, :, 0] @ vectors.flatten(0, 1).T
            for side, vectors in zip((samples.left, samples.right), self.short, strict=True)
        )
        return (left * right).unflatten(1, self.short[0].shape[:2]).sum(1)


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
        start, dependent = 0, False
        for pieces in self._questions():
            values = torch.cat([piece.values for piece in pieces])
            names = tuple(str(position) for position in range(start, start + len(values)))
            sizes = torch.cat([piece.squared_norms() for piece in pieces])
            for what, finite in (("", values.isfinite()), ("gradient of the ", sizes.isfinite())):
                refuse_not_finite(names, what, finite)
            dependent = dependent or bool(sizes.any())
            asked = [self._preconditioned(piece) for piece in pieces]
            derivatives = self._derivatives(asked, candidates)
            drift = self._drift(pieces, derivatives if candidates is None else None)
            yield QueryScores(names, values, derivatives, -drift, notes=(self._note(asked),))
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

    def _note(self, asked: list[tuple[int, dict[ParameterBlock, PreconditionedQueries]]]) -> str:
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
        self, asked: list[tuple[int, dict[ParameterBlock, PreconditionedQueries]]], candidates: Iterable[Batch] | None
    ) -> Shaped[Tensor, "n m"]:
        """The samples' gradients along the preconditioned gradients of the questions."""
        chunks, risk = [by for _, by in asked], self.risk
        whole_model = sum(slot.size for slot in self.inverses) == risk.p
        summed = self.streamed and candidates is None and whole_model and "gradient" not in vars(risk)
        whole = StreamedPass(self.sample_layers, chunks)

        def rows() -> Iterator[tuple[int, Tensor]]:
            for index, batch, weights, nan_message in self._samples(candidates):
                b = len(weights) if candidates is None else length_of(batch)
                if summed:
                    whole.weights = weights
                parts = whole.scores(risk.kind.losses, batch, b) if self.streamed else self._plainly(chunks, batch)
                blank = risk.weights.new_zeros(b, 1)
                added = [sum(found, blank.expand(-1, m)) for found, (m, _) in zip(parts, asked, strict=True)]
                row = torch.cat(added, dim=1) / risk.n
                if not row.isfinite().all():
                    raise NonFiniteError(nan_message())
                yield index, row

        if candidates is not None:
            return risk.in_order("scoring candidates", rows, sum(m for m, _ in asked))
        derivatives = risk.in_rows("scoring samples", rows, sum(m for m, _ in asked))
        if summed:
            sums = risk.ranks.added("taking the gradient", lambda: whole.sums, risk.weights.device)
            found = gradient_of_sums(self.sample_layers, sums, risk.theta)
            vars(risk)["gradient"] = Layout.of(risk.theta).flatten(found).to(risk.weights) / risk.n + (
                risk.decay * risk.layout.flatten(risk.theta)
            )
        return derivatives

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
    return PairwiseScores(risk, objective, by_slot, queries, samples, solve)


def _reciprocal(energy: Shaped[Tensor, " d"]) -> Shaped[Tensor, "d 1"]:
    """One over it; zero where no sample has more than rounding errors."""
    known = energy > torch.finfo(energy.dtype).eps * energy.max()
    return torch.where(known, 1 / energy, 0).unsqueeze(1)


def _scaled(
    side: Shaped[Tensor, "1 m 1 d"], terms: Shaped[Tensor, "d s"], basis: Tensor | None
) -> Shaped[Tensor, "s m d"]:
    """Every question's vector times every term, in the layer's own coordinates."""
    scaled = side[0, :, 0] * terms.T.unsqueeze(1)
    return scaled if basis is None else scaled @ basis[0].T
