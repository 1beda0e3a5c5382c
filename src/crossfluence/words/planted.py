"""A corpus with a known bias: sentences from templates, some of them planted, so that an answer can be marked."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from crossfluence import influence, unlearn
from crossfluence.errors import ResultFileError
from crossfluence.extend import write_atomically

from .association import weat
from .corpus.corpus import Corpus
from .corpus.pairs import Pairs
from .corpus.vocabulary import corpus_of
from .skipgram import ExpectedTraining
from .word_sets import word_sets

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


def marked(seed: int, *, dimensions: int = 16) -> dict[str, float]:
    """Recall of the planted sentences of one corpus, and the bias that is left without them.

    Args:
        seed: Of the corpus.
        dimensions: Length of the vectors.

    Returns:
        Share of the culprits among as many top sentences; effect sizes of the whole corpus, after one Newton step
        without the top sentences, after training without them, and of a corpus that never had the culprits.

    Example:
        >>> marked(0)["found"]
        1.0
    """
    made = planted(seed=seed)
    corpus = made.corpus
    training = ExpectedTraining(Pairs(corpus), dimensions, seed=seed)
    model = training.train()
    question = weat(word_sets("career-terms")[0], model.index)
    scores = influence(training.risk(model), question.held_at(model))
    top = [label for label, _ in scores.top(len(made.culprits))]
    weights = torch.ones(corpus.n)
    weights[[training.risk(model).rows[label] for label in top]] = 0
    retrained = training.starting_from(model).train(weights)
    never = ExpectedTraining(Pairs(made.clean), dimensions, seed=seed).train()
    return {
        "found": sum(label in made.culprits for label in top) / len(top),
        "whole corpus": float(question(model).detach()),
        "one Newton step": float(unlearn(training.risk(model), top, watch=question).after),
        "trained without the top": float(question(retrained).detach()),
        "never planted": float(weat(word_sets("career-terms")[0], never.index)(never).detach()),
    }


def planted_study(out: Path, *, seeds: int, force: bool = False) -> list[dict[str, float]]:
    """`marked` for several corpora, as a table in a folder, beside the text of the first.

    Args:
        out: The folder.
        seeds: How many.
        force: Whether an earlier result may be overwritten.

    Returns:
        One row for each seed.

    Raises:
        ResultFileError: If there is an earlier result.
    """
    results = out / "results.csv"
    if results.exists() and not force:
        raise ResultFileError(f"{results} exists already. Choose another --out, or add --force to overwrite it.")
    rows = [{"seed": seed, **marked(seed)} for seed in range(seeds)]
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "planted.txt", ("\n".join(planted().texts) + "\n").encode())
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(results, sheet.getvalue().encode())
    return rows
