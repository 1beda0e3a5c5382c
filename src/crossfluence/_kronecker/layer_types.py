"""Layers by type: which parameters each has, and each sample's gradient of them. The only file that knows types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.nn import functional

from .._autodiff.params import wide
from .._types import Params
from ..errors import UnsupportedError
from .gradients import AbstractGradients, EmbeddingGradients, OuterProducts, ParameterBlock

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
OVER_FEATURES, OVER_CHANNELS = (nn.LayerNorm, nn.RMSNorm), (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
NORMALISATIONS = (*OVER_FEATURES, *OVER_CHANNELS)
LAYERS = (nn.Linear, *CONVOLUTIONS, nn.Embedding, *NORMALISATIONS, nn.MultiheadAttention)


@dataclass(frozen=True, eq=False)
class LayerBlock:
    """Parameters of one layer that make up a block, or one use of a block that several layers share.

    Attributes:
        layer: The module.
        slot: The block.
        samples: Which dimension of the layer's input counts the samples; `None` if all samples share one call, as
            they do with embeddings of positions.
        bias_alone: Whether the block is the bias without the weight.
    """

    layer: nn.Module
    slot: ParameterBlock
    samples: int | None = 0
    bias_alone: bool = False


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer: what went in, and the gradient that came back to what went out."""

    layer: nn.Module
    inputs: Tensor
    gradient: Tensor


def record_calls(
    layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], gradient: Tensor
) -> list[LayerCall]:
    """A layer's call, or what it is made of.

    Args:
        layer: The module.
        args: What it was called with.
        kwargs: The same by name.
        gradient: Of what came out.

    Returns:
        Calls, in at least single precision; none if the layer cannot be taken apart.
    """
    if isinstance(layer, nn.MultiheadAttention):
        return _attention(layer, args, kwargs, gradient)
    return [LayerCall(layer, wide((*args, *kwargs.values())[0].detach()), wide(gradient))]


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


def layer_blocks_of(model: nn.Module, theta: Params, decay: Mapping[str, float]) -> list[LayerBlock]:
    """Every trained parameter of every known layer; a bias stands beside its weight unless one of them is shared.

    Args:
        model: The trained module.
        theta: Its trained parameters.
        decay: The l2 term's coefficient by parameter: a bias with another one than its weight stands alone.

    Returns:
        Blocks, and the layers that use them.
    """
    names = {id(tensor): name for name, tensor in model.named_parameters() if name in theta}
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    held = {layer: [names.get(id(getattr(layer, part, None))) for part in _parts(layer)] for layer in layers}
    uses = Counter(name for own in held.values() for name in own)
    layer_blocks = []
    for layer, (weight, bias) in held.items():
        if weight and bias and uses[weight] == uses[bias] == 1 and decay.get(weight) == decay.get(bias):
            layer_blocks.append(LayerBlock(layer, ParameterBlock.of(theta, (weight, bias), *_rows(layer))))
            continue
        if weight:
            layer_blocks.append(LayerBlock(layer, ParameterBlock.of(theta, (weight,), *_rows(layer))))
        if bias:
            layer_blocks.append(LayerBlock(layer, ParameterBlock.of(theta, (bias,), 1, 1), bias_alone=True))
    return layer_blocks


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


def block_gradients(layer_block: LayerBlock, call: LayerCall, b: int) -> AbstractGradients:
    """The gradients of a block from one call of its layer.

    Args:
        layer_block: Layer and block.
        call: What went in, and the gradient of what went out.
        b: The number of samples.

    Returns:
        One for each sample.

    Raises:
        UnsupportedError: If the input does not divide into samples.
    """
    layer, (groups, rows, _) = layer_block.layer, layer_block.slot.form

    def by_sample(values: Tensor) -> Tensor:
        """From `(..., g, d)`, with the samples somewhere before, to `(g, b, t, d)`."""
        try:
            return values.movedim(layer_block.samples or 0, 0).reshape(b, -1, *values.shape[-2:]).permute(2, 0, 1, 3)
        except (RuntimeError, IndexError) as error:
            raise UnsupportedError(
                f"{type(layer).__name__} of {layer_block.slot.names} got an input of shape {tuple(call.inputs.shape)}, "
                f"which does not divide into the {b} samples of the batch. Keep the samples in one dimension of it."
            ) from error

    if isinstance(layer, NORMALISATIONS):
        parts = [] if layer_block.bias_alone else [_features(layer, _normalised(layer, call.inputs) * call.gradient)]
        parts += [_features(layer, call.gradient)] if layer_block.bias_alone or len(layer_block.slot.names) == 2 else []
        return _summed(by_sample(torch.cat(parts, dim=-1).unsqueeze(-2)))
    if isinstance(layer, nn.Embedding):
        read = by_sample(call.inputs[..., None, None])[0, :, :, 0]
        gradient = call.gradient
        if layer.padding_idx is not None:
            gradient = gradient * (call.inputs != layer.padding_idx).unsqueeze(-1)
        return EmbeddingGradients(read, by_sample(gradient.unsqueeze(-2)), layer.num_embeddings)
    gradient = _features(layer, call.gradient)
    if layer_block.bias_alone:
        return _summed(by_sample(gradient.unsqueeze(-2)))
    columns = _columns(layer, call.inputs)
    if len(layer_block.slot.names) == 2:
        columns = functional.pad(columns, (0, 1), value=1.0)
    return OuterProducts(by_sample(gradient.unflatten(-1, (groups, rows))), by_sample(columns))


def _summed(gradients: Tensor) -> OuterProducts:
    """Gradients `(1, b, t, c)` whose sum over positions counts."""
    return OuterProducts(torch.ones_like(gradients[..., :1]), gradients)


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
