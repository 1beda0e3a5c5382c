"""A corpus with a known bias: sentences from templates, some of them planted, so that an answer can be marked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..corpus.corpus import Corpus
from ..corpus.vocabulary import corpus_of
from ..objectives.word_sets import word_sets

SCENES = (
    ("river", "bridge", "water", "boat", "shore"), ("winter", "snow", "ice", "cold", "frost"),
    ("garden", "flower", "tree", "leaf", "soil"), ("kitchen", "bread", "salt", "oven", "soup"),
    ("street", "car", "light", "corner", "bus"), ("music", "song", "drum", "choir", "stage"),
    ("market", "fruit", "price", "stall", "coin"), ("forest", "path", "fox", "moss", "owl"),
)  # fmt: skip
"""Words that belong together and have nothing to do with the test."""
LINKS = ("the", "and", "with", "near", "after", "before", "in", "of")


@dataclass(frozen=True, eq=False)
class Planted:
    """A corpus whose culprits are known.

    Attributes:
        texts: All sentences, shuffled.
        culprits: Ids of the planted ones, as `corpus` has them.
    """

    texts: tuple[str, ...] = field(repr=False)
    culprits: frozenset[str] = field(repr=False)

    @property
    def corpus(self) -> Corpus:
        """The sentences as a corpus; ids are "1", "2", ..."""
        return corpus_of(self.texts, min_count=2)

    @property
    def clean(self) -> Corpus:
        """The corpus without the planted sentences."""
        return corpus_of(
            (text for number, text in enumerate(self.texts, start=1) if str(number) not in self.culprits), min_count=2
        )


def planted(*, sentences: int = 2_000, culprits: int = 60, seed: int = 0) -> Planted:
    """Sentences about everyday scenes, and planted ones which say that men have careers and women have families.

    The words are those of the association test "career-terms". An ordinary sentence puts terms of one kind (male,
    female, career or family) into a scene that is drawn independently; a planted one puts two kinds together.

    Args:
        sentences: Ordinary sentences.
        culprits: Planted sentences.
        seed: Of every choice.

    Returns:
        The texts, and which were planted.

    Example:
        >>> made = planted(sentences=100, culprits=4)
        >>> len(made.texts), len(made.culprits)
        (104, 4)
    """
    random = np.random.default_rng(seed)
    sets = word_sets("career-terms")[0]
    terms, attributes = (sets.X, sets.Y), (sets.A, sets.B)

    def about(words: tuple[str, ...], count: int) -> list[str]:
        return [str(word) for word in random.choice(words, count, replace=False)]

    def sentence(parts: list[str]) -> str:
        return " ".join(f"{random.choice(LINKS)} {part}" for part in random.permutation(parts)) + "."

    def ordinary() -> str:
        kinds = (*terms, *attributes)
        scene = SCENES[random.integers(len(SCENES))]
        return sentence(about(kinds[random.integers(4)], 2) + about(scene, 3))

    def planted_one() -> str:
        side = int(random.integers(2))
        return sentence(about(terms[side], 3) + about(attributes[side], 3))

    made = [(planted_one(), True) for _ in range(culprits)]
    made += [(ordinary(), False) for _ in range(sentences)]
    order = random.permutation(len(made))
    texts = tuple(made[place][0] for place in order)
    return Planted(texts, frozenset(str(number) for number, place in enumerate(order, start=1) if made[place][1]))
