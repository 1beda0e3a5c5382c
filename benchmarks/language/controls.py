"""Texts chosen without a model: by keywords and by BM25."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence

WORD = re.compile(r"\w+")
K1, B = 1.2, 0.75  # of BM25


def bm25(query: str, texts: Sequence[str]) -> list[float]:
    """Robertson's BM25 of each text for a query.

    Args:
        query: Words.
        texts: Documents.

    Returns:
        One number for each text, higher for more alike.

    Example:
        >>> first, second = bm25("the nurse", ["a nurse said", "a farmer said"])
        >>> first > second
        True
    """
    rows = [collections.Counter(words(text)) for text in texts]
    mean = sum(row.total() for row in rows) / len(rows)
    count = collections.Counter(word for row in rows for word in row)
    weight = {word: math.log(1 + (len(rows) - seen + 0.5) / (seen + 0.5)) for word, seen in count.items()}
    asked = words(query)
    return [
        sum(
            weight.get(word, 0.0) * row[word] * (K1 + 1) / (row[word] + K1 * (1 - B + B * row.total() / mean))
            for word in asked
            if word in row
        )
        for row in rows
    ]


def words(text: str) -> list[str]:
    """Words of a text in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def strongest(values: Sequence[float], k: int) -> list[int]:
    """The places of the k largest numbers, largest first."""
    return sorted(range(len(values)), key=lambda row: -values[row])[:k]
