"""Lists of words for association tests, and where words stand in a table of vectors."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossfluence.errors import WordError, WordSetError

SETS = ("X", "Y", "A", "B")
SEAT_KEYS = ("targ1", "targ2", "attr1", "attr2")  # the same four, as the files of the sentence test name them
BUILT_IN = Path(__file__).with_name("weat.json")
EXPLAINED = 5  # unknown words for which close matches are looked up: each costs a pass over the vocabulary


@dataclass(frozen=True)
class WordSets:
    """Two sets of target words and two of attribute words: is X to A as Y is to B?

    Attributes:
        name: What the test is called.
        X: Target words, at least one and none twice; another number than in `Y` is allowed.
        Y: The other target words, none of them in `X`.
        A: Attribute words.
        B: The other attribute words, none of them in `A`.
        categories: What `X`, `Y`, `A` and `B` stand for, in this order.

    Raises:
        WordSetError: If a set is empty, holds something that is not a word, or shares a word with its opposite.

    Example:
        >>> WordSets("size", ("whale", "bear"), ("mouse", "ant"), ("big", "huge"), ("small", "tiny")).categories
        ('X', 'Y', 'A', 'B')
    """

    name: str
    X: tuple[str, ...]
    Y: tuple[str, ...]
    A: tuple[str, ...]
    B: tuple[str, ...]
    categories: tuple[str, str, str, str] = SETS

    def __post_init__(self) -> None:
        for key in SETS:
            object.__setattr__(self, key, self._words(key))
        for first, second in (("X", "Y"), ("A", "B")):
            both = sorted(set(getattr(self, first)) & set(getattr(self, second)))
            if both:
                raise WordSetError(
                    f"{self.name}: {both} stand in both {first} and {second}, which are opposites. "
                    f"Take them out of one of the two."
                )

    @property
    def words(self) -> tuple[str, ...]:
        """All words of the four sets."""
        return (*self.X, *self.Y, *self.A, *self.B)

    def _words(self, key: str) -> tuple[str, ...]:
        words = getattr(self, key)
        if isinstance(words, str) or not isinstance(words, Iterable):
            raise WordSetError(f"{self.name}: {key} is {words!r}; needed a list of words, such as ['he', 'him'].")
        words = tuple(words)
        if wrong := [word for word in words if not isinstance(word, str) or not word.strip()]:
            raise WordSetError(f"{self.name}: {key} holds {wrong[:3]}; needed words, each a string that is not empty.")
        if not words:
            raise WordSetError(f"{self.name}: {key} is empty; needed at least one word, and two for a test.")
        if twice := [word for word, count in Counter(words).items() if count > 1]:
            raise WordSetError(f"{self.name}: {twice} stand twice in {key}; keep each word once.")
        return words


def word_sets(source: str | Path) -> tuple[WordSets, ...]:
    """Lists for association tests: built in, or from a JSON file of one's own.

    Built in, each as Caliskan et al. give it: `"career"` (their test 6: male and female first names, career and
    family), `"math"` (7) and `"science"` (8) against the arts, male and female terms, `"race"` (3: European and
    African American first names, pleasant and unpleasant). `"career-terms"` asks the question of `"career"` with
    the words of `"math"` (he, she, ...) instead of names: first names are rare in many texts. So does `"race-terms"`
    for `"race"`, with origins (after May et al.).

    A file holds one test or a list of tests, in either of two forms; `name` and `categories` may be left out:

        {"name": "size", "categories": ["Large", "Small", "Big", "Little"], "X": [...], "Y": [...], "A": [...], "B": [...]}
        {"targ1": {"category": "Large", "examples": [...]}, "targ2": ..., "attr1": ..., "attr2": ...}

    Args:
        source: The name of a built-in test or the path of a file.

    Returns:
        One `WordSets` for each test.

    Raises:
        WordSetError: If there is no such list or file, or the file does not hold such lists.

    Example:
        >>> word_sets("career")[0].X[:3]
        ('John', 'Paul', 'Mike')

    References:
        Caliskan, Bryson and Narayanan, "Semantics derived automatically from language corpora contain human-like
        biases", Science 356(6334), 2017. May et al., "On measuring social biases in sentence encoders", NAACL 2019
        (the second form).
    """  # noqa: E501  # the form of a file stands on one line
    built_in = {sets.name: sets for sets in _parsed(BUILT_IN)}
    if str(source) in built_in:
        return (built_in[str(source)],)
    path = Path(source)
    if not path.is_file():
        close = difflib.get_close_matches(str(source), built_in, n=1)
        raise WordSetError(
            f"No word lists {str(source)!r}: no file, and built in are {', '.join(built_in)}."
            + (f" Did you mean {close[0]!r}?" if close else "")
        )
    return _parsed(path)


def rows_of(words: Iterable[str], index: Mapping[str, int]) -> dict[str, int]:
    """The row of each word, looked up as it is and then in lower case.

    Args:
        words: All must be known.
        index: Word to row.

    Returns:
        Word to row, in the order of `words`.

    Raises:
        WordError: If a word is unknown, with close matches.

    Example:
        >>> rows_of(["Dooku", "sith"], {"dooku": 3, "sith": 1})
        {'Dooku': 3, 'sith': 1}
    """
    rows = {word: row_of(word, index) for word in words}
    if unknown := [word for word, row in rows.items() if row is None]:
        named = ", ".join(_with_close_matches(word, index) for word in unknown[:EXPLAINED])
        rest = f" and {len(unknown) - EXPLAINED} more" if len(unknown) > EXPLAINED else ""
        raise WordError(
            f"No vector for {named}{rest}; the index has {len(index)} words. "
            f"Choose words that are in it, or train with a lower minimum count."
        )
    return {word: row for word, row in rows.items() if row is not None}


def row_of(word: str, index: Mapping[str, int], *, lowercase: bool = True) -> int | None:
    """The row of a word as it is, else of its lower-case form if `lowercase`, else `None`."""
    row = index.get(word)
    return index.get(word.lower()) if row is None and lowercase else row


def _with_close_matches(word: str, index: Mapping[str, int]) -> str:
    close = difflib.get_close_matches(word.lower(), index, n=3, cutoff=0.7)
    return f"{word!r} (close: {', '.join(close)})" if close else repr(word)


def _parsed(path: Path) -> tuple[WordSets, ...]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise WordSetError(f"{path} is not a JSON file: {error}. Needed one test, or a list [...] of tests.") from error
    entries = content if isinstance(content, list) else [content]
    names = [path.stem] if len(entries) == 1 else [f"{path.stem} {position}" for position in range(len(entries))]
    tests = tuple(_test(entry, name) for entry, name in zip(entries, names, strict=True))
    if not tests:
        raise WordSetError(f"{path} holds an empty list; needed at least one test with the keys X, Y, A and B.")
    if twice := [name for name, count in Counter(sets.name for sets in tests).items() if count > 1]:
        raise WordSetError(f"{path}: more than one test is called {twice[0]!r}. Give each a name of its own.")
    return tests


def _test(entry: Any, name: str) -> WordSets:
    if not isinstance(entry, dict):
        raise WordSetError(f"{name}: a test is {type(entry).__name__}; needed an object with the keys X, Y, A and B.")
    name = str(entry.get("name", name))
    keys = SEAT_KEYS if set(SEAT_KEYS) & set(entry) else SETS
    if missing := [key for key in keys if key not in entry]:
        raise WordSetError(
            f"{name}: no {', '.join(missing)} among the keys {list(entry)}. Needed X, Y, A and B, each a list of words."
        )
    parts = [entry[key] if isinstance(entry[key], dict) else {"examples": entry[key]} for key in keys]
    if bare := [key for key, part in zip(keys, parts, strict=True) if "examples" not in part]:
        raise WordSetError(f"{name}: {bare[0]} has no key 'examples'; needed its list of words there.")
    named = entry.get("categories", [part.get("category", key) for part, key in zip(parts, SETS, strict=True)])
    if not isinstance(named, list) or len(named) != len(SETS):
        raise WordSetError(f"{name}: categories is {named!r}; needed four names, for X, Y, A and B.")
    x, y, a, b = (part["examples"] for part in parts)
    first, second, third, fourth = map(str, named)
    return WordSets(name, x, y, a, b, (first, second, third, fourth))
