"""Preferences between two texts that differ in a few words: the measures of CrowS-Pairs, StereoSet and WinoBias."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from crossfluence.errors import ObjectiveError

from .items import Pair, Template
from .questions import Question
from .scoring import Text, log_probabilities, refuse_equal, refuse_no_items, whole


def pair_preference(pairs: Iterable[Pair | tuple[str, str]], *, tokenizer: Any) -> Question:
    """Preference for the first text of each pair: the mean log-odds, in nats.

    Causal models: of the whole texts. Masked models: the pseudo-log-likelihood of the words that both texts share, as
    CrowS-Pairs defines it. `hard_share` is the published score (0.5: no preference), `soft_share` its smooth kin.

    Args:
        pairs: Such as `crows_pairs(folder)` and `stereoset(folder)` read.
        tokenizer: Of the model.

    Returns:
        A question over the pairs.

    Raises:
        DataError: If there are none.
        ObjectiveError: If the two texts of a pair are equal, or share no word.

    References:
        Nangia et al., "CrowS-Pairs", EMNLP 2020; Nadeem, Bethke and Reddy, "StereoSet", ACL 2021.
    """
    given = [pair if isinstance(pair, Pair) else Pair(*pair) for pair in pairs]
    refuse_no_items(given, "pairs")
    both = [_shared(whole(pair.more, tokenizer), whole(pair.less, tokenizer), pair) for pair in given]
    return _difference(f"preference over {len(given)} pairs", both, [(pair.more, pair.less) for pair in given])


def pronoun_preference(templates: Iterable[Template | tuple[str, str, str] | str], *, tokenizer: Any) -> Question:
    """Preference for the first of two words in its place: the mean log-odds, in nats.

    Causal models: of the whole texts. Masked models: of the two words behind the mask.

    Args:
        templates: Such as `"The nurse said that {he/she} was late."`, or what `winobias(folder)` reads.
        tokenizer: Of the model.

    Returns:
        A question over the templates.

    Raises:
        DataError: If there are none.

    References:
        Zhao et al., "Gender bias in coreference resolution", NAACL 2018.
    """
    given = [Template.of(template) for template in templates]
    refuse_no_items(given, "templates")
    both = [(_in_place(each, each.first, tokenizer), _in_place(each, each.second, tokenizer)) for each in given]
    for template, (one, other) in zip(given, both, strict=True):
        refuse_equal(one, other, f"texts of {template.text!r}, with {template.first} and {template.second},")
    filled = [(each.filled(each.first)[0], each.filled(each.second)[0]) for each in given]
    return _difference(f"preference over {len(given)} templates", both, filled)


def _difference(name: str, both: list[tuple[Text, Text]], pairs: list[tuple[str, str]]) -> Question:
    texts = [text for pair in both for text in pair]

    def items(model: nn.Module) -> Tensor:
        values = log_probabilities(model, texts).reshape(-1, 2)
        return values[:, 0] - values[:, 1]

    return Question(name, items, len(both), tuple(pairs))


def _shared(one: Text, other: Text, pair: Pair) -> tuple[Text, Text]:
    """The two texts, a masked model being asked about the tokens that both have."""
    refuse_equal(one, other, f"texts of the pair {pair.more!r}")
    blocks = difflib.SequenceMatcher(None, one.ids, other.ids, autojunk=False).get_matching_blocks()
    kept = [
        {place for block in blocks for place in range(start(block), start(block) + block.size)}
        for start in (lambda block: block.a, lambda block: block.b)
    ]
    found = tuple(
        replace(text, hidden=tuple(asked and place in places for place, asked in enumerate(text.asked)))
        for text, places in zip((one, other), kept, strict=True)
    )
    if not any(found[0].hidden):
        raise ObjectiveError(
            f"The texts {pair.more!r} and {pair.less!r} share no word; needed pairs that differ in a few."
        )
    return found[0], found[1]


def _in_place(template: Template, words: tuple[str, ...], tokenizer: Any) -> Text:
    """The text with words in its places, which a masked model is asked about."""
    filled, places = template.filled(words)
    text = whole(filled, tokenizer)
    spans = tokenizer(filled, return_offsets_mapping=True)["offset_mapping"]
    added = len(text.ids) - len(spans)  # a token at the beginning
    inside = [any(start < stop and end > begin and end > start for begin, stop in places) for start, end in spans]
    return replace(text, hidden=(*[False] * added, *inside))
