"""Batches of transformers: the inputs of the model, the tokens that are real, and the labels that count."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from crossfluence.errors import DataError, UnsupportedError

Columns: TypeAlias = dict[str, Any]
"""A batch of transformers: tensors by name."""

IGNORED = -100  # the label of a token that does not count, as in transformers
TARGETS = {"labels", "label", "label_ids"}
NEEDED = (
    "needed what a tokenizer returns, {'input_ids': ..., 'attention_mask': ...}: "
    "crossfluence.batches(tokenizer(texts, padding=True, return_tensors='pt'))"
)


def columns_of(batch: Any) -> Columns:
    """A batch as columns by name; one tensor alone is `input_ids`.

    Args:
        batch: A mapping such as a `BatchEncoding`, or a tensor of token ids.

    Returns:
        A dictionary.

    Raises:
        DataError: If it is anything else.
    """
    if isinstance(batch, Tensor):
        return {"input_ids": batch}
    if isinstance(batch, Mapping):
        return {str(name): column for name, column in batch.items()}
    raise DataError(f"Got a batch of type {type(batch).__name__}; {NEEDED}.")


def real_tokens(columns: Columns, pad: int | None) -> Bool[Tensor, "b t"]:
    """Places that hold tokens: by the attention mask, or else by the id of padding.

    Args:
        columns: A batch.
        pad: The id that stands for padding, where there is no attention mask.

    Returns:
        False where there is padding.

    Raises:
        DataError: If the batch has no token ids.
    """
    if (mask := columns.get("attention_mask")) is not None:
        return mask.bool()
    ids = token_ids(columns)
    return torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad


def token_ids(columns: Columns) -> Int[Tensor, "b t"]:
    """The column of token ids.

    Args:
        columns: A batch.

    Returns:
        Shape `(b, t)`.

    Raises:
        DataError: If there is none.
    """
    if not isinstance(ids := columns.get("input_ids"), Tensor):
        raise DataError(f"A batch has the columns {list(columns)}; {NEEDED}.")
    if ids.ndim != 2 or ids.is_floating_point():
        came = f"{str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}"
        raise DataError(f"A batch holds token ids that are {came}, not integers (b, t); {NEEDED}.")
    return ids


def places(real: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """The number of each token in its sample, whatever padding stands before it."""
    return real.long().cumsum(1) - 1


def labels_of(columns: Columns, name: str = "labels") -> Tensor:
    """The labels of a batch.

    Args:
        columns: A batch.
        name: The name that errors give them.

    Returns:
        The column `labels`, `label` or `label_ids`.

    Raises:
        DataError: If there is none.
    """
    for column in TARGETS:
        if isinstance(columns.get(column), Tensor):
            return columns[column]
    raise DataError(f"A batch has the columns {list(columns)}; needed {name!r} too, a tensor.")


def labelled(columns: Columns) -> bool:
    """True if a batch has labels."""
    return any(isinstance(columns.get(column), Tensor) for column in TARGETS)


def call(model: nn.Module, columns: Columns, pad: int | None = None, **changes: Any) -> Any:
    """The model's output for a batch, whose labels it does not get.

    Positions are counted from the first token of each sample, where padding stands before it and the model takes them.

    Args:
        model: Of transformers, or one that takes and returns the same.
        columns: A batch.
        pad: The id of padding, where there is no attention mask.
        changes: Other values for some columns.

    Returns:
        Such as `CausalLMOutput`.
    """
    given: Columns = {name: column for name, column in columns.items() if _is_input(name, column)} | changes
    if "input_ids" in given and "attention_mask" not in given and pad is not None:
        given["attention_mask"] = real_tokens(given, pad).long()
    if getattr(config_of(model), "use_cache", False):
        given["use_cache"] = False  # nothing is generated
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and _padded_before(mask) and "position_ids" not in given:
        given |= {"position_ids": places(mask.bool()).clamp_min(0)} if _takes(model, "position_ids") else {}
    return model(**given)


def logits_of(output: Any) -> Tensor:
    """The logits of an output, in single precision at least.

    Args:
        output: From `call`.

    Returns:
        Shape `(b, ..., classes)`.

    Raises:
        UnsupportedError: If there are none.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise UnsupportedError(
            f"The model returned {type(output).__name__} without logits; needed a model with a head, such as "
            f"AutoModelForCausalLM, AutoModelForMaskedLM or AutoModelForSequenceClassification."
        )
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def config_of(model: nn.Module) -> Any:
    """The model's configuration; nothing, where it has none."""
    return getattr(model, "config", None)


def class_of(model: nn.Module) -> str:
    """The name of the model's class; of adapters, of the model that they are in.

    Args:
        model: Of transformers, or of peft around one.

    Returns:
        Such as "LlamaForCausalLM".
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    return type(inner).__name__


def refuse_no_labels(columns: Columns) -> None:
    """Refuses a batch of several samples in which no label counts.

    Args:
        columns: A batch.

    Raises:
        DataError: If all labels are -100. (One sample alone may have none: its score is zero.)
    """
    labels = next((columns[name] for name in TARGETS if isinstance(columns.get(name), Tensor)), None)
    if labels is not None and labels.ndim == 2 and len(labels) > 1 and bool((labels == IGNORED).all()):
        raise DataError(
            "All labels of a batch are -100, so that nothing counts in it; needed the ids of the tokens that are to be "
            "learnt. To count every token but padding, leave out the labels."
        )


def _is_input(name: str, column: Any) -> bool:
    return name not in TARGETS and (isinstance(column, Tensor) or column is None)


def _padded_before(mask: Tensor) -> bool:
    return mask.ndim == 2 and not bool(mask[:, 0].all())


def _takes(model: nn.Module, name: str) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    return name in inspect.signature(inner.forward).parameters
