"""Per-sample gradients of layer weights from forward hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .._autodiff.functional import evaluated, recorded
from .._autodiff.params import coarseness, wide
from .._curvature.output_gradients import OutputGradients, projected
from .._losses import length_of
from .._types import Batch, Params, SampleLoss
from ..errors import UnsupportedError
from .gradients import AbstractGradients, ByBlock, DenseGradients, ParameterBlock, joined
from .layer_types import LayerBlock, LayerCall, block_gradients, layer_blocks_of, record_calls
from .reverse import each_sample, tracked, weighted_gradient

EXACT_NUMBERS = 1_024  # in a parameter outside of all layers, up to which its block is exact
Noted: TypeAlias = tuple[nn.Module, tuple[Tensor, ...], dict[str, Any], Tensor]  # layer, arguments, what came out


@dataclass(frozen=True, eq=False)
class Layers:
    """A model's trained parameters in blocks: those that layers explain, and the others.

    Attributes:
        model: The module that is called.
        layer_blocks: Layers whose inputs and output gradients give the gradients of their blocks.
        outside: Parameters that no layer explains; differentiated sample by sample.
        idle: Parameters of layers that nothing depended on in the batch that was looked at, and their blocks: should
            another batch reach them, they are differentiated sample by sample.
        rows: Blocks of up to this many numbers are seen as one row, so that their second moment is all of them.
    """

    model: nn.Module
    layer_blocks: tuple[LayerBlock, ...]
    outside: Params
    idle: Mapping[ParameterBlock, Params] = field(default_factory=dict)
    rows: int = 0

    @property
    def slots(self) -> tuple[ParameterBlock, ...]:
        """All blocks."""
        seen = (*dict.fromkeys(layer_block.slot for layer_block in self.layer_blocks), *self._written)
        return tuple(slot.row if slot.size <= self.rows else slot for slot in seen)

    @property
    def _written(self) -> dict[ParameterBlock, Params]:
        own = {_own_slot(self.outside, name): {name: tensor} for name, tensor in self.outside.items()}
        return {**own, **self.idle}

    def gradients(self, scalars: SampleLoss, batch: Batch) -> ByBlock:
        """Every sample's gradient with respect to every block that the batch reaches.

        Args:
            scalars: `(model, batch) -> (b,)`.
            batch: One of the data.

        Returns:
            Gradients by block.
        """
        return next(self.along(OutputGradients.of(scalars), batch))

    def along(self, output_gradients: OutputGradients, batch: Batch) -> Iterator[ByBlock]:
        """As `gradients`, for each root of a batch: one forward pass serves them all.

        Args:
            output_gradients: What to differentiate.
            batch: One of the data.

        Yields:
            Gradients by block.
        """
        written = self._written
        params = {name: tensor for part in written.values() for name, tensor in part.items()}
        seen = ForwardPass.of(self.model, self.layer_blocks, output_gradients.outputs, batch, params)
        for direction, last in _marked(output_gradients.directions(seen.z.detach())):
            rows = seen.rows(direction) if params else {}
            found = gradients_of(seen.calls(direction, last), self.layer_blocks, len(direction))
            found |= {
                slot: DenseGradients(_gathered(slot, part, rows))
                for slot, part in written.items()
                if part.keys() & rows
            }
            yield dict(_in_a_row(*each) if each[0].size <= self.rows else each for each in found.items())


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One forward pass, and what the layers saw of it.

    Attributes:
        z: The outputs, with a graph.
        noted: Calls of layers.
        params: What the outputs were computed from, beside the parameters of these layers.
        hooked: Whether the user's own hooks run in backward passes: they are to get plain tensors.
    """

    z: Tensor
    noted: list[Noted]
    params: Params
    hooked: bool = False

    @classmethod
    def of(
        cls, model: nn.Module, layer_blocks: Iterable[LayerBlock], outputs: SampleLoss, batch: Batch, params: Params
    ) -> ForwardPass:
        """Runs a model, with hooks on its layers that are taken off again."""
        noted: list[Noted] = []
        b, shared = length_of(batch), {layer_block.layer for layer_block in layer_blocks if layer_block.samples is None}

        def note(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], returned: Any) -> Any:
            output, *others = returned if isinstance(returned, tuple) else (returned,)
            if not output.requires_grad:
                return returned
            if layer in shared:  # the same for every sample, so far: each is given its own copy
                args, kwargs = (_repeated((*args, *kwargs.values())[0], b, 1),), {}
                output = _repeated(output, b, 2)
            noted.append((layer, args, kwargs, output))
            copy = output.clone()  # what follows may change it in place
            return (copy, *others) if isinstance(returned, tuple) else copy

        hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in {each.layer for each in layer_blocks}]
        try:
            with recorded():
                z, copies = tracked(outputs, model, params, batch)
        finally:
            for hook in hooks:
                hook.remove()
        return cls(z, noted, copies, any(module._backward_hooks for module in model.modules()))

    def rows(self, direction: Tensor) -> Params:
        """Gradients of each sample's outputs along a direction, by the parameters beside the layers."""
        with recorded():
            return each_sample(projected(self.z, direction), self.params, vectorised=not self.hooked)

    def calls(self, direction: Tensor, last: bool = True) -> list[LayerCall]:
        """A backward pass along a direction of the outputs, which frees what it has read if it is the last."""
        if not self.noted or not self.z.requires_grad:
            return []
        outputs = [output for *_, output in self.noted]
        with recorded():
            back = torch.autograd.grad(self.z, outputs, direction.to(self.z), allow_unused=True, retain_graph=not last)
        calls = []
        for (layer, args, kwargs, _), gradient in zip(self.noted, back, strict=True):
            if gradient is not None:
                calls += record_calls(layer, args, kwargs, gradient)
        return calls


