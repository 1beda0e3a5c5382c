"""Training by samples, as word2vec does it: random windows, thinning and noise words, stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from crossfluence.errors import NonFiniteError
from crossfluence.extend import isolated

from ..corpus.pairs import Pairs, sentence_numbers
from .checks import sentence_weights
from .module import SkipGram
from .risk import SkipGramRisk

TOKENS_AT_ONCE = 200_000  # whose pairs and noise words are held


@dataclass(frozen=True, eq=False)
class SampledTraining:
    """Skip-gram with negative sampling by stochastic gradient descent; the same seed and weights give the same model.

    Every random choice (order of sentences, thinning, windows, noise words) is drawn for the whole corpus before the
    weights are applied: two trainings with one seed differ only in the sentences that were left out. Windows lie on the
    text as it stands, thinned words included, as in the expected loss; word2vec closes the gaps first.

    Attributes:
        pairs: The corpus, and how pairs are drawn from it.
        dimensions: Length d of the vectors.
        epochs: Passes over the corpus.
        lr: Learning rate of each pair's loss; falls linearly to `lr_end`.
        lr_end: At the end.
        batch_size: Pairs in a step; they see the same tables.
        seed: Of everything random.
        dtype: Of the tables.

    Example:
        >>> from crossfluence.words.corpus.vocabulary import corpus_of
        >>> training = SampledTraining(Pairs(corpus_of(["he works", "she works", "he runs"])), dimensions=2, epochs=1)
        >>> training.train().word_vectors.shape
        torch.Size([4, 2])

    References:
        Mikolov, Sutskever, Chen, Corrado and Dean, "Distributed representations of words and phrases and their
        compositionality", NeurIPS 2013.
    """

    pairs: Pairs
    dimensions: int = 100
    _: KW_ONLY
    epochs: int = 5
    lr: float = 0.025
    lr_end: float = 1e-4
    batch_size: int = 1_000
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("dimensions", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Got {name}={getattr(self, name)}; needed at least 1.")
        if not self.lr >= self.lr_end >= 0:
            raise ValueError(f"Got lr={self.lr}, lr_end={self.lr_end}; needed a rate that falls, and none below zero.")

    @property
    def n(self) -> int:
        """Number of sentences."""
        return self.pairs.corpus.n

    def __call__(self, weights: Tensor) -> SkipGram:
        """Trains with sentence weights; see `train`."""
        return self.train(weights)

    def train(self, weights: Tensor | None = None) -> SkipGram:
        """One model.

        Args:
            weights: Shape `(n,)`, one for each sentence; default: ones.

        Returns:
            Trained tables.

        Raises:
            DataError: If there is not one weight for each sentence, finite and not below zero.
            NonFiniteError: If training diverged.
        """
        share = np.ones(self.n) if weights is None else sentence_weights(weights, self.n)
        start = SkipGram.initial(self.pairs.corpus.words, self.dimensions, seed=self.seed, dtype=self.dtype)
        words, contexts = start.word_vectors.data, torch.zeros_like(start.context_vectors.data)
        words *= self.dimensions**-0.5  # word2vec's: small words, contexts at zero
        seen, total = 0, self.epochs * len(self.pairs.corpus.tokens)
        with isolated(), tqdm(total=total, desc="training", unit="word", unit_scale=True, disable=None,
                                 leave=False) as bar:  # fmt: skip
            for done, sentence, *drawn in self._draws():
                rates = [self.lr + (self.lr_end - self.lr) * place / total for place in (seen, seen + done)]
                self._descend(words, contexts, drawn, torch.as_tensor(share[sentence]).to(words), rates)
                seen += done
                bar.update(done)
        if not (words.isfinite().all() and contexts.isfinite().all()):
            raise NonFiniteError(f"Training diverged: the vectors are not finite. Lower lr={self.lr} or batch_size.")
        return SkipGram(self.pairs.corpus.words, words, contexts)

    def risk(self, model: SkipGram, *, l2: float) -> SkipGramRisk:
        """The expected risk that this training follows with noise, at a model that it ended at.

        Args:
            model: Trained tables.
            l2: Training had none; the curvature needs some to be inverted. `prior / pairs.all.total` with a prior of
                5 is that of `ExpectedTraining`.

        Returns:
            A risk whose gradient does not vanish at the model: its report says how large it is.
        """
        return SkipGramRisk(model, self.pairs, l2)

    def _draws(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Words done, then the sentence, centre, context and noise words of the pairs, in training order."""
        corpus, sampling = self.pairs.corpus, self.pairs.sampling
        numbers, cumulated = sentence_numbers(corpus.offsets), np.cumsum(self.pairs.noise)
        for epoch in range(self.epochs):
            random = np.random.default_rng([self.seed, epoch])
            places = _in_order(corpus.offsets, random.permutation(self.n))
            tokens, sentence = corpus.tokens[places], numbers[places]
            reach = random.integers(1, sampling.window + 1, len(tokens))
            reach[random.random(len(tokens)) >= self.pairs.keep[tokens]] = 0  # thinned: takes its place, but no part
            for start in range(0, len(tokens), TOKENS_AT_ONCE):
                stop = min(start + TOKENS_AT_ONCE, len(tokens))
                centre, context = _pairs_between(sentence, reach, start, stop, sampling.window)
                noise = np.searchsorted(cumulated, random.random((len(centre), sampling.negatives)), side="right")
                noise = np.minimum(noise, len(cumulated) - 1)  # rounding of the last sum
                yield stop - start, sentence[centre], tokens[centre], tokens[context], noise

    def _descend(
        self,
        words: Float[Tensor, "V d"],
        contexts: Float[Tensor, "V d"],
        drawn: list[np.ndarray],
        weights: Float[Tensor, " b"],
        rates: list[float],
    ) -> None:
        """Steps over the pairs, the rate falling from the first to the second."""
        centres, observed, noise = (torch.as_tensor(numbers.astype(np.int64)) for numbers in drawn)
        for some in range(0, len(centres), self.batch_size):
            part = slice(some, some + self.batch_size)
            rate = rates[0] + (rates[1] - rates[0]) * some / len(centres)
            if bool(weights[part].any()):
                step(words, contexts, centres[part], observed[part], noise[part], weights[part], rate)


