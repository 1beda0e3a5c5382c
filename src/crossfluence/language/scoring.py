"""Texts as tokens, some of them asked about, and the log-probability that a model gives to those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from crossfluence.errors import DataError, ObjectiveError, UnsupportedError

from .batches import IGNORED, Columns, call, class_of, config_of, logits_of, token_ids
from .losses import Causal, refuse_ids

Kind: TypeAlias = Literal["causal", "masked", "seq2seq"]
AT_ONCE = 64  # texts in a batch of questions


@dataclass(frozen=True)
class Text:
    """One text as tokens.

    Attributes:
        ids: Token ids, special ones too.
        asked: Which tokens a causal model is asked about.
        hidden: Which tokens a masked model is asked about, one after the other.
        prompt: How many tokens at the beginning are given.
        mask: The id of the mask token, if there is one.
    """

    ids: tuple[int, ...]
    asked: tuple[bool, ...]
    hidden: tuple[bool, ...]
    prompt: int
    mask: int | None


def completed(prompt: Any, completion: Any, tokenizer: Any) -> Text:
    """A prompt and its completion, which is asked about.

    Args:
        prompt: A string, or token ids; may be empty.
        completion: A string, or token ids.
        tokenizer: Of the model; not needed for ids.

    Returns:
        Tokens of both together.

    Raises:
        ObjectiveError: If there is nothing to ask about, or strings come without a tokenizer.
    """
    if not isinstance(prompt, str) or not isinstance(completion, str):
        given, said = ([int(each) for each in part] for part in (prompt, completion))
        flags = (False,) * len(given) + (True,) * len(said)
        mask = None if tokenizer is None else getattr(tokenizer, "mask_token_id", None)
        return _beginning(Text(tuple(given + said), flags, flags, len(given), mask), tokenizer, completion)
    ids, spans = _tokens(prompt + completion, tokenizer)
    flags = tuple(end > len(prompt) and end > start for start, end in spans)
    return _beginning(Text(ids, flags, flags, flags.index(True) if any(flags) else 0, _mask_of(tokenizer)),
                      tokenizer, completion)  # fmt: skip


def whole(text: str, tokenizer: Any) -> Text:
    """A text all of which is asked about.

    Args:
        text: Not empty.
        tokenizer: Of the model.

    Returns:
        Its tokens.
    """
    return completed("", text, tokenizer)


def _beginning(text: Text, tokenizer: Any, completion: Any) -> Text:
    """With a token before the first one that is asked about, where the tokenizer has one: it needs something before."""
    if not any(text.asked):
        raise ObjectiveError(f"The completion {completion!r} has no tokens; needed at least one to ask about.")
    start = getattr(tokenizer, "bos_token_id", None)
    if not text.asked[0] or start is None or text.mask is not None:
        return text
    return replace(
        text, ids=(start, *text.ids), asked=(False, *text.asked), hidden=(False, *text.hidden), prompt=text.prompt + 1
    )


def _tokens(text: str, tokenizer: Any) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Token ids, and where in the text each begins and ends."""
    if tokenizer is None:
        raise ObjectiveError(
            "Got a question in words and no tokenizer. Type tokenizer=AutoTokenizer.from_pretrained(folder), or give "
            "token ids in place of strings."
        )
    try:
        found = tokenizer(text, return_offsets_mapping=True)
    except NotImplementedError:
        raise UnsupportedError(
            f"The {type(tokenizer).__name__} does not say where its tokens stand in the text; needed a fast tokenizer: "
            f"AutoTokenizer.from_pretrained(folder, use_fast=True)."
        ) from None
    return tuple(found["input_ids"]), [tuple(span) for span in found["offset_mapping"]]


def _mask_of(tokenizer: Any) -> int | None:
    return getattr(tokenizer, "mask_token_id", None)


def kind_of(model: nn.Module) -> Kind:
    """The kind of a model: causal, masked or sequence to sequence.

    Args:
        model: Of transformers, or of peft around one.

    Returns:
        One word.
    """
    name = class_of(model)
    if getattr(config_of(model), "is_encoder_decoder", False):
        return "seq2seq"
    return "masked" if "MaskedLM" in name or "ForPreTraining" in name else "causal"


def log_probabilities(model: nn.Module, texts: Sequence[Text]) -> Shaped[Tensor, " k"]:
    """The log-probability of the tokens asked about, summed over each text.

    Causal models: of each token after those before it. Masked models: of each behind the mask, the others in view
    (pseudo-log-likelihood, Salazar et al., ACL 2020). Encoder-decoders: of the completion, the prompt in the encoder.

    Args:
        model: Of transformers.
        texts: k of them.

    Returns:
        In nats.
    """
    kind = kind_of(model)
    return {"causal": _causal, "masked": _masked, "seq2seq": _decoded}[kind](model, texts)


