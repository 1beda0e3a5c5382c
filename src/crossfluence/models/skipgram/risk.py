"""The risk of skip-gram: its samples are sentences, its derivatives come from pair counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from ..._abstract_risk import AbstractRisk, signed, training_modes
from ..._contents import content_hash
from ..._errors import CorpusError
from ..._functional import undisturbed
from ..._params import Layout, fingerprint, trained_parameters
from ..._scores import numbered
from ..._types import Batch, Id, Params
from ...corpus.pairs import PairCounts, Pairs, neighbours, sentence_numbers
from ...curvature.base import AbstractCurvature, Relative
from ...curvature.field import FieldJacobian
from ...curvature.gauss_newton import GaussNewton
from ...curvature.hessian import Hessian
from ...solvers.base import AbstractSolver
from ...solvers.cg import CG
from .blocks import WordBlocks
from .loss import ExpectedLoss
from .module import SkipGram
from .rotations import Rotations

RTOL = 1e-2  # less changes predictions little and follows ever flatter directions; see docs/words.md
PAIRS_AT_ONCE = 100_000  # of which both vectors and both directions are held


@dataclass(frozen=True, eq=False)
class SkipGramRisk(AbstractRisk):
    r"""What skip-gram minimised, and where it ended; offers what `Risk` offers, so that every verb works on it.

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

    Example:
        >>> from crossfluence.corpus.vocabulary import corpus_of
        >>> corpus = corpus_of(["he works", "she works", "he runs"])
        >>> risk = SkipGramRisk(SkipGram.initial(corpus.words, 2), Pairs(corpus), l2=1e-2)
        >>> risk.n, risk.p
        (3, 16)
    """

    model: SkipGram  # pyright: ignore[reportIncompatibleVariableOverride]
    pairs: Pairs
    l2: float = 0.0

    def __post_init__(self) -> None:
        corpus = self.pairs.corpus
        _refuse_other_words(self.model.words, corpus.words)
        theta = trained_parameters(self.model, "*_vectors")
        made = {
            "theta": theta, "layout": Layout.of(theta), "rows": numbered(corpus.ids),
            "weights": torch.ones(corpus.n, dtype=self.model.word_vectors.dtype),
            "fingerprint": fingerprint(self.model), "modes": training_modes(self.model),
        }  # fmt: skip
        for name, value in made.items():
            object.__setattr__(self, name, value)

    theta: Params = field(init=False, repr=False)
    layout: Layout = field(init=False, repr=False)
    rows: dict[Id, int] = field(init=False, repr=False)
    weights: Tensor = field(init=False, repr=False)
    fingerprint: str = field(init=False, repr=False)
    modes: tuple[bool, ...] = field(init=False, repr=False)

    @property
    def symmetric(self) -> bool:
        """The training field is a gradient."""
        return True

    @cached_property
    def signature(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All that decides the curvature: content hashes of model, corpus, sampling and weights, and l2."""
        sampling, weights = content_hash(self.pairs.sampling), content_hash(self.weights.double().numpy())
        corpus = content_hash(self.pairs.corpus.digest)
        return signed(model=self.fingerprint, corpus=corpus, sampling=sampling, l2=float(self.l2), weights=weights)

    @property
    def products(self) -> Mapping[type[AbstractCurvature], Callable[[Tensor], Tensor]]:
        """Products with the Hessian and the Gauss-Newton matrix, from the counts."""
        return {
            Hessian: lambda vectors: self._product(vectors, full=True),
            FieldJacobian: lambda vectors: self._product(vectors, full=True),
            GaussNewton: lambda vectors: self._product(vectors, full=False),
        }

    def own_solver(self, damping: float | Relative) -> tuple[AbstractSolver, str]:
        """Conjugate gradients on the true Hessian, each word's own block as preconditioner.

        Args:
            damping: Passed on.

        Returns:
            A solver, and the reason as a clause.
        """
        solver = CG(damping, rtol=RTOL, preconditioner=WordBlocks(damping), truncate=True)
        return solver, "skip-gram has a Hessian product from its counts, and a block for each word"

    @cached_property
    def expected(self) -> ExpectedLoss:
        """The loss at these sample weights."""
        return self._loss_of(self.pairs.weighted(self.weights.double().numpy()))

    def _loss_of(self, counts: PairCounts) -> ExpectedLoss:
        return ExpectedLoss.of(self.pairs, self.l2, self.model.word_vectors.dtype, counts)

    def field_at(self, theta: Params) -> Shaped[Tensor, " p"]:
        """The gradient of F at any parameters."""
        return _flat(self.expected.value_and_gradient(*_tables(theta), value=False)[1:])

    def value_at(self, theta: Params) -> float:
        """The risk F at any parameters."""
        return self.expected.value(*_tables(theta))

    def word_blocks(self) -> tuple[Float[Tensor, "V d d"], Float[Tensor, "V d d"]]:
        """Second derivatives by each vector alone, word table and context table."""
        return self.expected.blocks(*_tables(self.theta))

    def unrotated(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Directions without the part that only rotates the embedding, along which nothing changes.

        Args:
            vectors: One in each row.

        Returns:
            Their orthogonal projections.
        """
        return torch.stack([_flat(self._rotations.taken_out(*self._along(vector))) for vector in vectors])

    def sensitivity(self, directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "n m"]:
        """How the gradient along each direction depends on each sentence's weight.

        Args:
            directions: One in each row.

        Returns:
            Shape `(n, m)`.
        """
        with undisturbed():
            return self._scores(self.pairs.corpus.tokens, self.pairs.corpus.offsets, directions)

    def sensitivity_of(self, candidates: Iterable[Batch], directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "c m"]:
        """As `sensitivity`, for sentences that were not trained on.

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

    def influences(self) -> Iterator[Shaped[Tensor, "1 p"]]:
        """The rows dg/dw of every sentence; for small corpora only: each is as large as the model.

        Yields:
            Shape `(1, p)`.
        """
        for row in range(self.n):
            weights = np.zeros(self.n)
            weights[row] = 1
            _, *parts = self._loss_of(self.pairs.weighted(weights)).value_and_gradient(
                *_tables(self.theta), value=False
            )
            flat = torch.cat([part.flatten() for part in parts])
            yield (flat - self.l2 * self.layout.flatten(self.theta)).unsqueeze(0)

    def _product(self, vectors: Shaped[Tensor, "m p"], *, full: bool) -> Shaped[Tensor, "m p"]:
        tables, loss = _tables(self.theta), self.expected
        products = []
        for vector in vectors:
            along = self._rotations.taken_out(*self._along(vector))
            products.append(_flat(self._rotations.taken_out(*loss.curvature_product(*tables, *along, full=full))))
        return torch.stack(products)

    @cached_property
    def _rotations(self) -> Rotations:
        return Rotations.of(*_tables(self.theta))

    def _along(self, vector: Shaped[Tensor, " p"]) -> tuple[Tensor, Tensor]:
        return _tables(self.layout.unflatten(vector))

    def _scores(self, tokens: np.ndarray, offsets: np.ndarray, directions: Tensor) -> Shaped[Tensor, "n m"]:
        words, contexts = _tables(self.theta)
        along = [self._along(direction) for direction in directions]
        noise = torch.stack([self.expected.noise_along(words, contexts, *pair) for pair in along], dim=1)  # (V, m)
        found = words.new_zeros(len(offsets) - 1, len(directions))
        numbers, sampling = sentence_numbers(offsets), self.pairs.sampling
        with tqdm(
            total=len(tokens) * sampling.window, desc="scores", unit="pair", unit_scale=True, disable=None
        ) as bar:
            for sentence, *pair, weight in neighbours(tokens, numbers, self.pairs.keep, sampling.window):
                for part in range(0, len(sentence), PAIRS_AT_ONCE):
                    some = slice(part, part + PAIRS_AT_ONCE)
                    first, second = (torch.as_tensor(side[some].astype(np.int64)) for side in pair)
                    change = noise[first] + noise[second]
                    for a, b in ((first, second), (second, first)):
                        change -= _observed_along(words[a], contexts[b], [(x[a], y[b]) for x, y in along])
                    change *= torch.as_tensor(weight[some]).to(change)[:, None]
                    found.index_add_(0, torch.as_tensor(sentence[some].astype(np.int64)), change)
                bar.update(len(sentence))
        return found / self.pairs.all.total


def _observed_along(
    words: Float[Tensor, "b d"],
    contexts: Float[Tensor, "b d"],
    along: list[tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]],
) -> Float[Tensor, "b m"]:
    """Minus the derivative of each observed pair's loss along each direction."""
    missing = torch.sigmoid(-(words * contexts).sum(1))
    changes = [(x * contexts).sum(1) + (words * y).sum(1) for x, y in along]
    return missing[:, None] * torch.stack(changes, dim=1)


def _flat(tables: Iterable[Tensor]) -> Tensor:
    return torch.cat([table.flatten() for table in tables])


def _tables(theta: Params) -> tuple[Tensor, Tensor]:
    return theta["word_vectors"], theta["context_vectors"]


def _refuse_other_words(model: tuple[str, ...], corpus: tuple[str, ...]) -> None:
    if model == corpus:
        return
    ours, theirs = set(model), set(corpus)
    difference = sorted(ours ^ theirs)[:3]
    detail = f"{len(ours - theirs)} only in the model, {len(theirs - ours)} only in the corpus, such as {difference}"
    raise CorpusError(
        f"The model has {len(model)} words and the corpus {len(corpus)}"
        f"{': ' + detail if difference else ', in another order'}. Train on this corpus, or read the one the model "
        f"was trained on with the same tokenizer, min_count and max_words."
    )
