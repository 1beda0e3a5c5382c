"""Settings of an embedding and its check; they need no PyTorch, so that a time is foretold at once."""

from __future__ import annotations

from dataclasses import dataclass

from crossfluence.errors import CorpusError

from .corpus.pairs import Sampling


@dataclass(frozen=True)
class WordsSettings:
    """Everything that decides an embedding and its check.

    Attributes:
        dimensions: Length of the vectors.
        window: Words on each side.
        negatives: Noise words for each pair.
        subsample: Words more frequent than this share of the corpus are thinned out.
        power: Noise words are drawn in proportion to counts to this power.
        prior: Strength of the l2 term in pairs, see `ExpectedTraining`.
        remove: Share of the sentences that are removed together, or their number if at least 1.
        further: More such sizes, of groups that raise it most.
        least: Share of each list that the corpus must have.
        seed: Of the initial vectors and the random removal.
    """

    dimensions: int = 50
    window: int = 5
    negatives: int = 5
    subsample: float = 1e-3
    power: float = 0.75
    prior: float = 5.0
    remove: float = 0.005
    further: tuple[float, ...] = ()
    least: float = 0.6
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        """Settings by which pairs are drawn from the corpus."""
        return Sampling(self.window, self.negatives, self.subsample, self.power)

    def group(self, n: int) -> int:
        """Number of sentences, out of n, that are removed together.

        Args:
            n: Sentences of the corpus.

        Returns:
            At least one.

        Raises:
            CorpusError: If that is nothing, or more than half of the corpus.
        """
        return self._group(self.remove, n)

    def further_groups(self, n: int) -> tuple[int, ...]:
        """Number of sentences, out of n, in each further group; see `group`."""
        return tuple(self._group(size, n) for size in self.further)

    def _group(self, remove: float, n: int) -> int:
        count = round(remove if remove >= 1 else remove * n)
        if n < 2:
            raise CorpusError(
                f"The text is {n} sentence, so none can be removed. Put each sentence on a line of its own: without "
                f"capital letters not even --split sentences can cut it."
            )
        if not 1 <= count <= n // 2:
            raise CorpusError(
                f"Removing {remove:g} means {count} of {n} sentences; needed at least 1 and at most half of them. "
                f"Give a share such as 1%, or a number."
            )
        return count
