"""Contrastive training of sentence encoders, and the embeddings that it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from crossfluence import WeightedLoss
from crossfluence.errors import DataError, UnsupportedError
from crossfluence.extend import Batch

from .batches import Columns, call, columns_of, config_of, real_tokens

Pooling: TypeAlias = Literal["mean", "first", "last"]
"""Which hidden states of a text make its embedding."""

FIRST, SECOND = ("anchor", "query", "sentence_0"), ("positive", "answer", "sentence_1")


def in_batch_contrastive(temperature: float = 0.05, pooling: Pooling = "mean") -> WeightedLoss:
    r"""The loss of telling each text's partner from the partners of the other texts in the batch.

    $$-w_i\log\frac{\exp(\cos(a_i, b_i)/\tau)}{\exp(\cos(a_i, b_i)/\tau) + \sum_{j\ne i} w_j\exp(\cos(a_i, b_j)/\tau)}$$

    sentence-transformers' `MultipleNegativesRankingLoss`, whose scale is $1/\tau$ = 20. A sample of weight 0 is neither
    asked about nor a negative. Its own partner has no weight below the line: with one, a pair that is told apart would
    count in full until its weight is next to nothing. Batches must be those of training: the negatives are part of the
    loss.

    Args:
        temperature: $\tau$.
        pooling: Of a model of transformers; a SentenceTransformer has its own.

    Returns:
        A coupled loss, for batches with the columns of two texts: `anchor_input_ids`, `anchor_attention_mask`,
        `positive_input_ids`, ...; or for pairs of two mappings.

    Raises:
        DataError: If the temperature is not positive.

    Example:
        >>> in_batch_contrastive().fn.temperature
        0.05
    """
    if not temperature > 0:
        raise DataError(f"Got temperature={temperature}; needed a positive number such as 0.05.")
    return WeightedLoss(InBatch(temperature, pooling))


@dataclass(frozen=True)
class InBatch:
    """Cross-entropy of each text over the partners in its batch.

    Attributes:
        temperature: Of the cosines.
        pooling: Of hidden states.
    """

    temperature: float
    pooling: Pooling

    def __call__(self, model: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
        """The weighted sum over the batch."""
        one, other = (nn.functional.normalize(embeddings(model, side, self.pooling), dim=1) for side in _sides(batch))
        return weights @ _told_apart(one @ other.T / self.temperature, weights)


def _told_apart(similar: Shaped[Tensor, "b b"], weights: Shaped[Tensor, " b"]) -> Shaped[Tensor, " b"]:
    """Cross-entropies of rows with their diagonal, from differences with it: no 1 - p is taken, as p may round to 1."""
    weights, own = weights.to(similar), torch.eye(len(similar), dtype=torch.bool, device=similar.device)
    beyond = similar - similar.diagonal().unsqueeze(1)  # (b, b)
    most = (beyond + weights.abs().log()).masked_fill(own, 0).detach().amax(1, keepdim=True)  # at least 0
    others = (beyond - most).clamp_max(80).exp().masked_fill(own, 0)  # those above have no weight
    return ((-most[:, 0]).expm1() + others @ weights).log1p() + most[:, 0]


def embeddings(model: nn.Module, batch: Batch, pooling: Pooling = "mean") -> Shaped[Tensor, "b d"]:
    """One vector for each text.

    Args:
        model: A SentenceTransformer, or a model of transformers, whose last hidden states are pooled.
        batch: What the tokenizer returned.
        pooling: "mean" over the text's tokens, or the "first" or "last" of them.

    Returns:
        Shape `(b, d)`.

    Raises:
        DataError: If there is no such pooling.
        UnsupportedError: If the model has no hidden states.
    """
    columns = columns_of(batch)
    if config_of(model) is None or hasattr(model, "tokenize"):  # a SentenceTransformer is a chain over a dictionary
        found = model(dict(columns))
        if isinstance(found, dict) and "sentence_embedding" in found:
            return found["sentence_embedding"]
    hidden = _last_hidden(model, columns)
    if pooling == "mean":
        real = real_tokens(columns, None).unsqueeze(2).to(hidden)
        return (hidden * real).sum(1) / real.sum(1)
    if pooling in ("first", "last"):
        real = real_tokens(columns, None)
        place = real.int().argmax(1) if pooling == "first" else real.shape[1] - 1 - real.int().flip(1).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), place]
    raise DataError(f"Got pooling={pooling!r}; needed 'mean', 'first' or 'last'.")


def _last_hidden(model: nn.Module, columns: Columns) -> Shaped[Tensor, "b t d"]:
    output = call(model, columns, output_hidden_states=True)
    if (hidden := getattr(output, "last_hidden_state", None)) is not None:
        return hidden
    if states := getattr(output, "hidden_states", None):
        return states[-1]
    raise UnsupportedError(
        f"The {type(model).__name__} returns no hidden states; needed an encoder such as AutoModel, or a "
        f"SentenceTransformer."
    )


def _sides(batch: Any) -> tuple[Columns, Columns]:
    """The columns of the two texts."""
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return columns_of(batch[0]), columns_of(batch[1])
    columns = columns_of(batch)
    found = [_named(columns, names) for names in (FIRST, SECOND)]
    if not all(found):
        raise DataError(
            f"A batch has the columns {list(columns)}; needed those of two texts, anchor_input_ids and "
            f"positive_input_ids with their attention masks, or a pair of two mappings."
        )
    return found[0], found[1]


def _named(columns: Columns, names: tuple[str, ...]) -> Columns:
    for name in names:
        if part := {key.removeprefix(f"{name}_"): c for key, c in columns.items() if key.startswith(f"{name}_")}:
            return part
    return {}
