"""Which parameters count as trained, and the way between named tensors and one flat vector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ._errors import ParameterError
from ._types import Params


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


def coarseness(params: Params) -> float:
    """The relative rounding error of the least precise of some tensors."""
    return max(torch.finfo(tensor.dtype).eps for tensor in params.values())


def trained_parameters(model: nn.Module, patterns: str | Sequence[str] = "*") -> Params:
    """The parameters of `model` that require gradients and match one of the globs, detached and sharing memory.

    Args:
        model: Any module.
        patterns: Glob or globs over the names of `model.named_parameters()`.

    Returns:
        Named tensors; tied weights appear once.

    Raises:
        ParameterError: If nothing matches.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> list(trained_parameters(net, "1.*"))
        ['1.weight', '1.bias']
    """
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    named = dict(model.named_parameters())
    chosen = {
        name: tensor.detach()
        for name, tensor in named.items()
        if tensor.requires_grad and tensor.is_floating_point() and any(fnmatchcase(name, glob) for glob in globs)
    }
    if chosen:
        return chosen
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
    """A content hash of named tensors: names, shapes, dtypes and every byte."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in named:
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            flat = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
            state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()


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
    return digest_tensors([*model.named_parameters(), *model.named_buffers()])
