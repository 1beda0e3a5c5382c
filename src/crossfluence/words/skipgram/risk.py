"""The risk of skip-gram: its samples are sentences, its derivatives come from pair counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from crossfluence.errors import CorpusError, ParameterError
from crossfluence.extend import (
    AbstractRisk,
    Batch,
    Id,
    Layout,
    Params,
    content_hash,
    fingerprint,
    isolated,
    numbered,
    signed,
    trained_parameters,
    training_modes,
)

from ..corpus.pairs import PairCounts, Pairs
from .checks import refuse_misfit
from .loss import Bend, ExpectedLoss
from .module import SkipGram
from .rotations import Rotations
from .sentences import sentence_changes

NUMBERS_HELD = 60_000_000  # of the pair matrix, shared by all products: vocabularies of up to 5,000 words


@dataclass(frozen=True, eq=False)
class SkipGramRisk(AbstractRisk):
    r"""The risk that skip-gram minimised, and where it ended; every verb works on it as on `Risk`.

    $$F(\theta, w) = \frac{1}{T}\sum_s w_s \sum_{(a,b) \in s}
    \Big[\zeta(-s_{ab}) + k\,\mathbb{E}_{c \sim q}\,\zeta(s_{ac})\Big] + \frac{\text{l2}}{2}\lVert\theta\rVert^2$$

    A sample is a sentence: the sum over its pairs, with noise words in expectation. Vocabulary, noise distribution and
    T stay those of the whole corpus when sentences are left out.

    Attributes:
        model: The trained tables; never changed.
        pairs: What they were trained on, with the same words.
        l2: Coefficient of half the squared norm of both tables, per mean loss of a pair.

    Raises:
        CorpusError: If the model's words are not those of the corpus.
        NonFiniteError: If a vector holds a NaN or an infinity.
        ParameterError: If one of the two tables is frozen.
        ParameterError: If l2 is not a number, or below zero.

    Example:
        >>> from crossfluence.words.corpus.vocabulary import corpus_of
        >>> corpus = corpus_of(["he works", "she works", "he runs"])
        >>> risk = SkipGramRisk(SkipGram.initial(corpus.words, 2), Pairs(corpus), l2=1e-2)
        >>> risk.n, risk.p
        (3, 16)
    """

    symmetry: ClassVar[str] = "rotations of the embedding"
    model: SkipGram  # pyright: ignore[reportIncompatibleVariableOverride]
    pairs: Pairs
    l2: float = 0.0  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        corpus = self.pairs.corpus
        refuse_misfit(self.model, corpus.words)
        if not isinstance(self.l2, (int, float)) or not 0 <= self.l2 < float("inf"):
            raise ParameterError(f"Got l2={self.l2}; needed a number, zero or more: both tables have one l2.")
        theta = trained_parameters(self.model, "*_vectors")
        if len(theta) < 2:
            raise ParameterError(
                f"Only {', '.join(theta)} of the model requires gradients; skip-gram trains word_vectors and "
                f"context_vectors together. Call model.requires_grad_(True)."
            )
        made = {
            "theta": theta, "layout": Layout.of(theta), "rows": numbered(corpus.ids),
            "weights": torch.ones(corpus.n, dtype=self.model.word_vectors.dtype),
            "fingerprint": fingerprint(self.model), "modes": training_modes(self.model),
        }  # fmt: skip
        for name, value in made.items():
            object.__setattr__(self, name, value)

    theta: Params = dataclasses.field(init=False, repr=False)
    layout: Layout = dataclasses.field(init=False, repr=False)
    rows: dict[Id, int] = dataclasses.field(init=False, repr=False)
    weights: Tensor = dataclasses.field(init=False, repr=False)
    fingerprint: str = dataclasses.field(init=False, repr=False)
    modes: tuple[bool, ...] = dataclasses.field(init=False, repr=False)

    @property
    def symmetric(self) -> bool:
        """The training field is a gradient."""
        return True

    @cached_property
    def signature(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All that decides the curvature: content hashes of model, corpus, sampling and weights, and l2."""
        sampling = content_hash(self.pairs.sampling, versions=False)
        weights = content_hash(self.weights.double().numpy(), versions=False)
        corpus = content_hash(self.pairs.corpus.digest, versions=False)
        return signed(model=self.fingerprint, corpus=corpus, sampling=sampling, l2=float(self.l2), weights=weights)

    def jacobian_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """H v for each row, from the counts."""
        return self._product(vectors, full=True)

    def gauss_newton_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """G v for each row, from the counts."""
        return self._product(vectors, full=False)

    @cached_property
    def expected(self) -> ExpectedLoss:
        """The loss at these sample weights."""
        return self._loss_of(self.pairs.weighted(self.weights.double().numpy()))

    def _loss_of(self, counts: PairCounts) -> ExpectedLoss:
        return ExpectedLoss.of(self.pairs, self.l2, self.model.word_vectors.dtype, counts)

    def field(self, theta: Params) -> Shaped[Tensor, " p"]:
        """The gradient of F at any parameters."""
        return _flat(self.expected.value_and_gradient(*_both(theta), value=False)[1:])

    def value(self, theta: Params) -> float:
        """The risk F at any parameters."""
        return self.expected.value(*_both(theta))

    def word_blocks(self) -> tuple[Float[Tensor, "V d d"], Float[Tensor, "V d d"]]:
        """Second derivatives by each vector alone, word table and context table."""
        return self.expected.blocks(*self._tables)

    def project(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Directions without the part that only rotates the embedding, along which the loss never changes.

        Args:
            vectors: One in each row.

        Returns:
            Their orthogonal projections.
        """
        return self.rotations.project_out(self._shaped(vectors)).flatten(1)

    def derivatives_along(self, directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "n m"]:
        """Derivatives by each sentence's weight of the gradient along each direction.

        Args:
            directions: One in each row.

        Returns:
            Shape `(n, m)`.
        """
        with isolated():
            return self._scores(self.pairs.corpus.tokens, self.pairs.corpus.offsets, directions)

    def derivatives_along_of(
        self, candidates: Iterable[Batch], directions: Shaped[Tensor, "m p"]
    ) -> Shaped[Tensor, "c m"]:
        """As `derivatives_along`, for sentences that were not trained on.

        Args:
            candidates: Batches of sentences as rows of words, `(b, length)`; shorter ones end in -1.
            directions: One in each row.

        Returns:
            Shape `(c, m)`.

        Raises:
            CorpusError: If a word is not one of the model's.
        """
        coded = [sentence[sentence >= 0].cpu().numpy() for batch in candidates for sentence in torch.as_tensor(batch)]
        offsets = np.concatenate([[0], np.cumsum([len(sentence) for sentence in coded])]).astype(np.int64)
        tokens = np.concatenate([*coded, np.zeros(0)]).astype(np.int32)
        if len(tokens) and tokens.max() >= len(self.model.words):
            raise CorpusError(
                f"A candidate has word {tokens.max()}; the model has words 0 to {len(self.model.words) - 1}."
            )
        return self._scores(tokens, offsets, directions)

    def sample_gradients(self) -> Iterator[Shaped[Tensor, "1 p"]]:
        """The rows dg/dw of every sentence; for small corpora only: each is as large as the model.

        Yields:
            Shape `(1, p)`.
        """
        for row in range(self.n):
            weights = np.zeros(self.n)
            weights[row] = 1
            _, *parts = self._loss_of(self.pairs.weighted(weights)).value_and_gradient(*self._tables, value=False)
            flat = torch.cat([part.flatten() for part in parts])
            yield (flat - self.l2 * self.layout.flatten(self.theta)).unsqueeze(0)

    def _product(self, vectors: Shaped[Tensor, "m p"], *, full: bool) -> Shaped[Tensor, "m p"]:
        with isolated():
            along = self.rotations.project_out(self._shaped(vectors))
            bends = self._held or self.expected.bends(*self._tables)
            products = self.expected.curvature_products(self._tables, along, bends, full=full)
            return self.rotations.project_out(products).flatten(1)

    @cached_property
    def _held(self) -> tuple[Bend, ...]:
        """Terms that all products share, if they are small."""
        small = 2 * len(self.model.words) ** 2 <= NUMBERS_HELD
        return tuple(self.expected.bends(*self._tables)) if small else ()

    @cached_property
    def rotations(self) -> Rotations:
        """The directions that only rotate the embedding."""
        return Rotations.of(self._tables)

    @cached_property
    def _tables(self) -> Float[Tensor, "2 V d"]:
        return torch.stack(_both(self.theta))

    def _shaped(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m 2 V d"]:
        return vectors.reshape(len(vectors), *self._tables.shape)

    def _scores(self, tokens: np.ndarray, offsets: np.ndarray, directions: Tensor) -> Shaped[Tensor, "n m"]:
        changes = sentence_changes(
            self.expected, self._tables, self._shaped(directions), tokens, offsets, self.pairs.keep,
            self.pairs.sampling.window,
        )  # fmt: skip
        return changes / self.pairs.all.total


def _flat(tables: Iterable[Tensor]) -> Tensor:
    return torch.cat([table.flatten() for table in tables])


def _both(theta: Params) -> tuple[Tensor, Tensor]:
    return theta["word_vectors"], theta["context_vectors"]
