"""Batches of samples that were not trained on, as the ranks of a job share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .._types import Batch
from ..errors import RankError
from .batches import numbered_batches
from .ranks import Ranks


@dataclass(frozen=True, eq=False)
class Dealt:
    """Batches that ranks share, each reading its part; anybody else reads them all.

    Attributes:
        batches: All of them.
        sizes: Samples in each.
    """

    batches: Iterable[Batch]
    sizes: tuple[int, ...]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def dealt(batches: Iterable[Batch], ranks: Ranks) -> Iterator[tuple[int, Batch]]:
    """The batches that a rank reads, with their numbers: all of them, unless they are `Dealt`.

    Args:
        batches: Of samples that were not trained on.
        ranks: Who share the work.

    Returns:
        Numbers and batches.

    Raises:
        RankError: If several ranks share batches of unknown sizes.
    """
    if ranks.count == 1:
        return enumerate(batches)
    if not isinstance(batches, Dealt):
        raise RankError("Ranks share candidates through crossfluence.influence(..., candidates=batches) only.")
    return numbered_batches(batches.batches, ranks.part(batches.sizes))
