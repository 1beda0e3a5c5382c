"""A text turned around by rule: negated, asked as a question, with words of opinion exchanged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from crossfluence.errors import DataError

OPPOSITES = (
    "good bad", "great terrible", "best worst", "better worse", "love hate", "loves hates", "loved hated",
    "interesting boring", "fascinating dull", "funny unfunny", "smart stupid", "beautiful ugly", "strong weak",
    "fresh stale", "original derivative", "brilliant awful", "wonderful horrible", "enjoyable painful", "rich poor",
    "deep shallow", "success failure", "succeeds fails", "delight disappointment", "delightful disappointing",
    "hilarious tedious", "charming annoying", "perfect flawed", "moving cold", "entertaining tiresome", "more less",
    "always never", "everything nothing", "easy hard", "right wrong", "happy sad", "true false", "yes no",
)  # fmt: skip
TURNED = {one: other for pair in OPPOSITES for one, other in (pair.split(), pair.split()[::-1])}
END = re.compile(r"[\s.!?]+$")


def negated(text: str) -> str:
    """The text denied by words before it.

    Args:
        text: A statement.

    Returns:
        Another statement.

    Example:
        >>> negated("the plot holds")
        'it is not true that the plot holds'
    """
    return f"it is not true that {text}"


def asked(text: str) -> str:
    """The text as a question.

    Args:
        text: A statement.

    Returns:
        Without its last full stop, with a question mark.

    Example:
        >>> asked("the plot holds .")
        'is it true that the plot holds ?'
    """
    return f"is it true that {END.sub('', text)} ?"


def flipped(text: str) -> str:
    """The text with words of opinion exchanged for their opposites, as far as a short list knows them.

    Args:
        text: A statement.

    Returns:
        Unchanged if no word is on the list.

    Example:
        >>> flipped("a good film")
        'a bad film'
    """
    return re.sub(r"\w+", lambda found: TURNED.get(found[0].lower(), found[0]), text)


REWRITES: dict[str, Callable[[str], str]] = {"negate": negated, "question": asked, "flip": flipped}
"""Rules by name."""


def rewritten(texts: Iterable[str], name: str) -> list[str]:
    """Texts after one rule.

    Args:
        texts: Statements.
        name: Of the rule.

    Returns:
        As many.

    Raises:
        DataError: If there is no such rule, or it changes none of the texts.

    Example:
        >>> rewritten(["a good film"], "flip")
        ['a bad film']
    """
    if name not in REWRITES:
        raise DataError(f"There is no rewriting {name!r}; there are {', '.join(REWRITES)}.")
    before = list(texts)
    after = [REWRITES[name](text) for text in before]
    if after == before:
        raise DataError(f"The rewriting {name!r} changes none of the {len(before)} queries. Leave it out.")
    return after
