"""Training in expectation: all pairs and noise words at once, to a minimum; the same weights give the same model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from crossfluence.errors import CorpusError, NotConvergedWarning
from crossfluence.extend import content_hash, isolated, read_if_whole, write_tensors

from ..corpus.pairs import Pairs
from .blocks import cholesky, solve_blocks
from .checks import refuse_misfit, sentence_weights
from .descent import Minimum, minimise_lbfgs
from .loss import ExpectedLoss
from .module import SkipGram
from .risk import SkipGramRisk

DOUBLE_UP_TO = 10_000  # words whose tables are trained in float64
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # rounding of the loss ends the descent there
FRESH_BLOCKS = (3, 6, 9, 12, 18, 24, 32, 64, 128, 256)  # steps at which the blocks are made anew
CHECKPOINT_EVERY = 10  # steps
FORMAT = "crossfluence.training/2"
FIRST = None  # the form of the first files: their tables have the hash of the training for a name


@dataclass(frozen=True, eq=False)
class ExpectedTraining:
    r"""Skip-gram with negative sampling, in expectation over windows, thinning and noise words, to convergence.

    Call it with weights `(n,)` of the sentences to get a trained model: it is itself a training function for
    `leave_out` and `remove`.

    Attributes:
        pairs: The corpus, and how pairs are drawn from it.
        dimensions: Length d of the vectors.
        prior: Strength of the l2 term in pairs: `l2 = prior / number of pairs`. At 5, held-out loss on Wikipedia
            samples is lowest; less gives a little better word similarities and much flatter directions.
        seed: Of the initial vectors.
        dtype: Default: float64 up to 10,000 words, float32 above.
        tolerance: Training ends when its own estimate of what is left, as in `minimise_lbfgs`, is this small; default:
            1e-6 in float64, 1e-4 in float32.
        max_steps: At the latest, with a warning.
        start: A model to start from; default: small random vectors. Retraining from the trained model takes a tenth.

    Example:
        >>> from crossfluence.words.corpus.vocabulary import corpus_of
        >>> training = ExpectedTraining(Pairs(corpus_of(["he works", "she works", "he runs"])), dimensions=2, seed=0)
        >>> model = training.train()
        >>> model.word_vectors.shape
        torch.Size([4, 2])
    """

    pairs: Pairs
    dimensions: int = 100
    _: KW_ONLY
    prior: float = 5.0
    seed: int = 0
    dtype: torch.dtype | None = None
    tolerance: float | None = None
    max_steps: int = 1_000
    start: SkipGram | None = None

    def __post_init__(self) -> None:
        if self.dimensions < 1 or self.max_steps < 1 or not 0 < self.prior < float("inf"):
            raise ValueError(
                f"Got dimensions={self.dimensions}, max_steps={self.max_steps}, prior={self.prior}; needed at least 1, "
                f"at least 1, and more than zero: without an l2 term rare words have no minimum."
            )
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"Got tolerance={self.tolerance}; needed a number above zero, such as 1e-6.")
        if self.start is not None:
            refuse_misfit(self.start, self.pairs.corpus.words)
            if (length := self.start.word_vectors.shape[1]) != self.dimensions:
                raise CorpusError(
                    f"The start has vectors of length {length}; needed dimensions={self.dimensions}. Pass the same."
                )

    @property
    def n(self) -> int:
        """Number of sentences."""
        return self.pairs.corpus.n

    @property
    def l2(self) -> float:
        """Coefficient of half the squared norm of both tables, per mean loss of a pair."""
        return self.prior / self.pairs.all.total

    def __call__(self, weights: Tensor) -> SkipGram:
        """Trains with sentence weights; see `train`."""
        return self.train(weights)

    def train(self, weights: Tensor | None = None) -> SkipGram:
        """One model.

        Args:
            weights: Shape `(n,)`, one for each sentence; default: ones.

        Returns:
            Trained tables.
        """
        return self.fit(weights)[0]

    def fit(
        self,
        weights: Tensor | None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        tell: Callable[[int], object] | None = None,
    ) -> tuple[SkipGram, Minimum]:
        """One model, and how its training ended.

        Args:
            weights: Shape `(n,)`, one for each sentence; default: ones.
            checkpoint: A file that keeps the tables on the way; a training that was stopped goes on from it, one of
                something else begins anew. It is removed at the end.
            tell: Is called with the number of steps after every one; what it raises ends the training.

        Returns:
            Trained tables; value, remaining gradient and steps.

        Raises:
            DataError: If there is not one weight for each sentence, finite and not below zero.
        """
        with isolated():
            counts = None if weights is None else self.pairs.weighted(sentence_weights(weights, self.n))
            loss = ExpectedLoss.of(self.pairs, self.l2, self.precision, counts)
            kept = None if checkpoint is None else _Checkpoint(Path(checkpoint), content_hash(self._settings, weights))
            ended = self._minimised(loss, kept, tell)
        words, contexts = self._tables(ended.point)
        if ended.gradient_norm > 3 * self._tolerance:
            warnings.warn(
                f"Training stopped after {ended.steps} steps at {ended.gradient_norm:.1g}, asked for "
                f"{self._tolerance:g}. Raise max_steps or tolerance.",
                NotConvergedWarning,
                stacklevel=2,
            )
        return SkipGram(self.pairs.corpus.words, words.clone(), contexts.clone()), ended

    def risk(self, model: SkipGram) -> SkipGramRisk:
        """The risk that this training minimised, at a model that it ended at."""
        return SkipGramRisk(model, self.pairs, self.l2)

    def starting_from(self, model: SkipGram) -> ExpectedTraining:
        """The same training from another start, with the curvature of that start: for retraining with few changes.

        Args:
            model: A trained model of the same words and length.

        Returns:
            A training that takes a tenth of the time where the weights change little.
        """
        return replace(self, start=model, dtype=model.word_vectors.dtype)

    def _minimised(self, loss: ExpectedLoss, kept: _Checkpoint | None, tell: Callable[[int], object] | None) -> Minimum:
        def function(point: Tensor) -> tuple[float, Tensor]:
            value, *tables = loss.value_and_gradient(*self._tables(point))
            return value, torch.cat([table.flatten() for table in tables])

        def preconditioner(point: Tensor) -> Callable[[Tensor], Tensor]:
            known = self.start is not None and point is self._initial
            factors = self._start_factors if known else self._factors(loss, point)
            return lambda vector: solve_blocks(factors, vector.unsqueeze(0))[0]

        def on_step(step: int, point: Tensor) -> None:
            if kept:
                kept.write(step, point)
            if tell:
                tell(step)

        done, point = (kept.read() if kept else None) or (0, self._initial)
        ended = minimise_lbfgs(
            function, point, preconditioner, tolerance=self._tolerance, steps=range(done, self.max_steps),
            refresh=self._refresh, description="training", on_step=on_step if kept or tell else None,
        )  # fmt: skip
        if kept:
            kept.file.unlink(missing_ok=True)
        return ended

    def _refresh(self, step: int) -> bool:
        return step in (FRESH_BLOCKS if self.start is None else FRESH_BLOCKS[-3:])

    def _factors(self, loss: ExpectedLoss, point: Tensor) -> tuple[Float[Tensor, "V d d"], ...]:
        return tuple(cholesky(table) for table in loss.blocks(*self._tables(point)))

    @cached_property
    def _start_factors(self) -> tuple[Float[Tensor, "V d d"], ...]:
        """At the start, with all sentences; shared by all retrainings from it."""
        return self._factors(ExpectedLoss.of(self.pairs, self.l2, self.precision), self._initial)

    @cached_property
    def _initial(self) -> Float[Tensor, " p"]:
        start = self.start or SkipGram.initial(self.pairs.corpus.words, self.dimensions, seed=self.seed)
        tables = (start.word_vectors.detach(), start.context_vectors.detach())
        return torch.cat([table.to(self.precision).flatten() for table in tables])

    @property
    def precision(self) -> torch.dtype:
        """The type of the numbers that training computes with."""
        small = len(self.pairs.corpus.words) <= DOUBLE_UP_TO
        return self.dtype or (torch.float64 if small else torch.float32)

    @property
    def _tolerance(self) -> float:
        return self.tolerance if self.tolerance is not None else TOLERANCE.get(self.precision, 1e-4)

    @property
    def _settings(self) -> tuple[object, ...]:
        corpus, sampling = self.pairs.corpus.digest, self.pairs.sampling
        return corpus, sampling, self.dimensions, self.prior, self._initial, self._tolerance

    def _tables(self, point: Float[Tensor, " p"]) -> tuple[Float[Tensor, "V d"], Float[Tensor, "V d"]]:
        half = len(point) // 2
        size = len(self.pairs.corpus.words)
        return point[:half].view(size, -1), point[half:].view(size, -1)


@dataclass(frozen=True)
class _Checkpoint:
    """The tables on the way and the steps so far, marked with what is trained."""

    file: Path
    what: str

    def write(self, step: int, point: Tensor) -> None:
        if step and step % CHECKPOINT_EVERY == 0:
            write_tensors(self.file, FORMAT, {"point": point, "steps": torch.tensor(step)}, what=self.what)

    def read(self) -> tuple[int, Tensor] | None:
        found = read_if_whole(self.file, FORMAT, FIRST)
        if found is None or found.texts.get("what", self.what) != self.what:
            return None  # absent, damaged or of another training: begin anew
        steps, point = map(found.tensors.get, ("steps", self.what if found.form is FIRST else "point"))
        return None if steps is None or point is None else (int(steps), point)
