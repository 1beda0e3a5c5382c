"""The choice of trained parameters, and the way between named tensors and one flat vector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from xxhash import xxh3_128

from .._require import listed
from .._types import Params
from ..errors import ParameterError, UnsupportedError
from .trained import names_of, refuse_untraceable


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the trained parameters, in the order of `model.named_parameters()`."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, params: Params) -> Layout:
        """Returns the layout of named tensors."""
        tensors = params.values()
        return cls(tuple(params), tuple(t.shape for t in tensors), tuple(t.dtype for t in tensors))

    @property
    def size(self) -> int:
        """The number p of scalars."""
        return sum(shape.numel() for shape in self.shapes)

    def flatten(self, params: Params) -> Shaped[Tensor, "*lead p"]:
        """One vector, of at least single precision, from named tensors; leading dimensions that all share are kept."""
        lead = params[self.names[0]].shape[: params[self.names[0]].ndim - len(self.shapes[0])]
        return wide(torch.cat([params[name].reshape(*lead, -1) for name in self.names], dim=-1))

    def unflatten(self, vector: Shaped[Tensor, "*lead p"]) -> Params:
        """Named tensors from one vector, in the precision of the parameters; the inverse of `flatten`."""
        return {
            name: part.to(dtype) for dtype, (name, part) in zip(self.dtypes, self.split(vector).items(), strict=True)
        }

    def split(self, vector: Shaped[Tensor, "*lead p"]) -> Params:
        """Named tensors from one vector, in its own precision."""
        parts = vector.split([shape.numel() for shape in self.shapes], dim=-1)
        named = zip(self.names, self.shapes, parts, strict=True)
        return {name: part.reshape((*vector.shape[:-1], *shape)) for name, shape, part in named}

    def add(self, vector: Shaped[Tensor, "*lead p"], params: Params, share: float) -> None:
        """Adds a share of named tensors to one vector, in place: nothing of its length is made."""
        for name, part in self.split(vector).items():
            part.add_(params[name], alpha=share)


def wide(tensor: Tensor) -> Tensor:
    """At least single precision, so that sums over samples keep what each adds; whole numbers stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def largest_eps(params: Params) -> float:
    """The relative rounding error of the least precise of some tensors."""
    return max(torch.finfo(tensor.dtype).eps for tensor in params.values())


