"""Losses of language models as values: causal, masked, and classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from crossfluence import OnOutputs
from crossfluence.errors import DataError, UnsupportedError
from crossfluence.extend import Batch

from .batches import (
    IGNORED,
    Columns,
    call,
    class_of,
    columns_of,
    config_of,
    labelled,
    labels_of,
    logits_of,
    places,
    real_tokens,
    refuse_no_labels,
    token_ids,
)
from .masking import Masking, masking_of


def causal_loss(*, mean: bool = False, pad: int | None = None, seq2seq: bool = False) -> OnOutputs:
    """The loss of predicting each token from those before it, as `AutoModelForCausalLM` trains.

    Batches are what a tokenizer or a collator of transformers returns: `input_ids`, `attention_mask`, and `labels`
    (-100 where a token does not count; without labels every token counts). A first token has nothing before it, and
    padding counts nowhere, so that neither padding nor the size of batches changes a score.

    Args:
        mean: Whether the loss of a sample is the mean over its tokens, instead of their sum.
        pad: The id of padding, for batches without an attention mask.
        seq2seq: Whether the labels are another text than the inputs, as `AutoModelForSeq2SeqLM` trains (T5, BART).

    Returns:
        A loss for `Risk` and `Recipe`, in nats, split at the logits, with tokens for `unit="token"`.

    Example:
        >>> loss = causal_loss()
        >>> logits = torch.zeros(1, 3, 4)  # four equally likely words
        >>> loss.criterion(logits, {"input_ids": torch.tensor([[1, 2, 3]])})
        tensor([2.7726])
    """
    parts = Causal(mean, pad, seq2seq)
    return OnOutputs.by_token(parts.outputs, parts.losses, parts.positions)


def masked_loss(tokenizer: Any = None, share: float = 0.15, seed: int = 0, *, mean: bool = False) -> OnOutputs:
    """The loss of predicting masked tokens, as `AutoModelForMaskedLM` trains, with masks that stay the same.

    Of each sample the share of its tokens is hidden, at least one: 80 % behind the mask token, 10 % behind a random
    token, 10 % left as they are (BERT). Which ones depends on the sample's own tokens and the seed alone.

    Args:
        tokenizer: Of the model. Without one, batches are masked already and have `labels`.
        share: Of the tokens that are hidden.
        seed: Of the masks.
        mean: Whether the loss of a sample is the mean over its hidden tokens, instead of their sum.

    Returns:
        A loss for `Risk` and `Recipe`, in nats, split at the logits, with tokens for `unit="token"`.

    Raises:
        DataError: If the tokenizer has no mask token, or the share is none.

    Example:
        >>> batch = {"input_ids": torch.tensor([[1, 0, 3]]), "labels": torch.tensor([[-100, 2, -100]])}
        >>> masked_loss().criterion(torch.zeros(1, 3, 4), batch)
        tensor([1.3863])
    """
    parts = Masked(None if tokenizer is None else masking_of(tokenizer, share, seed), mean)
    return OnOutputs.by_token(parts.outputs, parts.losses, parts.positions)


def classification_loss() -> OnOutputs:
    """The loss of classifying texts, images or tokens, as the heads of transformers train.

    Cross-entropy for one label of a sample, or of each token (-100 where a token does not count); binary
    cross-entropy, summed over classes, for labels that are several floating-point numbers; the squared error for one.

    Returns:
        A loss for `Risk` and `Recipe`, split at the logits; with tokens, where each has a label.

    Example:
        >>> loss = classification_loss()
        >>> loss.criterion(torch.zeros(2, 4), {"labels": torch.tensor([0, 3])})
        tensor([1.3863, 1.3863])
    """
    parts = Classified()
    return OnOutputs.by_token(parts.outputs, parts.losses, parts.positions, parts.summed)


@dataclass(frozen=True)
class Causal:
    """Next-token prediction.

    Attributes:
        mean: Whether a sample's loss is a mean over tokens.
        pad: The id of padding.
        seq2seq: Whether the labels are another text than the inputs.
    """

    mean: bool
    pad: int | None
    seq2seq: bool

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits `(b, t, words)`."""
        columns = columns_of(batch)
        refuse_ids(model, columns)
        refuse_no_labels(columns)
        self._refuse_other(model)
        if not self.seq2seq:
            return logits_of(call(model, columns, self.pad))
        labels = labels_of(columns)
        before = model.prepare_decoder_input_ids_from_labels(labels)  # pyright: ignore[reportCallIssue]
        return logits_of(call(model, columns, self.pad, decoder_input_ids=before))

    def losses(self, z: Tensor, batch: Batch) -> Shaped[Tensor, "b t"]:
        """One for each token; zero where none counts."""
        columns = columns_of(batch)
        labels, counted = self._counted(columns)
        if not self.seq2seq:
            z = nn.functional.pad(z[:, :-1], (0, 0, 1, 0))  # the logits before each token
        return _each(z, labels, counted, mean=self.mean)

    def positions(self, batch: Batch) -> Int[Tensor, "b t"]:
        """Of each token in its sample."""
        columns = columns_of(batch)
        _, counted = self._counted(columns)
        if self.seq2seq:
            return torch.where(counted, torch.arange(counted.shape[1], device=counted.device), -1)
        return torch.where(counted, places(real_tokens(columns, self.pad)), -1)

    def _counted(self, columns: Columns) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Labels, and where they count."""
        if self.seq2seq:
            labels = labels_of(columns)
            return labels, labels != IGNORED
        real = real_tokens(columns, self.pad)
        labels = labels_of(columns) if labelled(columns) else token_ids(columns)
        if labels.shape != real.shape:
            raise DataError(
                f"Got labels of shape {tuple(labels.shape)} for input_ids of shape {tuple(real.shape)}; needed one "
                f"label for each token, -100 where it does not count."
            )
        after = nn.functional.pad(real[:, :-1], (1, 0))  # a real token before
        return labels, real & after & (labels != IGNORED)

    def _refuse_other(self, model: nn.Module) -> None:
        if bool(getattr(config_of(model), "is_encoder_decoder", False)) != self.seq2seq:
            kind = "a decoder alone" if self.seq2seq else "an encoder and a decoder"
            raise UnsupportedError(
                f"The {type(model).__name__} has {kind}. Type causal_loss({'' if self.seq2seq else 'seq2seq=True'})."
            )
        if "MaskedLM" in class_of(model):
            raise UnsupportedError(
                f"The {class_of(model)} reads a whole text at once, so that it sees the token that it would have to "
                f"predict. Type masked_loss(tokenizer)."
            )


@dataclass(frozen=True)
class Masked:
    """Prediction of hidden tokens.

    Attributes:
        masking: How tokens are hidden; nothing, where batches come masked.
        mean: Whether a sample's loss is a mean over tokens.
    """

    masking: Masking | None
    mean: bool

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits `(b, t, words)`."""
        columns = columns_of(batch)
        refuse_ids(model, columns)
        if class_of(model).endswith(("ForCausalLM", "LMHeadModel")):
            name = class_of(model)
            raise UnsupportedError(f"The {name} predicts the next token, not hidden ones. Type causal_loss().")
        if self.masking is None:
            refuse_no_labels(columns)
            return logits_of(call(model, columns))
        return logits_of(call(model, columns, input_ids=self.masking(columns)[0]))

    def losses(self, z: Tensor, batch: Batch) -> Shaped[Tensor, "b t"]:
        """One for each hidden token; zero elsewhere."""
        labels = self._labels(columns_of(batch))
        return _each(z, labels, labels != IGNORED, mean=self.mean)

    def positions(self, batch: Batch) -> Int[Tensor, "b t"]:
        """Of each hidden token in its sample."""
        columns = columns_of(batch)
        return torch.where(self._labels(columns) != IGNORED, places(real_tokens(columns, None)), -1)

    def _labels(self, columns: Columns) -> Int[Tensor, "b t"]:
        if self.masking is not None:
            return self.masking(columns)[1]
        return labels_of(columns, "labels, -100 but for the masked tokens (or type masked_loss(tokenizer))")


