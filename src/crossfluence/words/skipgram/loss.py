"""The skip-gram loss from counts: value, gradient, curvature and blocks, a few rows of the pair matrix at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from ..corpus.pairs import PairCounts, Pairs

NUMBERS_AT_ONCE = 3_000_000  # entries of the pair matrix that are held together: they stay in the processor's cache
FREQUENT, RARE = 3_000, 3_000  # words that stand for themselves in a block, and that stand for all rarer ones


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of the pair matrix, ready to be multiplied.

    Attributes:
        words: The words whose rows these are.
        noise: Expected noise pairs of each row.
        places: Where the observed pairs stand in the rows, written out one after the other.
        counts: Expected counts of the observed pairs.
        relative: The same as shares of the expected noise counts of the same pair.
    """

    words: Int[Tensor, " r"]
    noise: Float[Tensor, " r"]
    places: Int[Tensor, " nnz"]
    counts: Float[Tensor, " nnz"]
    relative: Float[Tensor, " nnz"]


@dataclass(frozen=True, eq=False)
class Bend:
    """First and second derivatives by the scores of some rows of the pair matrix, in units of the mean loss.

    Attributes:
        words: The words whose rows these are.
        bend: Second derivatives, never negative.
        slope: First derivatives.
    """

    words: Int[Tensor, " r"]
    bend: Float[Tensor, "r V"]
    slope: Float[Tensor, "r V"]