def _causal(model: nn.Module, texts: Sequence[Text]) -> Shaped[Tensor, " k"]:
    return torch.cat([_of_causal(model, texts[start : start + AT_ONCE]) for start in range(0, len(texts), AT_ONCE)])


def _of_causal(model: nn.Module, texts: Sequence[Text]) -> Shaped[Tensor, " k"]:
    if not all(any(text.asked[1:]) for text in texts):
        raise ObjectiveError(
            "A causal model was asked for its first token alone, of which it says nothing, as its tokenizer has no "
            "token of beginnings; needed a prompt before the completion."
        )
    columns = _padded(model, [text.ids for text in texts])
    asked = _rows(model, [text.asked for text in texts], fill=0).bool()
    columns["labels"] = torch.where(asked, token_ids(columns), IGNORED)
    parts = Causal(mean=False, pad=None, seq2seq=False)
    return -parts.losses(parts.outputs(model, columns), columns).sum(1)


def _decoded(model: nn.Module, texts: Sequence[Text]) -> Shaped[Tensor, " k"]:
    if any(not text.prompt for text in texts):
        raise ObjectiveError("An encoder-decoder was asked about a text without a prompt; needed one for its encoder.")
    parts, found = Causal(mean=False, pad=None, seq2seq=True), []
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        columns = _padded(model, [text.ids[: text.prompt] for text in some])
        columns["labels"] = _rows(model, [text.ids[text.prompt :] for text in some], fill=IGNORED)
        found.append(-parts.losses(parts.outputs(model, columns), columns).sum(1))
    return torch.cat(found)


def _masked(model: nn.Module, texts: Sequence[Text]) -> Shaped[Tensor, " k"]:
    places = [(row, place) for row, text in enumerate(texts) for place, asked in enumerate(text.hidden) if asked]
    parts = [_behind(model, texts, places[start : start + AT_ONCE]) for start in range(0, len(places), AT_ONCE)]
    rows = torch.tensor([row for row, _ in places])
    values = torch.cat(parts)
    return values.new_zeros(len(texts)).index_add(0, rows.to(values.device), values)


def _behind(model: nn.Module, texts: Sequence[Text], places: Sequence[tuple[int, int]]) -> Shaped[Tensor, " j"]:
    """Log-probabilities of single tokens, each behind the mask."""
    if texts[0].mask is None:
        raise ObjectiveError(
            "A masked model was asked with a tokenizer that has no mask token. Type tokenizer= with the tokenizer of "
            "the model's own folder."
        )
    columns = _padded(model, [texts[row].ids for row, _ in places])
    ids = token_ids(columns)
    rows, columns_at = torch.arange(len(places), device=ids.device), torch.tensor([place for _, place in places])
    wanted = ids[rows, columns_at.to(ids.device)]
    hidden = ids.index_put((rows, columns_at.to(ids.device)), torch.full_like(wanted, texts[0].mask))
    logits = logits_of(call(model, columns, input_ids=hidden))[rows, columns_at.to(ids.device)]
    return logits.log_softmax(1).gather(1, wanted.unsqueeze(1))[:, 0]


def _padded(model: nn.Module, rows: Sequence[Sequence[int]]) -> Columns:
    """One batch, padded on the right."""
    columns: Columns = {
        "input_ids": _rows(model, rows, fill=0),
        "attention_mask": _rows(model, [[1] * len(row) for row in rows], fill=0),
    }
    refuse_ids(model, columns)
    return columns


def _rows(model: nn.Module, rows: Sequence[Sequence[int]], fill: int) -> Int[Tensor, "k t"]:
    width = max(map(len, rows))
    device = next(model.parameters()).device
    return torch.tensor([[*map(int, row), *[fill] * (width - len(row))] for row in rows], device=device)


def refuse_equal(one: Text, other: Text, what: str) -> None:
    """Refuses two texts of which each is the other.

    Args:
        one: A text.
        other: Another.
        what: What they are, in words.

    Raises:
        ObjectiveError: If they are equal.
    """
    if one.ids == other.ids and one.asked == other.asked:
        raise ObjectiveError(
            f"The two {what} are equal in the tokenizer's tokens, so that their difference is zero whatever the model "
            f"is; needed two that differ, in words that it knows."
        )


def refuse_no_items(items: Sequence[Any], what: str) -> None:
    """Refuses an empty list.

    Args:
        items: Of a question.
        what: What they are, in words.

    Raises:
        DataError: If there are none.
    """
    if not len(items):
        raise DataError(f"Got no {what}; needed at least one.")