def _marked(directions: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each, and whether it is the last."""
    drawn = iter(directions)
    direction = next(drawn, None)
    while direction is not None:
        following = next(drawn, None)
        yield direction, following is None
        direction = following


def _gathered(slot: ParameterBlock, params: Params, rows: Params) -> Tensor:
    """A block's gradients from those of its parameters; zeros for one that is not among them."""
    b = len(next(iter(rows.values())))
    each = {name: rows[name] if name in rows else tensor.new_zeros(b, *tensor.shape) for name, tensor in params.items()}
    return wide(slot.gather(each)).movedim(0, 1)


def _in_a_row(slot: ParameterBlock, gradients: AbstractGradients) -> tuple[ParameterBlock, DenseGradients]:
    each = slot.row.gather(slot.scatter(gradients.dense().movedim(0, 1)))
    return slot.row, DenseGradients(each.movedim(1, 0))


def layers_of(
    model: nn.Module,
    theta: Params,
    scalars: SampleLoss,
    batch: Batch,
    *,
    precision: float | None = None,
    decay: Mapping[str, float] | None = None,
) -> Layers:
    """Sorts a model's trained parameters into blocks.

    Whatever a layer's hooks seem to say is compared with a gradient that needs no hooks. So a weight that is also used
    outside of its layer, a layer with a forward of its own, or a layer that sees no samples one by one is not
    taken for what it is not: its parameters fall outside. A layer that nothing depends on proves nothing.

    Args:
        model: The trained module.
        theta: Its trained parameters.
        scalars: `(model, batch) -> (b,)`, the quantity to differentiate.
        batch: One of the data, with several samples.
        precision: Relative rounding error of the scalars; default: that of the parameters.
        decay: The l2 term's coefficient of each parameter, where it is not the same for all: a bias with one of its
            own is a block of its own.

    Returns:
        Layers, and the parameters outside of them.
    """
    precision = coarseness(theta) if precision is None else precision
    layer_blocks, kept = layer_blocks_of(model, theta, decay or {}), []
    count = len(evaluated(lambda: scalars(model, batch))) if layer_blocks else 0
    weights = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(next(iter(theta.values())))
    whole = weighted_gradient(scalars, model, theta, batch, weights) if layer_blocks else {}
    idle = {slot for slot in {layer_block.slot for layer_block in layer_blocks} if not slot.gather(whole).any()}
    for samples in (0, 1, None):
        known = {layer_block.slot for layer_block in kept}
        left = [replace(layer_block, samples=samples) for layer_block in layer_blocks if layer_block.slot not in known]
        if samples is None:
            left = [layer_block for layer_block in left if isinstance(layer_block.layer, nn.Embedding)]
        found = _by_hooks(model, left, scalars, batch) if samples is not None else _shared(model, left, scalars, batch)
        explained = {slot for slot in found if _explained(found[slot], slot.gather(whole), weights, precision)}
        kept += [layer_block for layer_block in left if layer_block.slot in explained]
    idle -= {layer_block.slot for layer_block in kept}
    inside = {name for slot in (*idle, *(layer_block.slot for layer_block in kept)) for name in slot.names}
    outside = {name: tensor for name, tensor in theta.items() if name not in inside}
    blocks = dict.fromkeys(layer_block.slot for layer_block in layer_blocks if layer_block.slot in idle)
    unreached = {slot: {name: theta[name] for name in slot.names} for slot in blocks}
    return Layers(model, tuple(kept), outside, unreached)


def gradients_of(calls: Sequence[LayerCall], layer_blocks: Iterable[LayerBlock], b: int) -> ByBlock:
    """Per-sample gradients from what layers saw.

    Args:
        calls: From `ForwardPass.calls`.
        layer_blocks: Which blocks.
        b: The number of samples.

    Returns:
        Gradients by block, without blocks whose layers were not called.

    Raises:
        UnsupportedError: If a layer was called on something that does not divide into samples.
    """
    return {slot: _exact_if_one_row(slot, found) for slot, found in _terms_of(calls, layer_blocks, b).items()}


def _terms_of(calls: Sequence[LayerCall], layer_blocks: Iterable[LayerBlock], b: int) -> ByBlock:
    """Gradients by block, position by position."""
    parts: dict[ParameterBlock, list[AbstractGradients]] = {}
    for layer_block in layer_blocks:
        found = [block_gradients(layer_block, call, b) for call in calls if call.layer is layer_block.layer]
        if found:
            parts.setdefault(layer_block.slot, []).extend(found)
    return {slot: joined(found) for slot, found in parts.items()}


def _exact_if_one_row(slot: ParameterBlock, gradients: AbstractGradients) -> AbstractGradients:
    """With one row the gradients in full are no larger than their factors, and their second moment is the block."""
    return DenseGradients(gradients.dense()) if slot.form[1] == 1 else gradients


def _by_hooks(model: nn.Module, layer_blocks: Sequence[LayerBlock], scalars: SampleLoss, batch: Batch) -> ByBlock:
    """Gradients by block, without blocks that do not divide into samples."""
    if not layer_blocks:
        return {}
    seen = ForwardPass.of(model, layer_blocks, scalars, batch, {})
    calls, found = seen.calls(torch.ones_like(seen.z)), {}
    for slot in dict.fromkeys(layer_block.slot for layer_block in layer_blocks):
        with contextlib.suppress(UnsupportedError):
            found |= _terms_of(calls, [each for each in layer_blocks if each.slot == slot], len(seen.z))
    return found


def _shared(model: nn.Module, layer_blocks: Sequence[LayerBlock], scalars: SampleLoss, batch: Batch) -> ByBlock:
    """The same, one block after another: some models refuse a table that comes out with one more dimension."""
    found: ByBlock = {}
    for slot in dict.fromkeys(layer_block.slot for layer_block in layer_blocks):
        with contextlib.suppress(Exception):  # whatever the model says to that
            found |= _by_hooks(model, [each for each in layer_blocks if each.slot == slot], scalars, batch)
    return found


def _explained(found: AbstractGradients, wanted: Tensor, weights: Tensor, precision: float) -> bool:
    """True if gradients, added up with random weights for the samples, are those of a backward pass."""
    # rounding is judged by the terms that are added up, for their sum may be zero; zeros explain nothing
    terms = found.squared().weighted(weights.square()).sum().sqrt()
    gap = (found.weighted(weights) - wanted).norm()
    tolerance = min(10 * precision**0.5, 0.1) * wanted.norm() + min(10 * precision, 0.1) * terms
    return bool(terms > 0) and bool(gap <= tolerance)


def _repeated(values: Tensor, b: int, dimensions: int) -> Tensor:
    """A tensor without samples, once for each of them; a leading 1 is taken for their place."""
    bare = values[0] if values.ndim > dimensions and values.shape[0] == 1 else values
    return bare.expand(b, *bare.shape)


def _own_slot(params: Params, name: str) -> ParameterBlock:
    shape = params[name].shape
    return ParameterBlock.of(params, (name,), 1, 1 if shape.numel() <= EXACT_NUMBERS or len(shape) < 2 else shape[0])
