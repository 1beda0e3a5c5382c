"""Calls of modules with the gradients that came back to them, and the ways to take parameters' gradients from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .gradients import AbstractGradients, OuterProducts, ParameterBlock

Seen = TypeVar("Seen")


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module.

    Attributes:
        module: The module.
        args: Its arguments.
        kwargs: The same by name.
        outputs: Every tensor that came out with a graph.
        places: Where these stand among all that came out, flattened.
        gradients: Those that came back to the outputs; `None` where nothing depends on one.
        spread: The number of samples, where the module's output is the same for all of them and was repeated.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    places: tuple[int, ...]
    gradients: tuple[Tensor | None, ...] = ()
    spread: int = 0

    @property
    def first(self) -> Tensor:
        """The first argument, without a graph."""
        found = (*self.args, *self.kwargs.values())[0]
        if not isinstance(found, Tensor):
            raise UnsupportedError(f"The first argument of a {type(self.module).__name__} is no tensor.")
        return repeated(found.detach(), self.spread, 1) if self.spread else found.detach()

    @property
    def gradient(self) -> Tensor:
        """That of the first output."""
        if self.gradients[0] is None:
            raise UnsupportedError(f"Nothing depends on the first output of a {type(self.module).__name__}.")
        return self.gradients[0]


@dataclass(frozen=True, eq=False)
class LayerBlock:
    """Parameters of one layer that make up a block, or one use of a block that several layers share.

    Attributes:
        layer: The module.
        slot: The block.
        kind: The way to its gradients.
        own: Names of the parameters within the layer, in the order of the block.
        samples: Which dimension of the layer's input counts the samples; `None` if all samples share one call, as
            they do with embeddings of positions.
        bias_alone: Whether the block is the bias without the weight.
    """

    layer: nn.Module
    slot: ParameterBlock
    kind: AbstractKind[Any]
    own: tuple[str, ...] = ()
    samples: int | None = 0
    bias_alone: bool = False


class AbstractKind(ABC, Generic[Seen]):
    """A way from the calls of a module to the gradients of its parameters."""

    @abstractmethod
    def record(self, call: ModuleCall) -> list[Seen]:
        """All that is needed of a call, in at least single precision; nothing if the module cannot be taken apart."""

    @abstractmethod
    def gradients(self, layer_block: LayerBlock, seen: Seen, b: int) -> AbstractGradients:
        """The gradients of a block from one call, one for each of b samples."""


@dataclass(frozen=True, eq=False)
class SeenCall:
    """The record of a call by a kind of layer."""

    layer: nn.Module
    kind: AbstractKind[Any]
    seen: Any


def by_sample(values: Tensor, layer_block: LayerBlock, b: int) -> Tensor:
    """From `(..., g, d)`, with the samples somewhere before, to `(g, b, t, d)`.

    Args:
        values: Inputs or output gradients.
        layer_block: Says which dimension counts the samples.
        b: The number of samples.

    Returns:
        The same numbers.

    Raises:
        UnsupportedError: If they do not divide into samples.
    """
    if not b:
        raise UnsupportedError("A batch of the data holds no samples, and the solver goes by batches: leave it out.")
    try:
        return values.movedim(layer_block.samples or 0, 0).reshape(b, -1, *values.shape[-2:]).permute(2, 0, 1, 3)
    except (RuntimeError, IndexError) as error:
        raise UnsupportedError(
            f"{type(layer_block.layer).__name__} of {layer_block.slot.names} got numbers of shape "
            f"{tuple(values.shape[:-2])} before its features, which do not divide into the {b} samples of the batch. "
            f"Keep the samples in one dimension of it."
        ) from error


def summed(gradients: Tensor) -> OuterProducts:
    """Gradients `(1, b, t, c)` whose sum over positions counts."""
    return OuterProducts(torch.ones_like(gradients[..., :1]), gradients)


def repeated(values: Tensor, b: int, dimensions: int) -> Tensor:
    """A tensor without samples, once for each of them; a leading 1 is taken for their place."""
    bare = values[0] if values.ndim > dimensions and values.shape[0] == 1 else values
    return bare.expand(b, *bare.shape)
