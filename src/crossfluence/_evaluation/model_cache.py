"""Retrained models on disk: trained once, asked again and again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from .._autodiff.params import digest_tensors
from .._require import AbstractTraining, require
from .._storage.archive import read_if_whole, write_tensors
from .._storage.hashing import content_hash
from .._training.recipe import Recipe
from .._types import Params

FORMAT = "crossfluence.model/2"
FIRST = "crossfluence.model/1"


@dataclass(frozen=True, eq=False)
class Bank(AbstractTraining):
    """A recipe that keeps every model it trains in a folder, so that a new question trains nothing again.

    It stands wherever a recipe is retrained: in `leave_out`, `lds`, `removal_curve`, `smoothness`. A file is named by a
    hash of all that decides the training and of the sample weights, is written whole or not at all, and holds a hash
    of its content: a run that was stopped goes on where it was, and what is stale or damaged is trained anew.

    Attributes:
        recipe: How to train.
        folder: Where the models are; made if it is not there. Several recipes may share it.

    Example:
        >>> import tempfile, torch
        >>> from crossfluence import SGD, leave_out
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]])
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> recipe = Recipe(nn.Linear(1, 1), loss, (x, y), optimizer=SGD(0.1), epochs=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = leave_out(Bank(recipe, folder), lambda model: model.weight.sum(), [0, 1])
        ...     second = leave_out(Bank(recipe, folder), lambda model: model.bias.sum(), [0, 1])  # trains nothing
        ...     len(os.listdir(folder))
        3
    """

    recipe: Recipe  # pyright: ignore[reportIncompatibleVariableOverride]
    folder: str | os.PathLike[str]

    def __post_init__(self) -> None:
        require(self.recipe, Recipe, "Bank", "a crossfluence.Recipe", "crossfluence.Bank(recipe, folder)")
        require(self.folder, (str, os.PathLike), "Bank", "a folder", "crossfluence.Bank(recipe, 'folder')")

    def with_seed(self, seed: int) -> Bank:
        """The same folder for the recipe with another seed."""
        recipe = self.recipe.with_seed(seed)
        return self if recipe is self.recipe else replace(self, recipe=recipe)

    def retrain(self, weights: Shaped[Tensor, "r n"]) -> Iterator[nn.Module]:
        """Many models, as `Recipe.retrain`; those that the folder holds are read.

        Args:
            weights: Sample weights, one training in each row.

        Yields:
            One module for each row, in order.
        """
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        rows = weights.to(self.recipe.ones)
        files = [Path(self.folder, f"{content_hash(self.recipe.content, row)}.safetensors") for row in rows]
        missing = {row: None for row, file in enumerate(files) if not file.exists()}
        fresh = self.recipe.retrain(rows[list(missing)])
        for row, file in enumerate(files):
            theta = None if row in missing else _read(file)
            if theta is not None:
                yield self.recipe.holding(theta)
                continue
            model = next(fresh) if row in missing else self.recipe.train(rows[row])  # the file is damaged, or gone
            _write(file, model)
            yield model


def _write(file: Path, model: nn.Module) -> None:
    theta = {name: tensor.detach() for name, tensor in sorted(model.named_parameters())}
    write_tensors(file, FORMAT, theta, digest=digest_tensors(theta.items()))


def _read(file: Path) -> Params | None:
    """The parameters in a file, or nothing if it is absent, damaged or of another kind."""
    if (found := read_if_whole(file, FORMAT, FIRST)) is None:
        return None
    theta = dict(sorted(found.tensors.items()))
    digests = [digest_tensors(theta.items())] + ([_first_digest(theta)] if found.form == FIRST else [])
    return theta if found.texts.get("digest") in digests else None


def _first_digest(theta: Params) -> str:
    """The content hash of most files of the first format."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in theta.items():
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return state.hexdigest()
