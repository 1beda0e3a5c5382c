"""The word embedding association test: whom does a table of word vectors favour?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from crossfluence.errors import ObjectiveError, WordError
from crossfluence.extend import Objective

from .vectors import Table, read, refuse_same_rows, unit, where, word_vectors
from .word_sets import SETS, WordSets, row_of

AT_ONCE = 65_536  # partitions of the permutation test that are held together


@dataclass(frozen=True)
class PermutationTest:
    """The share of random divisions whose statistic is as large. Made by `WEAT.p_value`.

    Attributes:
        value: The one-sided p-value, in (0, 1].
        exact: Whether every partition was counted, or a sample of them.
        partitions: How many were counted.
        standard_error: Of `value`, from sampling; 0 if exact.
    """

    value: float
    exact: bool
    partitions: int
    standard_error: float


@dataclass(frozen=True, eq=False)
class WEAT:
    r"""The word embedding association test, an objective: its value is the effect size. Made by `weat`.

    Each target word has an association $s(w) = \mathrm{mean}_{a \in A}\cos(w, a) - \mathrm{mean}_{b \in B}\cos(w, b)$.
    Calling gives $(\mathrm{mean}_{x \in X} s(x) - \mathrm{mean}_{y \in Y} s(y)) / \mathrm{std}_{w \in X \cup Y} s(w)$,
    with the standard deviation that divides by the number of words, as the package wefe does: if X and Y have one size
    it lies in [-2, 2]. (The sentence test of May et al. divides by one less: smaller by a factor of about 1 - 1/2N.)

    Attributes:
        sets: The words that are used: those with a vector.
        rows: Their rows in the table, in the order of X, Y, A, B.
        missing: The words without a vector, by set: `{"X": (...), "Y": (...), "A": (...), "B": (...)}`.
        table: `model -> (V, d)`.
    """

    sets: WordSets
    rows: tuple[tuple[int, ...], ...]
    missing: Mapping[str, tuple[str, ...]]
    table: Table = field(repr=False)

    def __call__(self, model: nn.Module) -> Tensor:
        """The effect size, a scalar without unit; positive: X is nearer to A and Y nearer to B."""
        first, second = self._split(model)
        spread = torch.cat([first, second]).std(correction=0)
        if where((spread <= 8 * torch.finfo(spread.dtype).eps).reshape(1)):
            raise ObjectiveError(
                f"{self.sets.name}: all {len(first) + len(second)} target words have the same association with A and "
                f"B, so the effect size is 0 / 0. Ask for .statistic, or look at the table: are its rows all equal?"
            )
        return (first.mean() - second.mean()) / spread

    def statistic(self, model: nn.Module) -> Tensor:
        """The sum of the associations of X less that of Y, a scalar; an objective too. Unit: cosines."""
        first, second = self._split(model)
        return first.sum() - second.sum()

    def held_at(self, model: nn.Module) -> Objective:
        """The effect size with its spread held as it is at one model: for ranking what caused a strong bias.

        The effect size lies between about -2 and 2 and flattens towards both: where a test is near its end, a sentence
        that makes the bias still stronger no longer raises it, since the spread grows as well. This objective has the
        same value at the model and does not flatten.

        Args:
            model: Where the spread is taken.

        Returns:
            An objective; unit: standard deviations at the model.
        """
        with torch.no_grad():
            spread = torch.cat(self._split(model)).std(correction=0)

        def difference(other: nn.Module) -> Tensor:
            first, second = self._split(other)
            return (first.mean() - second.mean()) / spread

        return difference

    def associations(self, model: nn.Module) -> dict[str, float]:
        """The association of every target word with A rather than B, in cosines (-2 to 2)."""
        with torch.no_grad():
            return dict(zip(self.sets.X + self.sets.Y, torch.cat(self._split(model)).tolist(), strict=True))

    def p_value(
        self, model: nn.Module, *, samples: int = 10_000, seed: int = 0, exact_up_to: int = 200_000
    ) -> PermutationTest:
        """The one-sided permutation test: how often would words divided at random do as much?

        The share of the partitions of X and Y together into sets of the same sizes whose statistic is *at least* the
        observed one, which is counted too, so that the test keeps its level and p is never 0. (Caliskan et al. write
        *greater*: one partition less, where no two tie.) Sums and means order the partitions alike.

        Args:
            model: Not changed.
            samples: Random partitions, where there are too many to count; p is then (1 + hits) / (1 + samples).
            seed: Of those.
            exact_up_to: Count all partitions if there are at most this many; 8 and 8 words have 12,870.

        Returns:
            The p-value, whether it is exact, and its standard error.

        Raises:
            ValueError: If `samples` is less than 1.
        """
        if samples < 1:
            raise ValueError(f"samples={samples}; needed at least 1 random partition, better 10,000.")
        with torch.no_grad():
            first, second = (part.detach().cpu().double() for part in self._split(model))
        if len(first) > len(second):  # the same order of partitions, from the smaller set
            first, second = -second, -first
        pool, size = torch.cat([first, second]), len(first)
        total = math.comb(len(pool), size)
        exact = total <= exact_up_to
        sums = _all_sums(pool, size) if exact else _random_sums(pool, size, samples, seed)
        least = first.sum() - 64 * torch.finfo(pool.dtype).eps * pool.abs().sum()  # ties up to rounding
        hits = sum(int((part >= least).sum()) for part in sums)
        if exact:
            return PermutationTest(hits / total, True, total, 0.0)
        p = (hits + 1) / (samples + 1)
        return PermutationTest(p, False, samples, math.sqrt(p * (1 - p) / samples))

    def _split(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        words = self.sets.X + self.sets.Y + self.sets.A + self.sets.B
        flat = [row for rows in self.rows for row in rows]  # one gather: its derivative is a whole table
        x, y, a, b = unit(read(self.table(model), flat), words).split([len(rows) for rows in self.rows])
        towards = a.mean(0) - b.mean(0)  # (d,): the mean of cosines is an inner product with the mean
        return x @ towards, y @ towards


def weat(
    sets: WordSets,
    index: Mapping[str, int],
    *,
    table: Table = word_vectors,
    lowercase: bool = True,
    least: float = 0.7,
) -> WEAT:
    """Association of X with A and of Y with B in word vectors: the effect size of Caliskan et al.

    Args:
        sets: The words, for example `word_sets("career")[0]`.
        index: Word to row of the table.
        table: `model -> (V, d)`, where the model keeps its vectors elsewhere.
        lowercase: Look a word up in lower case if it is not there as it is.
        least: The share of each set that must have a vector, and never fewer than two words.

    Returns:
        An objective; positive scores raised the bias. Unit: standard deviations. Also `.statistic`, an objective in
        cosines, `.associations(model)`, `.p_value(model)` and `.missing`.

    Raises:
        WordError: If too few words of a set have a vector, or two words have the same.
        TypeError: If `sets` is something else, such as the tuple that `word_sets` returns.

    Example:
        >>> model = nn.Module()
        >>> model.word_vectors = torch.tensor([[3.0, 1.0], [2.0, 1.0], [1.0, 3.0], [1.0, 2.0], [1.0, 0.0], [0.0, 1.0],
        ...                                    [4.0, 1.0], [1.0, 4.0]])
        >>> index = {"whale": 0, "bear": 1, "mouse": 2, "ant": 3, "big": 4, "small": 5, "huge": 6, "tiny": 7}
        >>> sets = WordSets("size", ("whale", "bear"), ("mouse", "ant"), ("big", "huge"), ("small", "tiny"))
        >>> round(weat(sets, index)(model).item(), 3)
        1.971

    References:
        Caliskan, Bryson and Narayanan, "Semantics derived automatically from language corpora contain human-like
        biases", Science 356(6334), 2017.
    """
    if not isinstance(sets, WordSets):
        raise TypeError(f"weat got {type(sets).__name__}; needed one WordSets, such as word_sets('career')[0].")
    wanted = {key: {word: row_of(word, index, lowercase=lowercase) for word in getattr(sets, key)} for key in SETS}
    found = {key: {w: row for w, row in words.items() if row is not None} for key, words in wanted.items()}
    missing = {key: tuple(w for w, row in words.items() if row is None) for key, words in wanted.items()}
    for key, category in zip(SETS, sets.categories, strict=True):
        have, asked = len(found[key]), len(wanted[key])
        if asked < 2:
            raise WordError(
                f"{sets.name}: {key} ({category}) holds 1 word, {next(iter(wanted[key]))!r}; needed at least 2 in each "
                f"of X, Y, A and B, for the spread between them. Add words to the list."
            )
        if have < 2 or have / asked < least:
            raise WordError(
                f"{sets.name}: {have} of the {asked} words of {key} ({category}) have a vector; needed 2 and a share "
                f"of least={least:g}. Not in the index: {', '.join(missing[key]) or 'none'}. "
                f"Train on more text or with a lower minimum count, choose other lists, or lower least."
                f"{_without_letters(missing[key])}"
            )
    for one, other in (("X", "Y"), ("A", "B")):
        refuse_same_rows([*found[one].items(), *found[other].items()], sets.name)
    used = replace(sets, **{key: tuple(words) for key, words in found.items()})
    return WEAT(used, tuple(tuple(words.values()) for words in found.values()), missing, table)


def _without_letters(words: Sequence[str]) -> str:
    """Advice about words such as emoji, which the usual tokeniser takes for no words."""
    if any(not any(map(str.isalpha, word)) for word in words):
        return " Words without letters, such as emoji, need tokenizer='whitespace' (--tokenizer whitespace)."
    return ""


def _all_sums(pool: Tensor, size: int) -> Iterator[Tensor]:
    """The sum over every subset of a size, in blocks."""
    members = itertools.chain.from_iterable(itertools.combinations(range(len(pool)), size))
    while len(block := np.fromiter(itertools.islice(members, AT_ONCE * size), dtype=np.int64)):
        yield pool[torch.from_numpy(block).view(-1, size)].sum(1)


def _random_sums(pool: Tensor, size: int, samples: int, seed: int) -> Iterator[Tensor]:
    """The sum over random subsets of a size, in blocks."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, AT_ONCE):
        keys = torch.rand(min(AT_ONCE, samples - start), len(pool), generator=generator)
        yield pool[keys.argsort(1)[:, :size]].sum(1)
