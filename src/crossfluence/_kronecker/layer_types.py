"""PyTorch's own layers by type: which parameters each has, and each sample's gradient of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.nn import functional

from .._autodiff.params import wide
from .gradients import AbstractGradients, EmbeddingGradients, OuterProducts
from .layer_calls import AbstractKind, LayerBlock, ModuleCall, by_sample, summed

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
OVER_FEATURES, OVER_CHANNELS = (nn.LayerNorm, nn.RMSNorm), (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
NORMALISATIONS = (*OVER_FEATURES, *OVER_CHANNELS)
LAYERS = (nn.Linear, *CONVOLUTIONS, nn.Embedding, *NORMALISATIONS, nn.MultiheadAttention)


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer: what went in, and the gradient that came back to what went out."""

    layer: nn.Module
    inputs: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class ByType(AbstractKind[LayerCall]):
    """Layers of PyTorch's own, told by their type."""

    def record(self, call: ModuleCall) -> list[LayerCall]:
        """A layer's call, or what it is made of."""
        if isinstance(call.module, nn.MultiheadAttention):
            return _attention(call.module, call.args, call.kwargs, call.gradient)
        return [LayerCall(call.module, wide(call.first), wide(call.gradient))]

    def gradients(self, layer_block: LayerBlock, seen: LayerCall, b: int) -> AbstractGradients:
        """Outer products of inputs and output gradients, rows of a table, or products with what was normalised."""
        return _block_gradients(layer_block, seen, b)


def _attention(
    layer: nn.MultiheadAttention, args: tuple[Tensor, ...], kwargs: dict[str, Any], gradient: Tensor
) -> list[LayerCall]:
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
    return [
        LayerCall(layer.out_proj, mixed, gradient),
        LayerCall(layer, torch.stack(inputs, -2), torch.stack(back, -2)),
    ]


def parts_of(layer: nn.Module) -> tuple[str, str]:
    """Names of weight and bias."""
    attention = isinstance(layer, nn.MultiheadAttention)
    return ("in_proj_weight", "in_proj_bias") if attention else ("weight", "bias")


def rows_of(layer: nn.Module) -> tuple[int, int]:
    """Groups, and rows in each."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.groups, layer.out_channels // layer.groups
    if isinstance(layer, nn.MultiheadAttention):
        return 3, layer.embed_dim
    if isinstance(layer, nn.Linear):
        return 1, layer.out_features
    return 1, layer.num_embeddings if isinstance(layer, nn.Embedding) else 1


def _block_gradients(layer_block: LayerBlock, call: LayerCall, b: int) -> AbstractGradients:
    """The gradients of a block from one call of its layer, one for each of b samples."""
    layer, (groups, rows, _) = layer_block.layer, layer_block.slot.form

    def samples(values: Tensor) -> Tensor:
        return by_sample(values, layer_block, b)

    if isinstance(layer, NORMALISATIONS):
        parts = [] if layer_block.bias_alone else [_features(layer, _normalised(layer, call.inputs) * call.gradient)]
        parts += [_features(layer, call.gradient)] if layer_block.bias_alone or len(layer_block.slot.names) == 2 else []
        return summed(samples(torch.cat(parts, dim=-1).unsqueeze(-2)))
    if isinstance(layer, nn.Embedding):
        read = samples(call.inputs[..., None, None])[0, :, :, 0]
        gradient = call.gradient
        if layer.padding_idx is not None:
            gradient = gradient * (call.inputs != layer.padding_idx).unsqueeze(-1)
        return EmbeddingGradients(read, samples(gradient.unsqueeze(-2)), layer.num_embeddings)
    gradient = _features(layer, call.gradient)
    if layer_block.bias_alone:
        return summed(samples(gradient.unsqueeze(-2)))
    columns = _columns(layer, call.inputs)
    if len(layer_block.slot.names) == 2:
        columns = functional.pad(columns, (0, 1), value=1.0)
    return OuterProducts(samples(gradient.unflatten(-1, (groups, rows))), samples(columns))


def _features(layer: nn.Module, values: Tensor) -> Tensor:
    """Features last and flat."""
    if isinstance(layer, (*CONVOLUTIONS, *OVER_CHANNELS)):
        return values.movedim(1, -1)
    if isinstance(layer, nn.MultiheadAttention):
        return values.flatten(-2)
    return values.flatten(-len(layer.normalized_shape)) if isinstance(layer, OVER_FEATURES) else values


def _columns(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs that a layer multiplies its weight with at each position: `(..., g, c)`."""
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
    """The output of a normalisation before its own scale and shift."""
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return functional.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    assert isinstance(layer, OVER_CHANNELS[:2])
    return functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
