"""Layers seen from outside: each sample's gradient of each weight, from hooks. The only file that knows layer types."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.nn import functional

from .._errors import UnsupportedError
from .._functional import bind, each_direction, gradient_of, pullback, recorded
from .._losses import length_of
from .._params import Layout, coarseness, wide
from .._types import Batch, Params, SampleLoss
from .blocks import AbstractGradients, Lookup, Outer, Slot, Whole, joined
from .outputs import Roots

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
OVER_FEATURES, OVER_CHANNELS = (nn.LayerNorm, nn.RMSNorm), (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
NORMALISATIONS = (*OVER_FEATURES, *OVER_CHANNELS)
LAYERS = (nn.Linear, *CONVOLUTIONS, nn.Embedding, *NORMALISATIONS, nn.MultiheadAttention)
Noted: TypeAlias = tuple[nn.Module, tuple[Tensor, ...], dict[str, Any], Tensor]  # layer, arguments, what came out
EXACT_NUMBERS = 1_024  # in a parameter outside of all layers, up to which its block is exact


@dataclass(frozen=True, eq=False)
class Tap:
    """Parameters of one layer that make up a block, or one use of a block that several layers share.

    Attributes:
        layer: The module.
        slot: The block.
        samples: Which dimension of the layer's input counts the samples; `None` if all samples share one call, as
            they do with embeddings of positions.
        bias_alone: Whether the block is the bias without the weight.
    """

    layer: nn.Module
    slot: Slot
    samples: int | None = 0
    bias_alone: bool = False


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: what went in, and the gradient that came back to what went out."""

    layer: nn.Module
    inputs: Tensor
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class Layers:
    """A model's trained parameters in blocks: those that layers explain, and the others.

    Attributes:
        model: The module that is called.
        taps: Layers whose inputs and output gradients give the gradients of their blocks.
        outside: Parameters that no layer explains; differentiated sample by sample.
        rows: Blocks of up to this many numbers are seen as one row, so that their second moment is all of them.
    """

    model: nn.Module
    taps: tuple[Tap, ...]
    outside: Params
    rows: int = 0

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All blocks."""
        seen = (
            *dict.fromkeys(tap.slot for tap in self.taps),
            *(_own_slot(self.outside, name) for name in self.outside),
        )
        return tuple(slot.row if slot.size <= self.rows else slot for slot in seen)

    def gradients(self, scalars: SampleLoss, batch: Batch) -> dict[Slot, AbstractGradients]:
        """Every sample's gradient with respect to every block that the batch reaches.

        Args:
            scalars: `(model, batch) -> (b,)`.
            batch: One of the data.

        Returns:
            Gradients by block.
        """
        return next(self.along(Roots.of(scalars), batch))

    def along(self, roots: Roots, batch: Batch) -> Iterator[dict[Slot, AbstractGradients]]:
        """As `gradients`, for each root of a batch: one forward pass serves them all.

        Args:
            roots: What to differentiate.
            batch: One of the data.

        Yields:
            Gradients by block.
        """
        for direction, calls in called(self.model, self.taps, roots, batch):
            found = gradients_of(calls, self.taps, len(direction))
            found |= _written_out(self.model, self.outside, roots.along(direction), batch)
            yield dict(_in_a_row(*each) if each[0].size <= self.rows else each for each in found.items())


def _in_a_row(slot: Slot, gradients: AbstractGradients) -> tuple[Slot, Whole]:
    each = slot.row.gather(slot.scatter(gradients.dense().movedim(0, 1)))
    return slot.row, Whole(each.movedim(1, 0))


def layers_of(model: nn.Module, theta: Params, scalars: SampleLoss, batch: Batch) -> Layers:
    """Sorts a model's trained parameters into blocks.

    Whatever a layer's hooks seem to say is compared with a gradient that needs no hooks. So a weight that is also used
    outside of its layer, a layer with a forward of its own, or a layer that sees no samples one by one is not
    taken for what it is not: its parameters fall outside.

    Args:
        model: The trained module.
        theta: Its trained parameters.
        scalars: `(model, batch) -> (b,)`, the quantity to differentiate.
        batch: One of the data, with several samples.

    Returns:
        Layers, and the parameters outside of them.
    """
    taps, kept = _taps(model, theta), []
    for samples in (0, 1, None):
        known = {tap.slot for tap in kept}
        left = [replace(tap, samples=samples) for tap in taps if tap.slot not in known]
        if samples is None:
            left = [tap for tap in left if isinstance(tap.layer, nn.Embedding)]
        try:
            explained = _explained(model, theta, left, scalars, batch) if left else set()
        except Exception:
            if samples is not None:
                raise
            continue  # whatever the model says when an embedding comes out with one more dimension
        kept += [tap for tap in left if tap.slot in explained]
    inside = {name for tap in kept for name in tap.slot.names}
    outside = {name: tensor for name, tensor in theta.items() if name not in inside}
    return Layers(model, tuple(kept), outside)


def called(model: nn.Module, taps: Iterable[Tap], roots: Roots, batch: Batch) -> Iterator[tuple[Tensor, list[Call]]]:
    """Runs a model forwards, and backwards along each direction, and notes what its layers see.

    Args:
        model: Hooks are put on its layers and taken off again.
        taps: Which layers.
        roots: What to differentiate.
        batch: One of the data.

    Yields:
        A direction, and the calls that the outputs depend on, in order.
    """
    noted: list[Noted] = []
    shared = {tap.layer for tap in taps if tap.samples is None}
    b = length_of(batch) if shared else 0

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

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in {tap.layer for tap in taps}]
    try:
        with recorded():
            z = roots.outputs(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    drawn = iter(roots.directions(z.detach()))
    direction = next(drawn, None)
    while direction is not None:
        following = next(drawn, None)
        yield direction, _seen(z, direction, noted, last=following is None)
        direction = following


def _seen(z: Tensor, direction: Tensor, noted: Sequence[Noted], last: bool) -> list[Call]:
    """A backward pass, which frees what it has read if it is the last."""
    if not noted:
        return []
    back = torch.autograd.grad(
        z, [output for *_, output in noted], direction.to(z), allow_unused=True, retain_graph=not last
    )
    calls = []
    for (layer, args, kwargs, _), gradient in zip(noted, back, strict=True):
        if gradient is not None and isinstance(layer, nn.MultiheadAttention):
            calls += _attention(layer, args, kwargs, gradient)
        elif gradient is not None:
            calls.append(Call(layer, wide((*args, *kwargs.values())[0].detach()), wide(gradient)))
    return calls


def _attention(
    layer: nn.MultiheadAttention, args: tuple[Tensor, ...], kwargs: dict[str, Any], gradient: Tensor
) -> list[Call]:
    """Attention as linear layers before and after what the same module does with identities for weights."""
    named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    inputs = [named.pop(name).detach() for name in ("query", "key", "value")]
    if layer.in_proj_weight is None or layer.bias_k is not None or len({part.shape for part in inputs}) > 1:
        return []  # not taken apart: the weights fall outside
    biases = [None] * 3 if layer.in_proj_bias is None else layer.in_proj_bias.detach().chunk(3)
    weights = layer.in_proj_weight.detach().chunk(3)
    projected = [functional.linear(*each) for each in zip(inputs, weights, biases, strict=True)]
    eye = torch.eye(layer.embed_dim).to(gradient)
    plain = {name: torch.zeros_like(part) for name, part in layer.named_parameters()}
    plain |= {"in_proj_weight": eye.repeat(3, 1), "out_proj.weight": eye}
    mixed, pull = vjp(lambda *qkv: functional_call(layer, plain, (*qkv, *args[3:]), named)[0], *projected)[:2]
    back = pull(gradient @ layer.out_proj.weight.detach())
    return [Call(layer.out_proj, mixed, gradient), Call(layer, torch.stack(inputs, -2), torch.stack(back, -2))]


def gradients_of(calls: Sequence[Call], taps: Iterable[Tap], b: int) -> dict[Slot, AbstractGradients]:
    """Per-sample gradients from what layers saw.

    Args:
        calls: From `called`.
        taps: Which blocks.
        b: The number of samples.

    Returns:
        Gradients by block, without blocks whose layers were not called.

    Raises:
        UnsupportedError: If a layer was called on something that does not divide into samples.
    """
    parts: dict[Slot, list[AbstractGradients]] = {}
    for tap in taps:
        found = [_gradients(tap, call, b) for call in calls if call.layer is tap.layer]
        if found:
            parts.setdefault(tap.slot, []).extend(found)
    return {slot: _exact_if_one_row(slot, joined(found)) for slot, found in parts.items()}


def _exact_if_one_row(slot: Slot, gradients: AbstractGradients) -> AbstractGradients:
    """With one row the gradients in full are no larger than their factors, and their second moment is the block."""
    return Whole(gradients.dense()) if slot.form[1] == 1 else gradients


def _taps(model: nn.Module, theta: Params) -> list[Tap]:
    """Every trained parameter of every known layer; a bias stands beside its weight unless one of them is shared."""
    names = {id(tensor): name for name, tensor in model.named_parameters() if name in theta}
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    held = {layer: [names.get(id(getattr(layer, part, None))) for part in _parts(layer)] for layer in layers}
    uses = Counter(name for own in held.values() for name in own)
    taps = []
    for layer, (weight, bias) in held.items():
        if weight and bias and uses[weight] == uses[bias] == 1:
            taps.append(Tap(layer, Slot.of(theta, (weight, bias), *_rows(layer))))
            continue
        if weight:
            taps.append(Tap(layer, Slot.of(theta, (weight,), *_rows(layer))))
        if bias:
            taps.append(Tap(layer, Slot.of(theta, (bias,), 1, 1), bias_alone=True))
    return taps


def _parts(layer: nn.Module) -> tuple[str, str]:
    attention = isinstance(layer, nn.MultiheadAttention)
    return ("in_proj_weight", "in_proj_bias") if attention else ("weight", "bias")


def _rows(layer: nn.Module) -> tuple[int, int]:
    """Groups, and rows in each."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.groups, layer.out_channels // layer.groups
    if isinstance(layer, nn.MultiheadAttention):
        return 3, layer.embed_dim
    if isinstance(layer, nn.Linear):
        return 1, layer.out_features
    return 1, layer.num_embeddings if isinstance(layer, nn.Embedding) else 1


