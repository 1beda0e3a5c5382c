"""Scores of single tokens: how the training field depends on a weight of each token's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import all_finite, bind, isolated
from .._data.dealt import dealt
from .._losses import OnOutputs, TokenLosses
from .._types import Batch, Id
from ..errors import NonFiniteError, UnsupportedError
from .base import AbstractRisk
from .risk import Risk

Unit: TypeAlias = Literal["sample", "token"]
"""What gets a score of its own."""


def token_derivatives(
    risk: AbstractRisk, directions: Shaped[Tensor, "m p"], candidates: Iterable[Batch] | None
) -> Shaped[Tensor, "tokens m"]:
    """As the risk's `derivatives_along`, by a weight of each token's own.

    Args:
        risk: The trained model.
        directions: Vectors in parameter space, one in each row.
        candidates: Batches that were not trained on, instead of the training data.

    Returns:
        One row for each token that counts, sample after sample; the rows of a sample add up to its own.

    Raises:
        UnsupportedError: If the loss has no tokens.
        NonFiniteError: If a batch gives a NaN.
    """
    tokens = tokens_of(risk)
    assert isinstance(risk, Risk)

    def rows() -> Iterator[tuple[int, Tensor]]:
        for index, batch in _batches(risk, candidates):
            losses = _listed(risk, tokens, batch)
            found = risk.first.derivatives(losses, risk.theta, risk.layout, directions)  # (m, tokens)
            if not all_finite(found):
                blamed = (
                    risk.nan_message(index, batch) if candidates is None else f"Candidate batch {index} gives a NaN."
                )
                raise NonFiniteError(blamed)
            yield index, found.T.to(risk.weights) / risk.n

    with isolated():
        return risk.in_order("scoring tokens", rows, len(directions))


def token_ids(risk: AbstractRisk, candidates: Iterable[Batch] | None = None) -> tuple[tuple[Id, int], ...]:
    """The id of each token: that of its sample, and its position there.

    Args:
        risk: The trained model.
        candidates: Batches that were not trained on, instead of the training data; their samples are 0, 1, ...

    Returns:
        Sample after sample.

    Raises:
        UnsupportedError: If two tokens of a sample have one position.
    """
    tokens = tokens_of(risk)
    assert isinstance(risk, Risk)

    def places() -> dict[int, list[list[int]]]:
        return {index: tokens.positions(batch).tolist() for index, batch in _batches(risk, candidates)}

    found = {index: own for each in risk.ranks.heard("counting tokens", places) for index, own in each.items()}
    rows = [row for index in sorted(found) for row in found[index]]
    samples = risk.labels if candidates is None else range(len(rows))
    ids = tuple((label, place) for label, row in zip(samples, rows, strict=True) for place in row if place >= 0)
    if len(set(ids)) < len(ids):
        twice = next(label for label in ids if ids.count(label) > 1)
        raise UnsupportedError(
            f"The positions of the loss hold {twice[1]} twice in sample {twice[0]!r}; needed another number for each "
            f"token of a sample, and -1 where there is none."
        )
    return ids


def tokens_of(risk: AbstractRisk) -> TokenLosses:
    """The token losses of a risk.

    Args:
        risk: The trained model.

    Returns:
        How to compute them.

    Raises:
        UnsupportedError: If the loss has none.
    """
    kind = risk.kind if isinstance(risk, Risk) else None
    if isinstance(kind, OnOutputs) and kind.tokens is not None:
        return kind.tokens
    has = "a structure of its own" if kind is None else f"a {type(kind).__name__} without tokens"
    raise UnsupportedError(
        f"unit='token' needs a loss that is a sum over tokens; this risk has {has}. Type unit='sample', or write "
        f"the loss as crossfluence.OnOutputs.by_token(outputs, losses, positions)."
    )


def _batches(risk: Risk, candidates: Iterable[Batch] | None) -> Iterator[tuple[int, Batch]]:
    """Those that this rank reads."""
    if candidates is not None:
        return dealt(candidates, risk.ranks)
    return ((index, batch) for index, batch, _ in risk.passes(risk.part))


def _listed(risk: Risk, tokens: TokenLosses, batch: Batch) -> Callable[..., Tensor]:
    kind = risk.kind
    assert isinstance(kind, OnOutputs)
    losses = bind(lambda model: tokens.listed(kind.outputs(model, batch), batch), risk.model)
    return lambda theta: losses(theta)
