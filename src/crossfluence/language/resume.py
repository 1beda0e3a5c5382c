"""A fine-tuned model and the record of its training, where the same command finds them again."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from crossfluence import Recipe, TrainingRecord
from crossfluence.errors import ResultFileError, StaleError
from crossfluence.extend import content_hash, read_if_whole, write_tensors

TRAINED, RECORD = "model.safetensors", "record.safetensors"
FORMAT = "crossfluence.language/1"


def trained_once(recipe: Recipe, store: Path | None) -> tuple[nn.Module, TrainingRecord]:
    """The model and the record of a training, from the folder if it holds those of the same training.

    Args:
        recipe: The training.
        store: Keeps the parameters that were trained, and the record.

    Returns:
        Both.
    """
    if store is None:
        return recipe.train(), recipe.record()
    store.mkdir(parents=True, exist_ok=True)
    what = content_hash(recipe.content)
    found = read_if_whole(store / TRAINED, FORMAT)
    if found is not None and found.texts.get("what") == what:
        model = recipe.holding(dict(found.tensors))
    else:
        model = recipe.train()
        tensors = {name: part.detach().contiguous() for name, part in model.named_parameters() if part.requires_grad}
        write_tensors(store / TRAINED, FORMAT, tensors, what=what)
    return model, _recorded(recipe, model, store / RECORD)


def _recorded(recipe: Recipe, model: nn.Module, file: Path) -> TrainingRecord:
    try:
        record = TrainingRecord.load(file)
        record.check({name: part.detach() for name, part in model.named_parameters() if part.requires_grad})
    except (ResultFileError, StaleError):  # absent or damaged, or of another training
        record = recipe.record()
        record.save(file)
    return record