def trained_parameters(model: nn.Module, patterns: str | Sequence[str] = "*", *, hooked: bool = False) -> Params:
    """The parameters of `model` that require gradients and match one of the globs, detached and sharing memory.

    Args:
        model: Any module.
        patterns: Glob or globs over the names of `model.named_parameters()`; any name of a tied weight will do.
        hooked: Whether the caller takes its steps through the hooks on gradients.

    Returns:
        Named tensors; tied weights appear once, under their first name.

    Raises:
        ParameterError: If nothing matches; if one of them is complex, has a gradient hook, or shares memory with
            another tensor of the model.
        UnsupportedError: If it is not a module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> list(trained_parameters(net, "1.*"))
        ['1.weight', '1.bias']
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedError(f"Got {type(model).__name__} for the model; needed a trained torch.nn.Module.")
    globs = [patterns] if isinstance(patterns, str) else listed(patterns, "params=")
    if not all(isinstance(glob, str) for glob in globs):
        raise ParameterError(f"Got params={patterns!r}; needed a glob or globs over names, such as 'encoder.*'.")
    named, names = dict(model.named_parameters()), names_of(model)
    chosen = {
        name: tensor
        for name, tensor in named.items()
        if tensor.requires_grad and any(fnmatchcase(alias, glob) for glob in globs for alias in names[name])
    }
    refuse_untraceable(model, chosen, hooked=hooked)
    if chosen:
        return {name: tensor.detach() for name, tensor in chosen.items()}
    frozen = sum(not tensor.requires_grad for tensor in named.values())
    raise ParameterError(
        f"No trained parameter of {type(model).__name__} matches params={patterns!r}: it has {len(named)} parameter "
        f"tensors {list(named)[:5]}, of which {frozen} have requires_grad=False. Choose names with globs such as "
        f"params='encoder.*', or call model.requires_grad_(True) if they were trained."
    )


def moving(model: nn.Module, theta: Params) -> Params:
    """1 for every entry that training moves, and 0 for the padding rows of embeddings, whose gradient is always zero.

    Args:
        model: The trained module.
        theta: Its trained parameters.

    Returns:
        Named tensors of the parameters' shapes.
    """
    ones = {name: torch.ones_like(part) for name, part in theta.items()}
    names = {id(part): name for name, part in model.named_parameters()}
    uses = [id(part) for module in model.modules() for part in module.parameters(recurse=False)]
    for module in model.modules():
        row = getattr(module, "padding_idx", None)
        weight = getattr(module, "weight", None)
        name = names.get(id(weight))
        if isinstance(row, int) and isinstance(weight, Tensor) and uses.count(id(weight)) == 1 and name in ones:
            ones[name][row] = 0
    return ones


def put(theta: Params, model: nn.Module) -> None:
    """Writes parameters into a model in place.

    Args:
        theta: Named tensors.
        model: Has parameters of these names and shapes.
    """
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in theta.items():
            named[name].copy_(tensor)


def digest_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """A content hash of named tensors of any layout: names, shapes, dtypes and every byte.

    Args:
        named: Names and tensors.

    Returns:
        32 hexadecimal digits.
    """
    return digest_parts(named)


def digest_parts(named: Iterable[tuple[str, Any]]) -> str:
    """A content hash of named tensors, arrays, numbers and strings, fast enough for every pass over the data.

    Args:
        named: Names and values.

    Returns:
        32 hexadecimal digits.
    """
    state = xxh3_128()
    for name, value in named:
        for head, content in _contents(value):
            state.update(f"{name} {head};".encode())
            state.update(content)
    return state.hexdigest()


def _contents(value: Any) -> Iterator[tuple[str, Any]]:
    """Descriptions and bytes; not copied where they lie in one piece in the memory of the CPU."""
    if isinstance(value, Tensor):
        for part in _strided(value):
            yield f"{tuple(part.shape)}{part.dtype}", _bytes_of(part)
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        yield f"{value.shape}{value.dtype}", value.tobytes()
    else:
        yield type(value).__name__, repr(value.tolist() if isinstance(value, np.ndarray) else value).encode()


def _strided(tensor: Tensor) -> list[Tensor]:
    """The ordinary tensors that a tensor of any layout consists of."""
    tensor = tensor.detach()
    if tensor.is_nested:
        return [part for inner in tensor.unbind() for part in _strided(inner)]
    if flatten := getattr(tensor, "__tensor_flatten__", None):  # of a class of its own, made of several
        return [part for name in flatten()[0] for part in _strided(getattr(tensor, name))]
    if tensor.layout == torch.sparse_coo:
        whole = tensor if tensor.is_coalesced() else tensor.coalesce()
        return [whole.indices(), whole.values(), torch.tensor(whole.shape)]
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values(), torch.tensor(tensor.shape)]
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values(), torch.tensor(tensor.shape)]
    if tensor.layout != torch.strided:
        return [tensor.to_dense()]
    if tensor.is_quantized:
        return [tensor.int_repr(), *_scales(tensor)]
    return [tensor.resolve_conj().resolve_neg()]


def _scales(tensor: Tensor) -> list[Tensor]:
    if tensor.qscheme() in {torch.per_tensor_affine, torch.per_tensor_symmetric}:
        return [torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)]
    return [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]


def _bytes_of(tensor: Tensor) -> Any:
    if not tensor.numel() or tensor.device.type == "meta":
        return b""
    flat = tensor.cpu().reshape(-1)
    if flat.stride(0) != 1:  # one number may have any stride, and calls itself contiguous
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def state_of(model: nn.Module) -> Params:
    """Every parameter and buffer of a model by name, sharing memory with it.

    Args:
        model: Any module.

    Returns:
        Named tensors; `state_dict` leaves some out and holds other things, too.
    """
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def fingerprint(model: nn.Module) -> str:
    """A content hash of a model's parameters and buffers.

    Args:
        model: Any module, on any device.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> before = fingerprint(net)
        >>> _ = net.weight.data.add_(1)
        >>> before == fingerprint(net)
        False
    """
    return digest_tensors(state_of(model).items())
