"""Explains what a language model answers, by the texts that it was fine-tuned on, and checks it by training again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crossfluence import (
    AdamW,
    Estimate,
    Horizon,
    Recipe,
    Risk,
    Scores,
    TrainingRecord,
    batches,
    influence,
    linear,
)
from crossfluence.errors import DataError

from .checkpoint import checkpoint_record
from .loading import Loaded
from .questions import Question
from .removals import HeldOut, Removal, groups_of, removed
from .resume import trained_once
from .settings import LanguageSettings, context_of
from .token_means import TokenMean


@dataclass(frozen=True, eq=False)
class Perplexity:
    """Of texts that were not trained on.

    Attributes:
        texts: How many.
        after: Of the model that is explained.
        before: Of the model before it was fine-tuned, where this is known.
    """

    texts: int
    after: float
    before: float = math.nan


@dataclass(frozen=True, eq=False)
class Explained:
    """The answer to one question.

    Attributes:
        name: Of the question.
        value: With its interval over items.
        share: Of the items above zero.
        removals: Checked by training again; none without `train`.
    """

    name: str
    value: Estimate
    share: Estimate
    removals: tuple[Removal, ...]


@dataclass(frozen=True, eq=False)
class LanguageAnswer:
    """Everything about a model that was found out.

    Attributes:
        texts: What it was fine-tuned on.
        scores: One for each text and question.
        tokens: One for each token and question, if they were asked for.
        pieces: Of each text, its tokens in words.
        questions: The answers.
        settings: How it was made.
        held_out: Places of the texts that were not trained on.
        perplexity: Of these, or of others that were given.
    """

    texts: tuple[str, ...]
    scores: Scores
    tokens: Scores | None
    pieces: tuple[tuple[str, ...], ...]
    questions: tuple[Explained, ...]
    settings: LanguageSettings
    held_out: tuple[int, ...] = ()
    perplexity: Perplexity | None = field(default=None)


def encoded_texts(loaded: Loaded, texts: Sequence[str], longest: int | None) -> dict[str, Tensor]:
    """Texts as one padded batch of tokens.

    Args:
        loaded: The model and its tokenizer.
        texts: To be cut, if `longest` says so.
        longest: Tokens.

    Returns:
        Token ids and attention mask.

    Raises:
        DataError: If a text is longer than the model's context, or has too few tokens to train on.
    """
    tokenizer, most = loaded.tokenizer, context_of(loaded.config)
    options = {} if longest is None else {"truncation": True, "max_length": longest}
    lengths = [len(ids) for ids in tokenizer(list(texts), **options)["input_ids"]]
    if most is not None and max(lengths) > most:
        place = max(range(len(lengths)), key=lengths.__getitem__)
        raise DataError(
            f"Text {place + 1} has {lengths[place]} tokens, the model reads {most}. Cut the texts: --truncate {most}."
        )
    if min(lengths) < 2:
        place = min(range(len(lengths)), key=lengths.__getitem__)
        raise DataError(f"Text {place + 1}, {texts[place]!r}, has {lengths[place]} token; needed at least two.")
    side, tokenizer.padding_side = tokenizer.padding_side, "right"
    try:
        found = tokenizer(list(texts), padding=True, return_tensors="pt", **options)
    finally:
        tokenizer.padding_side = side
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def explain_language(
    loaded: Loaded,
    texts: Sequence[str],
    questions: dict[str, Question],
    settings: LanguageSettings,
    *,
    others: Sequence[str] | None = None,
    store: Path | None = None,
) -> LanguageAnswer:
    """Scores of texts (and tokens) for each question; if it may train, what removing the strongest did.

    Args:
        loaded: The model: fine-tuned on the texts, or to be fine-tuned.
        texts: What it was or is trained on.
        questions: By name.
        settings: How.
        others: Texts for the perplexity; if it trains, by default a few of the texts, which are then not trained on.
        store: A folder that keeps what is finished: a stopped run goes on from it.

    Returns:
        The answer.
    """
    data = encoded_texts(loaded, texts, settings.longest)
    held = settings.held_out(len(texts)) if settings.train and others is None else []
    rows = [row for row in range(len(texts)) if row not in set(held)]
    own = {name: column[rows] for name, column in data.items()}
    apart = {name: column[held] for name, column in data.items()} if held else None
    if others is not None:
        apart = encoded_texts(loaded, others, settings.longest)
    held_out = None if apart is None else held_out_of(loaded, apart, settings.batch_size)
    started = math.nan if held_out is None or not settings.train else held_out.perplexity(loaded.model)
    if settings.train:
        recipe = fine_tuning(loaded, own, settings)
        model, record = trained_once(recipe, store)
        risk = recipe.risk(model.eval(), ids=rows, record=record)
    else:
        recipe, model, risk = None, loaded.model, finished_risk(loaded, own, settings)
    inverse = Horizon().invert(risk)

    def ask(asked: nn.Module) -> dict[str, Tensor]:
        return {name: question(asked) for name, question in questions.items()}

    scores = influence(risk, ask, inverse)
    tokens = influence(risk, ask, inverse, unit="token") if settings.unit == "token" else None
    pieces = tuple(
        tuple(loaded.tokenizer.convert_ids_to_tokens(ids[mask.bool()].tolist()))
        for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True)
    )
    removals: dict[str, tuple[Removal, ...]] = dict.fromkeys(questions, ())
    if recipe is not None and held_out is not None:
        size = settings.group(len(rows))
        groups = groups_of(scores, questions, [texts[row] for row in rows], size, settings.seed)
        removals = removed(recipe, questions, scores, groups, held_out, model, store)
    answers = tuple(
        Explained(name, question.interval(model), question.hard_share(model), removals[name])
        for name, question in questions.items()
    )
    count = 0 if apart is None else len(apart["input_ids"])
    perplexity = None if held_out is None else Perplexity(count, held_out.perplexity(model), started)
    return LanguageAnswer(tuple(texts), scores, tokens, pieces, answers, settings, tuple(held), perplexity)


def finished_risk(loaded: Loaded, data: dict[str, Tensor], settings: LanguageSettings) -> Risk:
    """The risk that fine-tuning minimised, if a Trainer did it, at the model that it left.

    Its record comes from the optimizer beside the model, where there is a checkpoint, or else from stated settings.

    Args:
        loaded: The finished model.
        data: Of the texts.
        settings: How it was fine-tuned, if they tell it.

    Returns:
        A risk, without a record where nothing is known of the training.

    Raises:
        DataError: If the settings are of steps that took all texts.
    """
    source = batches(data, size=settings.batch_size)
    risk = Risk(loaded.model, TokenMean(loaded.loss).by_sample(source), source, params=loaded.params)
    if settings.told:
        if settings.batch_size >= risk.n:
            raise DataError(
                f"Got --batch-size {settings.batch_size} for {risk.n} texts: a training whose steps took all texts "
                f"cannot be rebuilt from its settings. Leave out --lr, or type --train."
            )
        record = TrainingRecord.from_settings(
            risk, optimizer=AdamW(settings.lr, weight_decay=0.0), steps=settings.epochs * len(source),
            batch_size=settings.batch_size, schedule=linear, clipping=1.0,
        )  # fmt: skip
    else:
        record = checkpoint_record(loaded.folder, loaded.model, risk.n)
    return risk.with_record(record)


def fine_tuning(loaded: Loaded, data: dict[str, Tensor], settings: LanguageSettings) -> Recipe:
    """The training that the command states.

    Args:
        loaded: The model, whose parameters that are not trained are frozen.
        data: Of the texts.
        settings: Of the training.

    Returns:
        A recipe.
    """
    model = loaded.model
    for name, part in model.named_parameters():
        part.requires_grad_(loaded.params == "*" or "lora" in name)
    return Recipe(
        model, loaded.loss, data, optimizer=AdamW(settings.lr), epochs=settings.epochs,
        batch_size=settings.batch_size, schedule=linear, clipping=1.0, seed=settings.seed, at_once=1,
    )  # fmt: skip


def held_out_of(loaded: Loaded, data: dict[str, Tensor], size: int) -> HeldOut:
    """Texts that no training sees.

    Args:
        loaded: The model, whose loss is taken.
        data: Of the texts.
        size: Texts in a batch.

    Returns:
        The texts with the number of tokens that the loss counts.
    """
    loss: Any = loaded.loss
    counted = sum(int((loss.tokens.positions(batch) >= 0).sum()) for batch in batches(data, size=size))
    return HeldOut(data, loss.losses, counted, size)