def step(
    words: Float[Tensor, "V d"],
    contexts: Float[Tensor, "V d"],
    centres: Int[Tensor, " b"],
    observed: Int[Tensor, " b"],
    noise: Int[Tensor, "b k"],
    weights: Float[Tensor, " b"],
    rate: float,
) -> None:
    """One step of gradient descent on the summed loss of a batch; touches only the rows that the batch names.

    Args:
        words: Word vectors, changed in place.
        contexts: Context vectors, changed in place.
        centres: Rows of words.
        observed: Rows of the words beside them.
        noise: Rows of words that were drawn as noise.
        weights: Of each pair.
        rate: Learning rate.
    """
    own = words[centres]
    others = torch.cat([observed[:, None], noise], dim=1)  # (b, 1 + k)
    beside = contexts[others]
    error = torch.bmm(beside, own[:, :, None])[:, :, 0].sigmoid_()  # (b, 1 + k): d loss / d score
    error[:, 0] -= 1
    error *= -rate * weights[:, None]
    change = (error[:, :, None] * own[:, None, :]).flatten(0, 1)
    words.index_add_(0, centres, torch.bmm(error[:, None, :], beside)[:, 0])
    contexts.index_add_(0, others.flatten(), change)


def _in_order(offsets: Int[np.ndarray, " offsets"], order: Int[np.ndarray, " n"]) -> Int[np.ndarray, " T"]:
    """Places of all tokens when the sentences come in another order."""
    lengths = np.diff(offsets)[order]
    ends = np.cumsum(lengths)
    return np.repeat(offsets[:-1][order] - ends + lengths, lengths) + np.arange(ends[-1])


def _pairs_between(
    sentence: Int[np.ndarray, " T"], reach: Int[np.ndarray, " T"], start: int, stop: int, window: int
) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Places of centres in `[start, stop)` and of the words within their reach, centre by centre; none of reach 0."""
    centres, contexts = [], []
    places = start + np.flatnonzero(reach[start:stop])
    for distance in (*range(-window, 0), *range(1, window + 1)):
        beside = places + distance
        fits = (beside >= 0) & (beside < len(sentence)) & (reach[places] >= abs(distance))
        fits[fits] &= (sentence[beside[fits]] == sentence[places[fits]]) & (reach[beside[fits]] > 0)
        centres.append(places[fits])
        contexts.append(beside[fits])
    centre, context = np.concatenate(centres), np.concatenate(contexts)
    order = np.argsort(centre, kind="stable")
    return centre[order], context[order]
