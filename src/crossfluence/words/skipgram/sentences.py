"""Derivatives of every sentence's loss along directions, from one number for each pair of words."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpus.pairs import sentence_numbers
from .loss import NUMBERS_AT_ONCE, ExpectedLoss


def sentence_changes(
    loss: ExpectedLoss,
    tables: Float[Tensor, "2 V d"],
    along: Float[Tensor, "m 2 V d"],
    tokens: Int[np.ndarray, " T"],
    offsets: Int[np.ndarray, " offsets"],
    keep: Float[np.ndarray, " V"],
    window: int,
) -> Float[Tensor, "n m"]:
    """The derivative of each sentence's summed loss along each direction.

    For some words at a time, the changes of their pairs with all others stand in a table; every place where one of
    these words stands looks up its neighbours there. Words that do not occur cost nothing.

    Args:
        loss: Of the corpus; only its noise words count here.
        tables: W and C.
        along: The directions' parts in W and C.
        tokens: Words of all sentences, in order.
        offsets: Where each sentence begins, and the end.
        keep: Probability with which each word is used.
        window: Words on each side.

    Returns:
        One row for each sentence, not divided by the number of pairs.
    """
    sentence, counts = sentence_numbers(offsets), np.bincount(tokens, minlength=len(keep))
    order, ends = np.argsort(tokens, kind="stable"), np.cumsum(counts)
    occurring = np.flatnonzero(counts)
    found = np.zeros((len(along), len(offsets) - 1))
    parts = max(1, -(-len(occurring) * len(keep) // NUMBERS_AT_ONCE))
    with tqdm(total=len(tokens), desc="scores", unit="word", unit_scale=True, disable=None, leave=False) as bar:
        for words in np.array_split(occurring, parts) if len(occurring) else ():
            places = order[ends[words[0]] - counts[words[0]] : ends[words[-1]]]
            rows = np.repeat(np.arange(len(words)), counts[words])
            near = _neighbours(places, tokens, sentence, keep, window)
            for column, direction in zip(found, along, strict=True):
                changes = loss.pair_changes(torch.as_tensor(words), tables, direction).cpu().numpy()
                total = np.zeros(len(places))
                for some, other, weight in near:
                    total[some] += weight * changes[rows[some], other]
                np.add.at(column, sentence[places], total)
            bar.update(len(places))
    return torch.as_tensor(found.T).to(tables)


def _neighbours(
    places: Int[np.ndarray, " b"],
    tokens: Int[np.ndarray, " T"],
    sentence: Int[np.ndarray, " T"],
    keep: Float[np.ndarray, " V"],
    window: int,
) -> list[tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"], Float[np.ndarray, " c"]]]:
    """At each distance: which of the places have a neighbour in their sentence, the neighbour's word, the weight."""
    found = []
    for distance in (*range(-window, 0), *range(1, window + 1)):
        beside = places + distance
        some = np.flatnonzero((beside >= 0) & (beside < len(tokens)))
        some = some[sentence[beside[some]] == sentence[places[some]]]
        other = tokens[beside[some]]
        share = 1 - (abs(distance) - 1) / window
        found.append((some, other, share * keep[tokens[places[some]]] * keep[other]))
    return found
