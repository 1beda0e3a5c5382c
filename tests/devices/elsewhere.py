"""A second device for machines that have none: tensors that say they are on "meta" and compute in the CPU's memory.

PyTorch's own meta device holds no numbers. Here each tensor on it wraps an ordinary one; every operation unwraps,
computes and wraps again, and is as strict as a GPU: tensors of two devices do not mix, but for numbers of no dimension
on the CPU; a generator of the CPU draws nothing elsewhere; NumPy reads nothing elsewhere. So a place that forgets a
device fails as it would on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only, tree_unflatten

DEVICE = torch.device("meta")
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
FETCHES = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
INDEXED = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor, aten._unsafe_index_put.default,
}  # fmt: skip


class Elsewhere(Tensor):
    """A tensor on the other device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.inner = torch.zeros_like(inner) if torch._is_zerotensor(inner) else inner  # those have no memory
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner})"

    @property
    def is_meta(self) -> bool:
        """False: it holds numbers."""
        return False

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor that is elsewhere to numpy. Use Tensor.cpu() first.")


class Factories(TorchDispatchMode):
    """Makes new tensors on the other device, where these are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    flat = [_with_numbers(part) for part in flat]
    there = [part for part in flat if isinstance(part, Elsewhere)]
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    if not there and wanted != DEVICE:
        return func(*args, **kwargs)
    _refuse_mixed(func, flat, there, wanted)
    args, kwargs = tree_unflatten([part.inner if isinstance(part, Elsewhere) else part for part in flat], spec)
    if wanted is not None:
        kwargs["device"] = torch.device("cpu")
    found = func(*args, **kwargs)
    if func in FETCHES or (wanted is not None and wanted != DEVICE):
        return found
    if func is aten.copy_.default:
        return flat[0]
    inplace = {id(part.inner): part for part in there}
    return tree_map_only(Tensor, lambda part: inplace.get(id(part)) if id(part) in inplace else Elsewhere(part), found)


def _with_numbers(part: Any) -> Any:
    """Zeros that forward mode makes without memory, written out; everything else as it is."""
    if isinstance(part, Tensor) and not isinstance(part, Elsewhere) and part.device == DEVICE:
        if not torch._is_zerotensor(part):  # torch.tensor(numbers, device=...) and x[list] make them without memory
            raise RuntimeError(
                "This device cannot do torch.tensor(numbers, device=device) and x[list]; type .to(device)"
            )
        return Elsewhere(torch.zeros(part.shape, dtype=part.dtype))
    return part


def _refuse_mixed(func: Any, flat: list[Any], there: list[Elsewhere], wanted: torch.device | None) -> None:
    generator = next((part for part in flat if isinstance(part, torch.Generator)), None)
    if generator is not None:
        raise RuntimeError(f"{func}: Expected a '{DEVICE}' device type for generator but found 'cpu'")
    if func in MOVES or (func in FETCHES and func is not aten.equal.default):
        return
    here = [part for part in flat if isinstance(part, Tensor) and not isinstance(part, Elsewhere) and part.ndim]
    if func in INDEXED and isinstance(flat[0], Elsewhere):  # indices may be on the CPU, as on a GPU
        here = [part for part in here if part.dtype not in {torch.int64, torch.int32, torch.bool, torch.uint8}]
    if here and there:
        shapes = [tuple(part.shape) for part in here]
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device: {shapes} are on the CPU")


def there(value: Any) -> Any:
    """Tensors, and modules in place, on the other device."""
    if isinstance(value, torch.nn.Module):
        for module in value.modules():
            for held in (module._parameters, module._buffers):
                for name, part in held.items():
                    if part is not None:
                        new = Elsewhere(part.detach().clone())
                        held[name] = torch.nn.Parameter(new, part.requires_grad) if held is module._parameters else new
        return value
    return tree_map(lambda part: Elsewhere(part.clone()) if isinstance(part, Tensor) else part, value)


class opened:  # noqa: N801  # stands in for safetensors' function
    """A file of tensors, which come there if they are asked for there."""

    def __init__(self, name: str, framework: str, device: str) -> None:
        self.file, self.there = safe_open(name, framework=framework, device="cpu"), device == str(DEVICE)

    def __enter__(self) -> opened:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def get_tensor(self, key: str) -> Tensor:
        found = self.file.get_tensor(key)
        return Elsewhere(found) if self.there else found