@dataclass(frozen=True)
class Classified:
    """Classification of samples or tokens."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits."""
        return logits_of(call(model, columns_of(batch)))

    def summed(self, z: Tensor, batch: Batch) -> Shaped[Tensor, " b"]:
        """One loss for each sample."""
        labels = labels_of(columns_of(batch))
        if z.ndim == 3:
            return self.losses(z, batch).sum(1)
        if labels.is_floating_point() and labels.ndim == 2:
            return nn.functional.binary_cross_entropy_with_logits(z, labels.to(z), reduction="none").sum(1)
        if labels.is_floating_point():
            return (z.reshape(len(z)) - labels.to(z)).square()
        return nn.functional.cross_entropy(z, labels, reduction="none")

    def losses(self, z: Tensor, batch: Batch) -> Shaped[Tensor, "b t"]:
        """One for each token that has a label."""
        labels = self._of_tokens(columns_of(batch))
        return _each(z, labels, labels != IGNORED)

    def positions(self, batch: Batch) -> Int[Tensor, "b t"]:
        """Of each labelled token in its sample."""
        columns = columns_of(batch)
        labels = self._of_tokens(columns)
        return torch.where(labels != IGNORED, places(real_tokens(columns, None)), -1)

    def _of_tokens(self, columns: Columns) -> Int[Tensor, "b t"]:
        labels = labels_of(columns)
        if labels.ndim != 2 or labels.is_floating_point():
            raise UnsupportedError(
                "The loss of a classifier of whole samples has one term for each sample, and none for its tokens. "
                "Type unit='sample'."
            )
        return labels


def _each(
    z: Tensor, labels: Int[Tensor, "b t"], counted: Bool[Tensor, "b t"], *, mean: bool = False
) -> Shaped[Tensor, "b t"]:
    wanted = torch.where(counted, labels, IGNORED)
    losses = nn.functional.cross_entropy(z.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
    return losses / counted.sum(1, keepdim=True).clamp_min(1) if mean else losses


def refuse_ids(model: nn.Module, columns: Columns) -> None:
    """Refuses token ids that the model has no row for, and texts longer than its positions.

    Args:
        model: With a configuration that says so.
        columns: A batch.

    Raises:
        DataError: If there are any.
    """
    ids, config = token_ids(columns), config_of(model)
    words, most = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
    if isinstance(words, int) and ids.numel() and int(ids.max()) >= words:
        raise DataError(
            f"A batch holds the token {int(ids.max())}, but the model knows {words} tokens: the tokenizer is not the "
            f"model's. Take AutoTokenizer.from_pretrained of the model's own folder."
        )
    if isinstance(most, int) and ids.shape[1] > most and not hasattr(config, "relative_attention_num_buckets"):
        raise DataError(
            f"A batch holds texts of {ids.shape[1]} tokens, but the model has {most} positions. Truncate them: "
            f"tokenizer(texts, truncation=True, max_length={most}, ...)."
        )
