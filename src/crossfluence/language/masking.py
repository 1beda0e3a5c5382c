"""Masks of tokens that depend on a sample alone: the same in every pass, in every batch, and beside any padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from crossfluence.errors import DataError

from .batches import IGNORED, Columns, places, real_tokens, token_ids

MASKED, RANDOM = 0.8, 0.9  # shares of hidden tokens: behind the mask token, then up to here behind a random one
MULTIPLIERS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # of SplitMix64, as signed integers


@dataclass(frozen=True)
class Masking:
    """Hides a share of each sample's tokens.

    Attributes:
        token: The id of the mask token.
        special: Ids that are never hidden.
        words: Number of ids.
        share: Of the tokens that are hidden.
        seed: Of the choice.
    """

    token: int
    special: tuple[int, ...]
    words: int
    share: float
    seed: int

    def __call__(self, columns: Columns) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Token ids with some hidden, and labels that are -100 elsewhere.

        Args:
            columns: A batch.

        Returns:
            Two tensors `(b, t)`.
        """
        ids, real = token_ids(columns), real_tokens(columns, None)
        hidden, keys = self.hidden(ids, real), self._keys(ids, real)
        how = _unit(_mixed(keys + 1))
        drawn = _mixed(keys + 2).abs() % self.words
        shown = torch.where(how < MASKED, self.token, torch.where(how < RANDOM, drawn, ids))
        return torch.where(hidden, shown, ids), torch.where(hidden, ids, IGNORED)

    def hidden(self, ids: Int[Tensor, "b t"], real: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """Places of hidden tokens.

        Args:
            ids: Tokens.
            real: Which of them are no padding.

        Returns:
            True for the share of each sample's ordinary tokens, at least one, if there is one.
        """
        plain = real & ~torch.isin(ids, torch.tensor(self.special, device=ids.device, dtype=ids.dtype))
        wanted = (self.share * plain.sum(1)).round().clamp_min(1)
        order = torch.where(plain, _unit(self._keys(ids, real)), 2.0).argsort(dim=1, stable=True).argsort(1)
        return plain & (order < wanted.unsqueeze(1))

    def _keys(self, ids: Int[Tensor, "b t"], real: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        """Random integers that depend on the sample's tokens, the place and the seed."""
        place = places(real)
        terms = _mixed(ids + _mixed(place + _wrapped(self.seed * MULTIPLIERS[0])))
        sample = torch.where(real, terms, 0).sum(1, keepdim=True)
        return _mixed(sample + _mixed(place))


def masking_of(tokenizer: Any, share: float, seed: int) -> Masking:
    """The masking of tokens, by a tokenizer's special tokens.

    Args:
        tokenizer: With a mask token.
        share: Of the tokens.
        seed: Of the choice.

    Returns:
        A value that holds numbers alone, so that the tokenizer's state does not matter.

    Raises:
        DataError: If there is no mask token, or the share is none.
    """
    if not 0 < share <= 1:
        raise DataError(f"Got share={share}; needed a share of the tokens such as 0.15.")
    if getattr(tokenizer, "mask_token_id", None) is None:
        raise DataError(
            f"The {type(tokenizer).__name__} has no mask token; needed the tokenizer of a masked model. For a causal "
            f"model type causal_loss()."
        )
    return Masking(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), len(tokenizer), share, seed)


def _mixed(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """SplitMix64: a permutation of the integers that scatters them."""
    x = x + MULTIPLIERS[0]
    for shift, multiplier in ((30, MULTIPLIERS[1]), (27, MULTIPLIERS[2])):
        x = (x ^ _shifted(x, shift)) * multiplier
    return x ^ _shifted(x, 31)


def _wrapped(number: int) -> int:
    """A number as a signed integer of 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


def _shifted(x: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """A shift to the right that fills with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _unit(keys: Int[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Numbers in [0, 1)."""
    return _shifted(keys, 11).double() / 2**53
