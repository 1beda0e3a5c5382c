"""A fine-tuned model and the record of its training, where the same command finds them again."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from crossfluence import Recipe, TrainingRecord
from crossfluence.errors import DataError, ResultFileError, StaleError
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

    Raises:
        DataError: If the training diverged.
    """
    if store is None:
        return _finite(recipe.train()), recipe.record()
    store.mkdir(parents=True, exist_ok=True)
    what = content_hash(recipe.content)
    found = read_if_whole(store / TRAINED, FORMAT)
    if found is not None and found.texts.get("what") == what:
        model = recipe.holding(dict(found.tensors))
    else:
        model = _finite(recipe.train())
        tensors = {name: part.detach().contiguous() for name, part in model.named_parameters() if part.requires_grad}
        write_tensors(store / TRAINED, FORMAT, tensors, what=what)
    return model, _recorded(recipe, model, store / RECORD)


def _finite(model: nn.Module) -> nn.Module:
    """The model, if training did not diverge."""
    if not all(bool(part.isfinite().all()) for part in model.parameters()):
        raise DataError("Training diverged: weights are no numbers any more. Type a lower --lr, such as 1e-5.")
    return model


def _recorded(recipe: Recipe, model: nn.Module, file: Path) -> TrainingRecord:
    try:
        record = TrainingRecord.load(file)
        record.check({name: part.detach() for name, part in model.named_parameters() if part.requires_grad})
    except (ResultFileError, StaleError):  # absent or damaged, or of another training
        record = recipe.record()
        record.save(file)
    return record