def _explained(model: nn.Module, theta: Params, taps: Sequence[Tap], scalars: SampleLoss, batch: Batch) -> set[Slot]:
    """The blocks whose gradients, added up with random weights for the samples, are those of a backward pass."""
    direction, calls = next(called(model, taps, Roots.of(scalars), batch))
    b = len(direction)  # as many as the scalars are
    found: dict[Slot, AbstractGradients] = {}
    for slot in dict.fromkeys(tap.slot for tap in taps):
        with contextlib.suppress(UnsupportedError):
            found |= gradients_of(calls, [tap for tap in taps if tap.slot == slot], b)
    weights = torch.randn(b, generator=torch.Generator().manual_seed(0)).to(next(iter(theta.values())))
    whole = gradient_of(lambda part: (weights * bind(scalars, model)(part, batch)).sum(), theta)
    tolerance = min(10 * coarseness(theta) ** 0.5, 0.1)

    def right(slot: Slot) -> bool:
        wanted = slot.gather(whole)
        seen = found[slot].weighted(weights) if slot in found else 0  # a layer that was not called has no gradient
        return bool((seen - wanted).norm() <= tolerance * wanted.norm())

    return {tap.slot for tap in taps if right(tap.slot)}


def _gradients(tap: Tap, call: Call, b: int) -> AbstractGradients:
    layer, (groups, rows, _) = tap.layer, tap.slot.form

    def by_sample(values: Tensor) -> Tensor:
        """From `(..., g, d)`, with the samples somewhere before, to `(g, b, t, d)`."""
        try:
            return values.movedim(tap.samples or 0, 0).reshape(b, -1, *values.shape[-2:]).permute(2, 0, 1, 3)
        except (RuntimeError, IndexError) as error:
            raise UnsupportedError(
                f"{type(layer).__name__} of {tap.slot.names} got an input of shape {tuple(call.inputs.shape)}, which "
                f"does not divide into the {b} samples of the batch. Keep the samples in one dimension of it."
            ) from error

    if isinstance(layer, NORMALISATIONS):
        parts = [] if tap.bias_alone else [_features(layer, _normalised(layer, call.inputs) * call.gradient)]
        parts += [_features(layer, call.gradient)] if tap.bias_alone or len(tap.slot.names) == 2 else []
        return Whole(by_sample(torch.cat(parts, dim=-1).unsqueeze(-2)).sum(2, keepdim=True))
    if isinstance(layer, nn.Embedding):
        read = by_sample(call.inputs[..., None, None])[0, :, :, 0]
        gradient = call.gradient
        if layer.padding_idx is not None:
            gradient = gradient * (call.inputs != layer.padding_idx).unsqueeze(-1)
        return Lookup(read, by_sample(gradient.unsqueeze(-2)), layer.num_embeddings)
    gradient = _features(layer, call.gradient)
    if tap.bias_alone:
        return Whole(by_sample(gradient.unsqueeze(-2)).sum(2, keepdim=True))
    columns = _columns(layer, call.inputs)
    if len(tap.slot.names) == 2:
        columns = functional.pad(columns, (0, 1), value=1.0)
    return Outer(by_sample(gradient.unflatten(-1, (groups, rows))), by_sample(columns))


