"""Many questions about many samples at once, layer by layer: products of what layers saw, not whole gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._losses import length_of
from .._risk.objectives import QUESTIONS_AT_ONCE, EachOf, check_each_question, refuse_independent, refuse_not_finite
from .._risk.risk import Risk
from .._solvers.base import Answers
from .._solvers.cost import Stage
from .._types import Batch, Params
from ..errors import NonFiniteError
from .factors import Eigenblock, largest_batch, looked_at
from .gradients import AbstractGradients, Outer, Slot
from .layers import Layers


@dataclass(frozen=True, eq=False)
class Filter:
    r"""A block of the inverse, as a filter between gradients of samples and of questions.

    Both gradients are often single outer products, and then $\langle l r^\top, W \circ l' r'^\top\rangle$ in the
    eigenbasis is a short sum over s of $(l^\top (\alpha_s \circ l'))\,(r^\top (\beta_s \circ r'))$ once
    $W \approx \sum_s \alpha_s \beta_s^\top$: s (r + c) products instead of r c.

    Attributes:
        block: The eigenbasis.
        response: $W$, shape `(g, r, c)`.
        tolerance: Share of the scores, in root mean square, that the short sum may miss.
    """

    block: Eigenblock
    response: Shaped[Tensor, "g r c"]
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
        weighted = left.unsqueeze(1) * self.response[0] * right
        wide = columns > rows
        small = weighted @ weighted.T if wide else weighted.T @ weighted
        squares, vectors = (part.flip(-1) for part in torch.linalg.eigh(small))
        left_over = squares.clamp_min(0).flip(0).cumsum(0).flip(0)
        s = int((left_over > self.tolerance**2 * left_over[0]).sum())
        if s * (rows + columns) >= rows * columns:
            return None
        basis = vectors[:, :s]
        alpha, beta = (basis, weighted.T @ basis) if wide else (weighted @ basis, basis)
        return (alpha * _reciprocal(left)).to(self.response), (beta * _reciprocal(right)).to(self.response)

    def asked(self, gradients: AbstractGradients) -> Asked:
        """The questions' gradients, ready to be met by those of samples."""
        if not isinstance(gradients, Outer) or not gradients.single or self.terms is None:
            return Asked(self, gradients)
        (alpha, beta), (left, right) = self.terms, (self.block.left, self.block.right)
        seen = gradients.rotated(left, right)
        return Asked(self, gradients, (_scaled(seen.left, alpha, left), _scaled(seen.right, beta, right)))


@dataclass(frozen=True, eq=False)
class Asked:
    """Gradients of m questions by one block, filtered.

    Attributes:
        filter: Of the block.
        gradients: Of the questions.
        short: The short sum's vectors, `(s, m, r)` and `(s, m, c)`, if it is the cheaper way.
    """

    filter: Filter
    gradients: AbstractGradients
    short: tuple[Shaped[Tensor, "s m r"], Shaped[Tensor, "s m c"]] | None = field(default=None, repr=False)

    @cached_property
    def directions(self) -> Shaped[Tensor, "m g r c"]:
        """Written out."""
        return self.filter.block.filtered(self.gradients.dense().movedim(0, 1), self.filter.response)

    def met_by(self, samples: AbstractGradients) -> Shaped[Tensor, "b m"]:
        """Inner products with samples' gradients."""
        if self.short is None or not isinstance(samples, Outer) or not samples.single:
            return samples.along(self.directions)
        left, right = (
            side[0, :, 0] @ vectors.flatten(0, 1).T
            for side, vectors in zip((samples.left, samples.right), self.short, strict=True)
        )
        return (left * right).unflatten(1, self.short[0].shape[:2]).sum(1)


@dataclass(frozen=True, eq=False)
class Piece:
    """Some questions: their values `(m,)`, and their gradients by block."""

    values: Tensor
    gradients: dict[Slot, AbstractGradients]

    def __getitem__(self, questions: slice) -> Piece:
        return Piece(self.values[questions], {slot: part[questions] for slot, part in self.gradients.items()})

    def along(self, step: Params) -> Shaped[Tensor, " m"]:
        """The questions' derivatives along a step in parameter space."""
        parts = (part.along(slot.gather(step).unsqueeze(0))[:, 0] for slot, part in self.gradients.items())
        return sum(parts, torch.zeros_like(self.values))


