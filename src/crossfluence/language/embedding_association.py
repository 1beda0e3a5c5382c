"""The sentence encoder association test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from crossfluence import Estimate

from .contrastive import Pooling, embeddings
from .items import SentenceSets
from .questions import LEVEL, RESAMPLES, encoded

AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Association:
    """The effect size of a sentence encoder association test, as an objective.

    Attributes:
        name: Of the test.
        batches: Its texts as tokens, in order X, Y, A, B.
        sizes: How many texts each list has.
        pooling: Of hidden states.
    """

    name: str
    batches: tuple[dict[str, Tensor], ...]
    sizes: tuple[int, int, int, int]
    pooling: Pooling

    def __call__(self, model: nn.Module) -> Tensor:
        """The effect size, in standard deviations."""
        x, y = self.associations(model)
        return effect_size(x, y)

    def associations(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Difference of each text's mean cosines with A and with B.

        Args:
            model: An encoder.

        Returns:
            Shapes `(X,)` and `(Y,)`.
        """
        vectors = torch.cat([embeddings(model, batch, self.pooling) for batch in self.batches])
        x, y, a, b = nn.functional.normalize(vectors, dim=1).split(list(self.sizes))
        return ((side @ a.T).mean(1) - (side @ b.T).mean(1) for side in (x, y))  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def interval(self, model: nn.Module, seed: int = 0) -> Estimate:
        """The effect size with its 95 % bootstrap interval over target texts.

        Args:
            model: In evaluation mode.
            seed: Of the resampling.

        Returns:
            A number with `.low` and `.high`.
        """
        x, y = (side.double().cpu() for side in self.associations(model))
        generator = torch.Generator().manual_seed(seed)

        def drawn(side: Tensor) -> Tensor:
            return side[torch.randint(len(side), (RESAMPLES, len(side)), generator=generator)]

        found = effect_size(drawn(x), drawn(y)).nan_to_num(0.0)
        low, high = found.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=found.dtype)).tolist()
        return Estimate(float(effect_size(x, y)), low, high)

    @torch.no_grad()
    def p_value(self, model: nn.Module, samples: int = 10_000, seed: int = 0) -> float:
        """The share of random divisions of the target texts whose statistic is at least as large.

        Args:
            model: In evaluation mode.
            samples: Divisions drawn.
            seed: Of the draw.

        Returns:
            One-sided, the actual division counted.
        """
        x, y = (side.double().cpu() for side in self.associations(model))
        pool, generator = torch.cat([x, y]), torch.Generator().manual_seed(seed)
        order = torch.rand(samples, len(pool), generator=generator).argsort(1)[:, : len(x)]
        sums = 2 * pool[order].sum(1) - pool.sum()  # sum over X less sum over Y
        return (1 + int((sums >= x.sum() - y.sum() - 1e-12).sum())) / (1 + samples)


def effect_size(x: Shaped[Tensor, "... a"], y: Shaped[Tensor, "... b"]) -> Shaped[Tensor, "..."]:
    """The difference of two means in standard deviations of both together, with n - 1 in the denominator.

    Args:
        x: Associations of X.
        y: Associations of Y.

    Returns:
        One number for each leading place.

    Example:
        >>> round(float(effect_size(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0]))), 4)
        1.6432
    """
    return (x.mean(-1) - y.mean(-1)) / torch.cat([x, y], -1).std(-1)


def association(test: SentenceSets, *, tokenizer: Any, pooling: Pooling = "mean") -> Association:
    """Association of X with A and of Y with B in an encoder: the effect size of the sentence encoder test (SEAT).

    Args:
        test: What `seat(path)` reads.
        tokenizer: Of the model.
        pooling: "first" is what the test's authors take of BERT, "last" of GPT.

    Returns:
        An objective, with `.interval(model)` and `.p_value(model)`.

    References:
        May et al., "On measuring social biases in sentence encoders", NAACL 2019.
    """
    texts = [*test.X, *test.Y, *test.A, *test.B]
    batches = tuple(encoded(part, tokenizer) for part in _parts(texts))
    return Association(test.name, batches, (len(test.X), len(test.Y), len(test.A), len(test.B)), pooling)


def _parts(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