def _features(layer: nn.Module, values: Tensor) -> Tensor:
    """Features last and flat."""
    if isinstance(layer, (*CONVOLUTIONS, *OVER_CHANNELS)):
        return values.movedim(1, -1)
    if isinstance(layer, nn.MultiheadAttention):
        return values.flatten(-2)
    return values.flatten(-len(layer.normalized_shape)) if isinstance(layer, OVER_FEATURES) else values


def _columns(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer multiplies its weight with at each position: `(..., g, c)`."""
    if not isinstance(layer, CONVOLUTIONS):
        return inputs if isinstance(layer, nn.MultiheadAttention) else inputs.unsqueeze(-2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if isinstance(layer, nn.Conv1d):
        padded, kernel, dilation, stride = padded.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
    return (
        functional
        .unfold(padded, kernel, dilation=dilation, stride=stride)
        .unflatten(1, (layer.groups, -1))
        .movedim(-1, 1)
    )


def _normalised(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a normalisation does before its own scale and shift."""
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return functional.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    assert isinstance(layer, OVER_CHANNELS[:2])
    return functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)


def _repeated(values: Tensor, b: int, dimensions: int) -> Tensor:
    """A tensor without samples, once for each of them; a leading 1 is taken for their place."""
    bare = values[0] if values.ndim > dimensions and values.shape[0] == 1 else values
    return bare.expand(b, *bare.shape)


def _own_slot(params: Params, name: str) -> Slot:
    shape = params[name].shape
    return Slot.of(params, (name,), 1, 1 if shape.numel() <= EXACT_NUMBERS or len(shape) < 2 else shape[0])


def _written_out(model: nn.Module, params: Params, scalars: SampleLoss, batch: Batch) -> dict[Slot, AbstractGradients]:
    """Gradients of parameters outside of all layers: one backward pass for each sample, vectorised."""
    if not params:
        return {}
    bound, layout = bind(scalars, model), Layout.of(params)
    values, pull = pullback(lambda part: bound(part, batch), params)
    rows = each_direction(lambda unit: layout.flatten(pull(unit)), torch.eye(len(values)).to(values))
    each = layout.split(rows)
    return {slot: Whole(slot.gather(each).movedim(0, 1)) for slot in (_own_slot(params, name) for name in params)}
