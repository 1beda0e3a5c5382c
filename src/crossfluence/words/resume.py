"""Finished parts of a stopped command, where the same command finds them again."""

from __future__ import annotations

from pathlib import Path

import torch

from crossfluence.extend import content_hash, read_if_whole, write_tensors

from .skipgram import ExpectedTraining, SkipGram

TRAINED, ON_THE_WAY = "trained.safetensors", "training.safetensors"
FORMAT = "crossfluence.skipgram/2"
FIRST = None  # the form of the first files


def trained_once(training: ExpectedTraining, store: Path | None) -> tuple[SkipGram, int]:
    """A trained model, from the folder if it holds one of the same training.

    Args:
        training: What to do otherwise.
        store: Keeps the model, and the training on its way.

    Returns:
        The model, and the steps of its training.
    """
    if store is None:
        model, ended = training.fit()
        return model, ended.steps
    store.mkdir(parents=True, exist_ok=True)
    file, what = store / TRAINED, content_hash(training)
    if (found := _read(file, what)) is not None:
        words, contexts, steps = found
        return SkipGram(training.pairs.corpus.words, words, contexts), int(steps)
    model, ended = training.fit(checkpoint=store / ON_THE_WAY)
    tables = {"words": model.word_vectors.detach(), "contexts": model.context_vectors.detach()}
    write_tensors(file, FORMAT, tables | {"steps": torch.tensor(ended.steps)}, what=what)
    return model, ended.steps


def _read(file: Path, what: str) -> tuple[torch.Tensor, ...] | None:
    """The content of a file, or nothing if it is absent, damaged or of another training."""
    found = read_if_whole(file, FORMAT, FIRST)
    if found is None or found.texts.get("what") != what:
        return None
    return tuple(found.tensors[name] for name in ("words", "contexts", "steps"))


def what_is_kept(store: Path) -> list[str]:
    """The content of a folder of an unfinished run, in words.

    Args:
        store: The folder; it need not exist.

    Returns:
        Such as `["The trained vectors", "3 finished retrainings"]`; empty if nothing is kept.
    """
    count = len(list(store.glob("*.json")))
    found = []
    if (store / TRAINED).exists():
        found.append("The trained vectors")
    elif (store / ON_THE_WAY).exists():
        found.append("The tables on the way of training")
    if (store / "model.safetensors").exists():
        found.append("The fine-tuned model")
    if any(store.glob("*.clustering.safetensors")):
        found.append("The trained clustering")
    if count:
        found.append(f"{count} finished retraining{'s' if count > 1 else ''}")
    return found
