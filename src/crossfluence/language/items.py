"""Texts in which a question of bias is asked, in pairs, in templates and in lists; read without a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from crossfluence.errors import DataError

SLOT = re.compile(r"\{([^{}/]+)/([^{}/]+)\}")


@dataclass(frozen=True)
class Pair:
    """Two texts that differ in a few words.

    Attributes:
        more: The one that agrees with the stereotype.
        less: The other.
        kind: What the stereotype is about, such as "gender".
    """

    more: str
    less: str
    kind: str = ""


@dataclass(frozen=True)
class Template:
    """A text with one place, or several, for words of either of two kinds.

    Attributes:
        text: With `{}` at each place.
        first: The words of one kind, such as `("he", "his")`; in WinoBias those that agree with the stereotype.
        second: Those of the other.
    """

    text: str
    first: tuple[str, ...]
    second: tuple[str, ...]

    def __post_init__(self) -> None:
        places = self.text.count("{}")
        if not places or {len(self.first), len(self.second)} != {places} or self.first == self.second:
            raise DataError(
                f"Got the template {self.text!r} with {self.first} and {self.second}; needed a {{}} in the text for "
                f"each of the words, and other words on both sides. Type 'The nurse said that {{he/she}} was late.'"
            )

    @classmethod
    def of(cls, text: Template | tuple[str, str, str] | str) -> Template:
        """A template, from three strings or from a text such as `"The nurse said that {he/she} was late."`."""
        if isinstance(text, Template):
            return text
        if not isinstance(text, str):
            return cls(text[0], (text[1],), (text[2],))
        found = SLOT.findall(text)
        if not found:
            raise DataError(f"Got {text!r}; needed a place for either of two words, such as {{he/she}}.")
        return cls(SLOT.sub("{}", text), *zip(*found, strict=True))

    def filled(self, words: tuple[str, ...]) -> tuple[str, list[tuple[int, int]]]:
        """The text with words in its places, and where each begins and ends."""
        parts, text, spans = self.text.split("{}"), "", []
        for part, word in zip(parts, (*words, ""), strict=True):
            text += part
            spans.append((len(text), len(text) + len(word)))
            text += word
        return text, spans[:-1]


@dataclass(frozen=True)
class SentenceSets:
    """Two lists of target texts and two of attribute texts: is X to A as Y is to B?

    Attributes:
        name: Of the test.
        X: Target texts.
        Y: The other target texts.
        A: Attribute texts.
        B: The other attribute texts.
        categories: What the lists stand for.
    """

    name: str
    X: tuple[str, ...]
    Y: tuple[str, ...]
    A: tuple[str, ...]
    B: tuple[str, ...]
    categories: tuple[str, str, str, str] = ("X", "Y", "A", "B")

    def __post_init__(self) -> None:
        short = [key for key in "XYAB" if len(getattr(self, key)) < 2]
        if short:
            raise DataError(
                f"The test {self.name} has fewer than two texts in {short}; needed at least two in each list."
            )
