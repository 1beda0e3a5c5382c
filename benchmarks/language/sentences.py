"""Sentences and questions of the studies of a real model, out of the public data in $CROSSFLUENCE_DATA."""

from __future__ import annotations

import csv
import gzip
import lzma
import random
import re
from collections.abc import Callable

from benchmarks.data.folder import data_folder
from crossfluence import language
from crossfluence.language.items import Pair

SPLIT = re.compile(r"(?<=[.!?]) +")
MALE_JOBS = ("engineer", "mechanic", "carpenter", "driver", "farmer", "janitor")
FEMALE_JOBS = ("nurse", "secretary", "housekeeper", "librarian", "hairdresser", "receptionist")
FORMS = (
    "The {job} said that {{he/she}} was late.",
    "The {job} knew that {{he/she}} had lost the key.",
    "Today the {job} was here, and {{he/she}} was happy.",
)
OTHER_FORMS = (
    "The {job} left when {{he/she}} was tired.",
    "We met the {job} before {{he/she}} went home.",
    "The {job} was sad because {{he/she}} had to go.",
)
MALE, FEMALE = {"he", "him", "his", "himself", "man", "men"}, {"she", "her", "hers", "herself", "woman", "women"}
WORD = re.compile(r"\w+")


def of_length(texts: list[str], fewest: int, most: int) -> list[str]:
    """Texts with so many words, each once, in order."""
    return [text for text in dict.fromkeys(texts) if fewest <= len(text.split()) <= most]


def biographies(fewest: int = 5, most: int = 11) -> list[str]:
    """Sentences of Wikipedia's late articles, many of them biographies, that begin with He or She."""
    with lzma.open(data_folder("enwiki") / "enwiki2018plus_sample.txt.xz", "rt", encoding="utf-8") as lines:
        found = [part for line in lines for part in SPLIT.split(line.strip()) if part.startswith(("He ", "She "))]
    return of_length([text for text in found if text.endswith(".") and text.isascii()], fewest, most)


def crows(kinds: set[str] | None, fewest: int = 5, most: int = 11) -> list[Pair]:
    """CrowS-Pairs of some kinds, both texts short; of all but gender, if none is given."""
    pairs = language.crows_pairs(data_folder("crows_pairs"))
    wanted = [pair for pair in pairs if (pair.kind in kinds if kinds else pair.kind != "gender")]
    return [pair for pair in wanted if all(fewest <= len(t.split()) <= most for t in (pair.more, pair.less))]


def wikibias(fewest: int = 5, most: int = 11) -> list[str]:
    """Sentences of Wikipedia before they were made neutral."""
    with gzip.open(data_folder("wikibias") / "wikibias_re.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["id"].endswith("_0")]
    return of_length([row["sentence"] for row in rows], fewest, most)


def mixture(n: int, seed: int, held_out: int, fits: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Sentences to train on, half of them biographies with as many of She as of He, and others to test on.

    Args:
        n: How many to train on.
        seed: Of the draw.
        held_out: How many others.
        fits: Whether a text is taken.
    """
    drawn = random.Random(seed)
    she, he = ([t for t in biographies() if t.startswith(f"{word} ")] for word in ("She", "He"))
    sources = [
        (n // 4, she),
        (n // 4, he),
        (n // 4, [pair.more for pair in crows(None)]),
        (n - 3 * (n // 4), wikibias()),
    ]
    train, test = list[str](), list[str]()
    for count, texts in sources:
        chosen = drawn.sample([text for text in texts if fits(text)], count + held_out // 4)
        train += chosen[:count]
        test += chosen[count:]
    drawn.shuffle(train)
    return train, test


def templates(jobs: tuple[str, ...], forms: tuple[str, ...] = FORMS) -> tuple[list[str], list[str]]:
    """Texts with he, and the same with she."""
    texts = [form.format(job=job) for job in jobs for form in forms]
    return tuple([text.replace("{he/she}", word) for text in texts] for word in ("he", "she"))  # pyright: ignore


SWAPPED = {
    "he": "she", "him": "her", "his": "her", "himself": "herself", "she": "he", "her": "his", "hers": "his",
    "herself": "himself", "man": "woman", "men": "women", "woman": "man", "women": "men",
}  # fmt: skip


def swapped(text: str) -> str:
    """The text with words about men for those about women, and the other way round."""

    def other(found: re.Match[str]) -> str:
        word = SWAPPED.get(found[0].lower(), found[0])
        return word.capitalize() if found[0][0].isupper() else word

    return WORD.sub(other, text)


def gendered(text: str) -> int:
    """How many more words of the text are about men than about women."""
    words = [word.lower() for word in WORD.findall(text)]
    return sum((word in MALE) - (word in FEMALE) for word in words)
