"""Every trained parameter in a block of the module that owns it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .._types import Params
from .gradients import ParameterBlock
from .layer_calls import AbstractKind, LayerBlock
from .layer_types import LAYERS, NORMALISATIONS, ByType, parts_of, rows_of
from .recognised import Alone, Products, Registered, Scales, Table, recognised_in

EXACT_NUMBERS = 1_024  # in a parameter that no layer explains, up to which its block is exact


def layer_blocks_of(
    model: nn.Module, theta: Params, decay: Mapping[str, float], run: Callable[[], Any]
) -> list[LayerBlock]:
    """Every trained parameter of every module; a bias stands beside its weight unless one of them is shared.

    Args:
        model: The trained module.
        theta: Its trained parameters.
        decay: The l2 term's coefficient by parameter: a bias with another one than its weight stands alone.
        run: Runs the model on a batch: modules are recognised by what they do there.

    Returns:
        Blocks, and the modules that use them. Parameters of the outermost module have none if it is no layer.
    """
    names = {id(tensor): name for name, tensor in model.named_parameters() if name in theta}
    owned = _owners(model, names)
    kinds = recognised_in(model, [module for module in owned if _is_own(module)], run)
    uses = Counter(name for own in owned.values() for name in own.values())
    found: list[LayerBlock] = []
    for module, own in owned.items():
        kind: AbstractKind[Any] = kinds.get(module) or _kind(module)
        if isinstance(kind, Alone) and module is model:
            continue  # differentiating it alone is differentiating the whole
        pairs = _pair(module, kind)
        weight, bias = own.get(pairs[0]), own.get(pairs[1])
        alike = weight and bias and uses[weight] == uses[bias] == 1 and decay.get(weight) == decay.get(bias)
        together = pairs if alike and not isinstance(kind, Registered) else ()
        if together:
            slot = ParameterBlock.of(theta, (own[pairs[0]], own[pairs[1]]), *_form(module, kind, theta, own, pairs[0]),
                                     transposed=_transposed(kind))  # fmt: skip
            found.append(LayerBlock(module, slot, kind, pairs))
        found.extend(_single(module, kind, theta, own, name) for name in own if name not in together)
    return found


def _single(module: nn.Module, kind: AbstractKind[Any], theta: Params, own: Mapping[str, str], name: str) -> LayerBlock:
    """A block of one parameter."""
    weight, bias = _pair(module, kind)
    kind = kind if name in (weight, bias) or isinstance(kind, (Registered, Scales)) else Alone()
    shift = name == bias and isinstance(kind, (ByType, Products))
    form = (1, 1) if shift else _form(module, kind, theta, own, name)
    slot = ParameterBlock.of(theta, (own[name],), *form, transposed=_transposed(kind) and not shift)
    return LayerBlock(module, slot, kind, (name,), bias_alone=shift)


def _owners(model: nn.Module, names: Mapping[int, str]) -> dict[nn.Module, dict[str, str]]:
    """Own parameters of each module; of a module and a part of it that both hold a parameter, the part owns it."""
    owned = {path: (module, own) for path, module in model.named_modules() if (own := _owned(module, names))}
    inside: dict[str, set[str]] = {}
    for path, (_, own) in owned.items():
        above = path
        while above:
            above = above.rpartition(".")[0]
            inside.setdefault(above, set()).update(own.values())
    left = {
        module: {own: name for own, name in held.items() if name not in inside.get(path, ())}
        for path, (module, held) in owned.items()
    }
    return {module: held for module, held in left.items() if held}


def _is_own(module: nn.Module) -> bool:
    """True if a module is of a class of its own, or has a forward of its own."""
    if isinstance(_kind(module), Alone):
        return True
    plain = next((kind for kind in NORMALISATIONS if isinstance(module, kind)), None)
    return plain is not None and not Registered.has(module) and type(module).forward is not plain.forward


def _owned(module: nn.Module, names: Mapping[int, str]) -> dict[str, str]:
    """Names within a module, to names in the model, of its trained parameters; none for what belongs to another."""
    if isinstance(module, (ParametrizationList, torch.jit.ScriptModule)):  # no hooks on the latter
        return {}
    prefix = "parametrizations."
    return {
        own: names[id(part)]
        for own, part in module.named_parameters(remove_duplicate=False)
        if id(part) in names and ("." not in own or (own.startswith(prefix) and own.count(".") == 2))
    }


def _kind(module: nn.Module) -> AbstractKind[Any]:
    if Registered.has(module):
        return Registered()
    if isinstance(module, nn.Embedding) and type(module) is not nn.Embedding:
        return Table()
    return ByType() if isinstance(module, LAYERS) else Alone()


def _pair(module: nn.Module, kind: AbstractKind[Any]) -> tuple[str, str]:
    """Names of what may stand together: a weight and its bias."""
    return parts_of(module) if isinstance(kind, ByType) else ("weight", "bias")


def _transposed(kind: AbstractKind[Any]) -> bool:
    return isinstance(kind, Products) and kind.transposed


def _form(
    module: nn.Module, kind: AbstractKind[Any], theta: Params, own: Mapping[str, str], name: str
) -> tuple[int, int]:
    """Groups, and rows in each."""
    if isinstance(kind, (ByType, Table)):
        return rows_of(module)
    if isinstance(kind, Products):
        return 1, theta[own[name]].shape[1 if kind.transposed else 0]
    part = theta[own[name]]
    if isinstance(kind, Registered) and part.ndim > 1:
        return (part.shape[0], part.shape[1]) if part.ndim == 3 else (1, part.shape[0])
    return form_of(part)


def form_of(parameter: Tensor) -> tuple[int, int]:
    """Groups and rows of a parameter that no layer explains: a stack of matrices is taken apart, a small one a row."""
    if parameter.numel() <= EXACT_NUMBERS or parameter.ndim < 2:
        return 1, 1
    return (parameter.shape[0], parameter.shape[1]) if parameter.ndim == 3 else (1, parameter.shape[0])