@dataclass(frozen=True, eq=False)
class ExpectedLoss:
    r"""Skip-gram with all pairs and all noise words in expectation.

    $$F(W, C) = \frac{1}{T}\sum_{a,b} N_{ab}\,\zeta(-s_{ab}) + k N_a q_b\,\zeta(s_{ab})
    + \frac{\text{l2}}{2}(\lVert W\rVert^2 + \lVert C\rVert^2), \qquad s_{ab} = W_a\cdot C_b$$

    with the softplus function $\zeta$, pair counts N, their row sums, noise words q and k of them to a pair. Rows of
    words without pairs cost nothing. The matrix of all V x V scores is never held: some rows at a time.

    Attributes:
        counts: Pair counts of the sentences that are asked about.
        noise: Shape `(V,)`, the distribution q of noise words.
        negatives: k.
        total: T, the number of pairs of the whole corpus, whichever sentences are left.
        l2: Per mean loss of a pair.
        dtype: In which all is computed.
    """

    counts: PairCounts
    noise: Float[Tensor, " V"]
    negatives: int
    total: float
    l2: float
    dtype: torch.dtype

    @classmethod
    def of(cls, pairs: Pairs, l2: float, dtype: torch.dtype, counts: PairCounts | None = None) -> ExpectedLoss:
        """The loss of a corpus, or of some of its sentences in units of the whole.

        Args:
            pairs: Of the whole corpus.
            l2: Per mean loss of a pair.
            dtype: In which all is computed.
            counts: Of some of its sentences; default: all.

        Returns:
            Its value, gradient, curvature and blocks.
        """
        noise = torch.as_tensor(pairs.noise)
        used = pairs.all if counts is None else counts
        return cls(used, noise, pairs.sampling.negatives, pairs.all.total, l2, dtype)

    def value(self, words: Float[Tensor, "V d"], contexts: Float[Tensor, "V d"]) -> float:
        """The loss F."""
        found = sum(self._value(rows, words[rows.words] @ contexts.T) for rows in self._rows)
        return found / self.total + self._penalty(words, contexts)

    def value_and_gradient(
        self, words: Float[Tensor, "V d"], contexts: Float[Tensor, "V d"], *, value: bool = True
    ) -> tuple[float, Float[Tensor, "V d"], Float[Tensor, "V d"]]:
        """F and its gradient by both tables.

        Args:
            words: W.
            contexts: C.
            value: Whether F is wanted; without it, NaN is returned in a third of the time less.

        Returns:
            F, and two tables of the same shapes.
        """
        found, weighted = 0.0 if value else float("nan"), contexts * self._q[:, None]
        of_words, of_contexts = torch.zeros_like(words), torch.zeros_like(contexts.T)  # wide: twice as fast
        for rows in self._rows:
            own = words[rows.words]
            share = own @ contexts.T
            if value:
                found += self._value(rows, share)
            share.sigmoid_()
            _subtract_observed(share, rows)
            of_words[rows.words] = rows.noise[:, None] * (weighted.T @ share.T).T
            of_contexts.addmm_((rows.noise[:, None] * own).T, share)
        of_contexts = (of_contexts * self._q).T
        found = found / self.total + self._penalty(words, contexts)
        return found, of_words / self.total + self.l2 * words, of_contexts / self.total + self.l2 * contexts

    def bends(self, words: Float[Tensor, "V d"], contexts: Float[Tensor, "V d"]) -> Iterator[Bend]:
        """Terms that all products with a second derivative at one point share, some rows of the pair matrix at a time.

        Args:
            words: W.
            contexts: C.

        Yields:
            Two numbers for each pair of words.
        """
        for rows in self._rows:
            scale = rows.noise[:, None] * (self._q / self.total)
            slope = (words[rows.words] @ contexts.T).sigmoid_()
            bend = (slope * (1 - slope)).mul_(scale)
            bend.view(-1)[rows.places] *= 1 + rows.relative
            _subtract_observed(slope, rows)
            yield Bend(rows.words, bend, slope.mul_(scale))

    def curvature_products(
        self,
        tables: Float[Tensor, "2 V d"],
        along: Float[Tensor, "m 2 V d"],
        bends: Iterable[Bend],
        *,
        full: bool,
    ) -> Float[Tensor, "m 2 V d"]:
        """The Hessian, or the Gauss-Newton matrix, times directions.

        Args:
            tables: W and C.
            along: The directions' parts in W and C.
            bends: From `bends` at the same tables, or kept from earlier.
            full: Whether to add what Gauss-Newton leaves out: the residuals that couple a word with its contexts.

        Returns:
            Tables for each direction.
        """
        words, contexts = tables
        m, _, size, d = along.shape
        along_contexts = along[:, 1].transpose(0, 1).reshape(size, m * d)
        of_words, of_contexts = torch.zeros_like(along[:, 0]), along.new_zeros(m * d, size)  # wide: twice as fast
        for rows in bends:
            own, moved = words[rows.words], along[:, 0, rows.words]  # (r, d), (m, r, d)
            out = torch.zeros_like(moved)
            if full:
                out += (rows.slope @ along_contexts).view(-1, m, d).transpose(0, 1)
                of_contexts.addmm_(moved.transpose(0, 1).reshape(-1, m * d).T, rows.slope)
            for part, of_direction, direction, step in zip(out, of_contexts.split(d), along[:, 1], moved, strict=True):
                change = torch.cat([step, own], 1) @ torch.cat([contexts, direction], 1).T
                change *= rows.bend
                part += (contexts.T @ change.T).T
                of_direction.addmm_(own.T, change)
            of_words[:, rows.words] = out
        return torch.stack([of_words, of_contexts.view(m, d, size).mT], dim=1) + self.l2 * along

    def blocks(
        self, words: Float[Tensor, "V d"], contexts: Float[Tensor, "V d"]
    ) -> tuple[Float[Tensor, "V d d"], Float[Tensor, "V d d"]]:
        """The second derivatives by each word's own vector and by each context's own: d x d for each row.

        They are those of the Hessian and of Gauss-Newton alike: never negative, and at least l2. Each is a sum over all
        words on the other side; in large vocabularies over some of them, each for those of about its frequency.

        Args:
            words: W.
            contexts: C.

        Returns:
            Blocks of the word table and of the context table.
        """
        size, d = words.shape
        upper = torch.triu_indices(d, d)
        chosen, share = representatives(size)
        share = share.to(self.dtype)
        word_squares, context_squares = (table[:, upper[0]] * table[:, upper[1]] for table in (words, contexts[chosen]))
        context_squares *= (self._q[chosen] * share)[:, None]
        of_words, of_contexts = words.new_zeros(size, len(upper[0])), words.new_zeros(len(upper[0]), size)
        standing_for = words.new_zeros(size).index_copy_(0, chosen, share)
        for rows in self._rows:
            slope = (words[rows.words] @ contexts.T).sigmoid_()
            bend = slope.mul_(1 - slope)
            bend.view(-1)[rows.places] *= 1 + rows.relative
            of_words[rows.words] = rows.noise[:, None] * (bend[:, chosen] @ context_squares)
            some = standing_for[rows.words].nonzero()[:, 0]
            scale = (rows.noise * standing_for[rows.words])[some, None]
            of_contexts.addmm_((scale * word_squares[rows.words[some]]).T, bend[some])
        return self._unpacked(of_words, upper), self._unpacked((of_contexts * self._q).T, upper)

    def pair_changes(
        self, rows: Int[Tensor, " r"], tables: Float[Tensor, "2 V d"], along: Float[Tensor, "2 V d"]
    ) -> Float[Tensor, "r V"]:
        """Derivatives along a direction of the loss of one pair of words, with its noise words in expectation.

        Args:
            rows: Words, whose pairs with every other word are asked about; they need not stand in the counts.
            tables: W and C.
            along: The direction's parts in W and C.

        Returns:
            Shape `(r, V)`, not divided by the number of pairs.
        """
        (words, contexts), (along_words, along_contexts) = tables, along
        own = words[rows]
        change = torch.cat([along_words[rows], own], 1) @ torch.cat([contexts, along_contexts], 1).T
        slope = (own @ contexts.T).sigmoid_()
        noise = self.negatives * ((slope * change) @ self._q)
        return change.mul_(slope.sub_(1)).add_(noise[:, None])

    @cached_property
    def _q(self) -> Float[Tensor, " V"]:
        return self.noise.to(self.dtype)

    @cached_property
    def _rows(self) -> tuple[Rows, ...]:
        found, size = [], self.counts.size
        of_word = self.counts.of_word
        active = np.flatnonzero(of_word > 0)
        for words in np.array_split(active, max(1, -(-len(active) * size // NUMBERS_AT_ONCE))):
            if not len(words):
                continue
            lengths = self.counts.starts[words + 1] - self.counts.starts[words]
            entries = np.repeat(self.counts.starts[words] - np.cumsum(lengths) + lengths, lengths)
            entries += np.arange(len(entries))
            columns, values = self.counts.columns[entries], self.counts.values[entries]
            local = np.repeat(np.arange(len(words)), lengths)
            noise = self.negatives * of_word[words]
            relative = values / (noise[local] * self.noise.numpy()[columns])
            tensors = (torch.as_tensor(array).to(self.dtype) for array in (noise, values, relative))
            expected, counts, shares = tensors
            places = torch.as_tensor(local * size + columns)
            found.append(Rows(torch.as_tensor(words), expected, places, counts, shares))
        return tuple(found)

    def _value(self, rows: Rows, scores: Float[Tensor, "r V"]) -> float:
        curve = softplus(scores)
        observed = curve.view(-1)[rows.places] - scores.view(-1)[rows.places]
        return float(rows.noise @ (curve @ self._q)) + float(rows.counts @ observed)

    def _penalty(self, words: Tensor, contexts: Tensor) -> float:
        return self.l2 / 2 * float(words.square().sum() + contexts.square().sum())

    def _unpacked(self, packed: Float[Tensor, "V u"], upper: Int[Tensor, "2 u"]) -> Float[Tensor, "V d d"]:
        d = int(upper[0, -1]) + 1
        full = packed.new_empty(len(packed), d, d)
        full[:, upper[0], upper[1]] = packed
        full[:, upper[1], upper[0]] = packed
        full /= self.total
        full.diagonal(dim1=1, dim2=2).add_(self.l2)
        return full


def representatives(size: int) -> tuple[Int[Tensor, " c"], Int[Tensor, " c"]]:
    """The words over which a block sums, and how many words each stands for; all of them in small vocabularies.

    Args:
        size: V, by falling count.

    Returns:
        Rows, and numbers that sum to V.
    """
    if size <= FREQUENT + RARE:
        return torch.arange(size), torch.ones(size, dtype=torch.long)
    starts = torch.linspace(FREQUENT, size, RARE + 1).long()
    chosen = torch.cat([torch.arange(FREQUENT), (starts[:-1] + starts[1:]) // 2])
    return chosen, torch.cat([torch.ones(FREQUENT, dtype=torch.long), starts.diff()])


def _subtract_observed(share: Float[Tensor, "r V"], rows: Rows) -> None:
    """From the noise part of the first derivative to the whole, in units of the expected noise count of each pair."""
    flat = share.view(-1)
    seen = flat[rows.places]
    flat[rows.places] = seen + rows.relative * (seen - 1)
