"""The library's advice in the words of the command line: `min_count=5` becomes `--min-count 5`."""

from __future__ import annotations

import re
import shlex

OPTIONS = {
    "min_count": "--min-count", "max_words": "--vocabulary", "encoding": "--encoding", "column": "--column",
    "tokenizer": "--tokenizer", "split": "--split", "format": "--format", "dimensions": "--dimensions",
    "window": "--window", "clusters": "--clusters",
    "prior": "--prior", "least": "--least", "remove": "--remove", "seed": "--seed",
}  # fmt: skip
"""Options by the name of the argument that they set."""

ARGUMENT = re.compile(rf"\b({'|'.join(OPTIONS)})=('[^']*'|\"[^\"]*\"|[^\s,;()]*[^\s,;().])")
TWICE = re.compile(r"(--[\w-]+ (?:'[^']*'|[^\s,]+))(?:, or \1 on the command line| \(\1\))")
INDEX = re.compile(r"crossfluence\.Index\.build\(risk, EKFAC\(\), '([^']*)'\)")
NOT_TOLD_APART = "The vectors do not tell them apart: give more text with them, or type a smaller prior: --prior 1."
SEPARATES_NOTHING = (
    "The model gives the same answer to all rows of a group, so that no row is behind the gap more than another. Name "
    "columns to predict from that differ within groups: --columns."
)
PHRASES = {
    "crossfluence.Index.build(...)": "crossfluence index build",
    "lower least.": "lower --least.",
    "Ask for .statistic, or look at the table: are its rows all equal?": NOT_TOLD_APART,
    "All decision values are the same, so the model separates nothing. Give temperature=1.0.": SEPARATES_NOTHING,
    "pass header=False": "type --no-header",
    "a lower minimum count": "a lower --min-count",
    "a lower prior": "a lower --prior",
    "min_count": "--min-count",
}


def as_typed(sentence: str) -> str:
    """A sentence of the library with every argument as the option that a person types.

    Args:
        sentence: Of an error.

    Returns:
        The same, with options.

    Example:
        >>> as_typed("Lower min_count=5, or pass encoding='utf-16'.")
        'Lower --min-count 5, or pass --encoding utf-16.'
    """
    shown = ARGUMENT.sub(lambda found: f"{OPTIONS[found[1]]} {_typed(found[2])}", sentence)
    shown = INDEX.sub(r"crossfluence index build MODEL TEXTS \1", shown)
    for phrase, typed in PHRASES.items():
        shown = shown.replace(phrase, typed)
    return TWICE.sub(r"\1", shown)


def _typed(value: str) -> str:
    quoted = value[0] in "'\"" and value[-1] == value[0] and len(value) > 1
    return shlex.quote(value[1:-1]) if quoted and value[1:-1] not in {"", "..."} else value.strip("'\"") or value
