"""Trained clusterings on disk: a run that was stopped does not train them again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from crossfluence.extend import content_hash, read_if_whole, write_tensors

from .dec import DEC

FORMAT = "crossfluence.clustering/1"


def kept_model(store: Path | None, what: object, make: Callable[[], DEC]) -> DEC:
    """A clustering from the store, or one that is made now and kept there.

    Args:
        store: A folder, made if it is not there; nothing is kept without.
        what: All that decides the model.
        make: Makes it.

    Returns:
        The model, the same to the last bit.
    """
    if store is None:
        return make()
    file = store / f"{content_hash(what)}.clustering.safetensors"
    found = read_if_whole(file, FORMAT)
    if found is not None:
        return model_of(found.tensors)
    model = make()
    store.mkdir(parents=True, exist_ok=True)
    write_tensors(file, FORMAT, {name: tensor.detach() for name, tensor in model.named_parameters()})
    return model


def model_of(theta: Mapping[str, torch.Tensor]) -> DEC:
    """A `DEC` whose encoder has a tanh between its linear layers.

    Args:
        theta: Its parameters by name.

    Returns:
        A new module.
    """
    layers = sorted(name.removesuffix(".weight") for name in theta if name.endswith(".weight"))
    linear = [_linear(theta[f"{name}.weight"], theta[f"{name}.bias"]) for name in layers]
    between = [[layer, nn.Tanh()] for layer in linear]
    return DEC(nn.Sequential(*list(itertools.chain(*between))[:-1]), theta["centres"])


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
