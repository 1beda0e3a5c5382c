"""Explains what a language model answers, by the texts that it was fine-tuned on, and checks it by training again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossfluence import (
    EKFAC,
    AdamW,
    Estimate,
    Horizon,
    OnOutputs,
    Recipe,
    Risk,
    Scores,
    batches,
    influence,
    leave_out,
    linear,
)
from crossfluence.errors import DataError
from crossfluence.extend import Id

from .loading import Loaded
from .questions import Question

LOSS = "loss of the texts"


@dataclass(frozen=True)
class LanguageSettings:
    """Settings of fine-tuning and of removals.

    Attributes:
        train: Whether the model is fine-tuned first, so that it can be trained again.
        epochs: Of fine-tuning.
        lr: Learning rate of AdamW, falling along a line to zero.
        batch_size: Texts in a step.
        remove: Share of the texts that is removed together (below 1), or their number.
        unit: "sentence" or "token".
        longest: Tokens to which texts are cut; by default none is.
        seed: Of the order of texts, and of random groups.
    """

    train: bool = False
    epochs: int = 3
    lr: float = 1e-4
    batch_size: int = 8
    remove: float = 0.01
    unit: str = "sentence"
    longest: int | None = None
    seed: int = 0

    def group(self, n: int) -> int:
        """Number of texts, out of n, that are removed together.

        Args:
            n: Of all texts.

        Returns:
            At least one.

        Raises:
            DataError: If it is none or all of them.
        """
        size = round(self.remove * n) if self.remove < 1 else int(self.remove)
        size = max(size, 1) if self.remove > 0 else 0
        if not 0 < size < n:
            raise DataError(f"Removing {self.remove:g} means {size} of {n} texts; needed at least one, and not all.")
        return size


@dataclass(frozen=True)
class Removal:
    """Texts removed together; values of the question.

    Attributes:
        name: Which.
        predicted: Change by the sum of scores.
        achieved: Change by training again.
        loss: Change of the mean loss of all texts by training again, in nats.
    """

    name: str
    predicted: float
    achieved: float
    loss: float


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
    """

    texts: tuple[str, ...]
    scores: Scores
    tokens: Scores | None
    pieces: tuple[tuple[str, ...], ...]
    questions: tuple[Explained, ...]
    settings: LanguageSettings


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
    tokenizer, config = loaded.tokenizer, getattr(loaded.model, "config", None)
    most = getattr(config, "max_position_embeddings", None)
    options = {} if longest is None else {"truncation": True, "max_length": longest}
    lengths = [len(ids) for ids in tokenizer(list(texts), **options)["input_ids"]]
    if isinstance(most, int) and max(lengths) > most:
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
    loaded: Loaded, texts: Sequence[str], questions: dict[str, Question], settings: LanguageSettings
) -> LanguageAnswer:
    """Scores of texts (and tokens) for each question; if it may train, what removing the strongest did.

    Args:
        loaded: The model: fine-tuned on the texts, or to be fine-tuned.
        texts: What it was or is trained on.
        questions: By name.
        settings: How.

    Returns:
        The answer.
    """
    data = encoded_texts(loaded, texts, settings.longest)
    model, recipe = loaded.model, None
    if settings.train:
        model.requires_grad_(loaded.params == "*")
        for name, part in model.named_parameters():
            part.requires_grad_(loaded.params == "*" or "lora" in name)
        recipe = Recipe(
            model, loaded.loss, data, optimizer=AdamW(settings.lr), epochs=settings.epochs,
            batch_size=settings.batch_size, schedule=linear, clipping=1.0, seed=settings.seed, at_once=1,
        )  # fmt: skip
        model = recipe.train().eval()
        risk, solver = recipe.risk(model, record=recipe.record()), Horizon()
    else:
        rows = batches(data, size=settings.batch_size)
        risk, solver = Risk(model, loaded.loss, rows, params=loaded.params), EKFAC()
    inverse = solver.invert(risk)

    def ask(asked: nn.Module) -> dict[str, Tensor]:
        return {name: question(asked) for name, question in questions.items()}

    scores = influence(risk, ask, inverse)
    tokens = influence(risk, ask, inverse, unit="token") if settings.unit == "token" else None
    pieces = tuple(
        tuple(loaded.tokenizer.convert_ids_to_tokens(ids[mask.bool()].tolist()))
        for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True)
    )
    removals = dict.fromkeys(questions, ()) if recipe is None else _removed(recipe, ask, scores, settings)
    answers = tuple(
        Explained(name, question.interval(model), question.hard_share(model), removals[name])
        for name, question in questions.items()
    )
    return LanguageAnswer(tuple(texts), scores, tokens, pieces, answers, settings)


def _removed(
    recipe: Recipe, ask: Callable[[nn.Module], dict[str, Tensor]], scores: Scores, settings: LanguageSettings
) -> dict[str, tuple[Removal, ...]]:
    """The strongest of both signs and random ones, removed together and trained again."""
    size, generator = settings.group(len(scores)), torch.Generator().manual_seed(settings.seed)
    drawn = {f"{size} random, {k}": torch.randperm(len(scores), generator=generator)[:size].tolist() for k in (1, 2)}
    assert isinstance(recipe.loss, OnOutputs)
    losses, found = recipe.loss.losses, dict[str, tuple[Removal, ...]]()
    for name in scores.objectives:
        groups: dict[str, list[Id]] = {}
        for effect in ("raises", "lowers"):
            if top := [label for label, _ in scores.top(size, name, effect=effect)]:
                groups[f"{len(top)} that {effect[:-1]} it most"] = top
        groups |= drawn
        predicted, column = scores.sum_by(groups), scores.objectives.index(name)
        achieved = leave_out(recipe, lambda model: ask(model) | {LOSS: losses(model, recipe.data).mean()}, groups)
        found[name] = tuple(
            Removal(
                group, -float(predicted.values[row, column]), -float(achieved.values[row, column]),
                -float(achieved.values[row, -1]),
            )
            for row, group in enumerate(groups)
        )  # fmt: skip
    return found
