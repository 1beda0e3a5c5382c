"""The Trainer's scale of a loss: a mean over the tokens of a step, where the library adds them up for each sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor, nn

from crossfluence import OnOutputs
from crossfluence.extend import Batch

from .batches import IGNORED, columns_of, labels_of


@dataclass(frozen=True)
class TokenMean:
    """The mean over the tokens of a batch, as the Trainer weighs them, times the number of samples.

    Attributes:
        loss: Of each sample, the sum over its tokens.
        every: Whether the Trainer counts a first token, too, which has no loss, as it does for some causal models.
    """

    loss: OnOutputs
    every: bool = False

    def __call__(self, model: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The weighted sum over the batch; the number of tokens is that of all samples, whatever their weights."""
        losses = self.loss.losses(model, batch)
        return len(weights) * (weights.to(losses) @ losses) / self.counted(batch)[1]

    def counted(self, batch: Batch) -> tuple[int, Tensor]:
        """The samples of a batch, and its tokens that the Trainer counts."""
        assert self.loss.tokens is not None
        real = labels_of(columns_of(batch)) != IGNORED if self.every else self.loss.tokens.positions(batch) >= 0
        return len(real), real.sum()

    def by_sample(self, source: Iterable[Batch]) -> OnOutputs:
        """The same as a loss of each sample alone: each of its tokens over the mean number of a sample's tokens.

        It differs from the Trainer's as far as steps differ in their number of tokens.

        Args:
            source: All batches.

        Returns:
            A loss split at the logits, with tokens.
        """
        assert self.loss.tokens is not None
        samples, tokens = zip(*(self.counted(batch) for batch in source), strict=True)
        parts = TokenShares(self.loss, float(sum(tokens)) / sum(samples))
        return OnOutputs.by_token(self.loss.outputs, parts.losses, self.loss.tokens.positions)


@dataclass(frozen=True)
class TokenShares:
    """Losses of tokens, each divided by one number.

    Attributes:
        loss: With tokens.
        count: The number.
    """

    loss: OnOutputs
    count: float

    def losses(self, z: Tensor, batch: Batch) -> Shaped[Tensor, "b t"]:
        """One for each token."""
        assert self.loss.tokens is not None
        return self.loss.tokens.losses(z, batch) / self.count