@dataclass(frozen=True, eq=False)
class Pairs:
    """All pairs of samples and questions, where hooks explain the gradients of both.

    Attributes:
        risk: Gives the samples.
        objective: Gives the questions.
        filters: The inverse, by block.
        asking: Layers as the questions use them.
        answering: Layers as the samples' losses use them.
    """

    risk: Risk
    objective: EachOf
    filters: dict[Slot, Filter]
    asking: Layers
    answering: Layers

    def answers(self, candidates: Iterable[Batch] | None, newton_step: Params) -> Iterator[Answers]:
        """Chunks of some hundred questions, each in one pass over the samples.

        Args:
            candidates: Samples that were not trained on, instead of the training data.
            newton_step: $J^{-1} g$ at the trained parameters, for the drift.

        Yields:
            One chunk of answers after another.

        Raises:
            NonFiniteError: If a gradient of a question or a sample is not finite.
        """
        start, dependent = 0, False
        for pieces in self._questions():
            values = torch.cat([piece.values for piece in pieces])
            names = tuple(str(position) for position in range(start, start + len(values)))
            drift = torch.cat([piece.along(newton_step) for piece in pieces])
            for what, finite in (("", values.isfinite()), ("gradient of the ", drift.isfinite())):
                refuse_not_finite(names, what, finite)
            dependent = dependent or any(part.squares().any() for piece in pieces for part in piece.gradients.values())
            asked = [self._filtered(piece) for piece in pieces]
            yield Answers(names, values, self._reached(asked, candidates), -drift, notes=(_note(asked),))
            start += len(values)
        if not dependent:
            refuse_independent(self.risk.theta)

    def rehearse(self, m: int) -> tuple[Stage, ...]:
        """The first questions' gradients, and a pass over the samples for up to m of them."""
        first = next(self._questions())
        asked = [self._filtered(first[0][:m])]
        return (
            Stage(
                lambda: [self._filtered(piece) for piece in next(self._questions())],
                questions=sum(len(piece.values) for piece in first),
            ),
            Stage(lambda: self._reached(asked, None), grows=True, questions=asked[0][0]),
        )

    def _questions(self) -> Iterator[list[Piece]]:
        """At least 256 questions at a time, fewer at the end."""
        pieces: list[Piece] = []
        for batch in self.objective.batches:
            values = self.objective.losses(self.risk.model, batch)
            whole = Piece(values, self.asking.gradients(self.objective.losses, batch))
            starts = range(0, len(values), QUESTIONS_AT_ONCE)
            pieces += [whole[start : start + QUESTIONS_AT_ONCE] for start in starts]
            if sum(len(piece.values) for piece in pieces) >= QUESTIONS_AT_ONCE:
                yield pieces
                pieces = []
        if pieces:
            yield pieces

    def _filtered(self, piece: Piece) -> tuple[int, dict[Slot, Asked]]:
        """How many questions, and what their gradients ask of each block."""
        return len(piece.values), {slot: self.filters[slot].asked(part) for slot, part in piece.gradients.items()}

    def _reached(
        self, asked: list[tuple[int, dict[Slot, Asked]]], candidates: Iterable[Batch] | None
    ) -> Shaped[Tensor, "n m"]:
        """The samples' gradients along the filtered gradients of the questions."""
        rows = []
        for batch, blame in self._samples(candidates):
            found = self.answering.gradients(self.risk.kind.losses, batch)
            b = next((len(each) for each in found.values()), 0) or length_of(batch)
            blank = self.risk.weights.new_zeros(b, 1)
            parts = [
                sum((by[slot].met_by(found[slot]) for slot in by if slot in found), blank.expand(-1, m))
                for m, by in asked
            ]
            rows.append(torch.cat(parts, dim=1))
            if not rows[-1].isfinite().all():
                raise NonFiniteError(blame())
        return torch.cat(rows) / self.risk.n

    def _samples(self, candidates: Iterable[Batch] | None) -> Iterator[tuple[Batch, Callable[[], str]]]:
        """Batches, each with a sentence for the case that it is not finite."""
        if candidates is None:
            for index, batch, _ in self.risk.passes():
                yield batch, partial(self.risk.blame, index, batch)
        for index, batch in enumerate(candidates or ()):
            yield batch, partial("Candidate batch {} gives a NaN or an infinity. Clean or drop it.".format, index)


def pairs_of(risk: Risk, objective: EachOf, filters: Sequence[Filter]) -> Pairs | None:
    """All pairs, if hooks explain every gradient of samples and of questions, in the inverse's own blocks.

    Args:
        risk: The trained model.
        objective: One question for each test sample.
        filters: The inverse, block by block.

    Returns:
        Pairs, or `None` where gradients would have to be written out one by one.
    """
    by_slot = {part.block.slot: part for part in filters}
    sides = []
    asked = max(objective.batches, key=length_of, default=None)
    if asked is not None:
        check_each_question(objective, risk.model, risk.theta, asked)
    sample = next(islice(risk.data, largest_batch(risk), None))
    for scalars, batch in ((objective.losses, asked), (risk.kind.losses, sample)):
        layers = None if batch is None else looked_at(risk, scalars, batch)
        if layers is None or layers.outside or set(layers.slots) != set(by_slot):
            return None
        sides.append(layers)
    return Pairs(risk, objective, by_slot, *sides)


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


def _note(asked: list[tuple[int, dict[Slot, Asked]]]) -> str:
    lengths = [len(one.short[0]) for _, by in asked for one in by.values() if one.short]
    short = f", in sums of {min(lengths)} to {max(lengths)} products where that is shorter" if lengths else ""
    return f"All pairs of samples and questions were met layer by layer{short}."
