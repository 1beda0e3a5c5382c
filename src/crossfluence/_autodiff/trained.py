"""The names of trained parameters, the l2 coefficient of each, and those that cannot be followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..errors import ParameterError, UnsupportedError

Decay: TypeAlias = float | Mapping[str, float]
"""One l2 coefficient, or one for each glob over parameter names; parameters that no glob names have 0."""


Hooks: TypeAlias = dict[str, tuple[Callable[[Tensor], Tensor | None], ...]]
"""What stands between a parameter's gradient and its step, by name."""


def refuse_untraceable(model: nn.Module, chosen: Mapping[str, Tensor], *, hooked: bool = False) -> None:
    """Refuses trained parameters that training moved otherwise than the derivatives of the loss say.

    Args:
        model: Any module.
        chosen: Its trained parameters, as the module holds them.
        hooked: Whether the caller takes its steps through the hooks of `hooks_of`.

    Raises:
        ParameterError: If one of them has no values yet, is complex, has a gradient hook, or shares memory with
            another tensor of the model.
        UnsupportedError: If a process holds parts of them only.
    """
    _refuse_unmade(model)
    refuse_sharded(model)
    _refuse_complex(chosen)
    _refuse_hooks(chosen, hooked)
    _refuse_shared_memory(model, chosen)


def refuse_sharded(model: nn.Module) -> None:
    """Refuses a model whose layers lie in parts on several processes: hooks and fingerprints need them whole.

    Args:
        model: Any module.

    Raises:
        UnsupportedError: If a process holds parts of it only.
    """
    parts = [name for name, tensor in model.named_parameters() if type(tensor.data).__name__ == "DTensor"]
    whole = [name for name, module in model.named_modules() if type(module).__name__ == "FullyShardedDataParallel"]
    if parts or whole:
        what = f"its parameter {parts[0]!r} is a DTensor" if parts else "FullyShardedDataParallel holds it"
        raise UnsupportedError(
            f"The model is sharded: {what}, of which this process has a part. Needed whole layers: build the model "
            f"anew, unsharded, and load get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
            f"torch.distributed.checkpoint.state_dict into it. The ranks of a torchrun job then share the data."
        )


def hooks_of(model: nn.Module) -> Hooks:
    """The hooks on the gradients of a model's parameters, such as masks.

    Args:
        model: Any module.

    Returns:
        By name, for parameters that have some.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> _ = net.bias.register_hook(lambda gradient: 0 * gradient)
        >>> list(hooks_of(net))
        ['bias']
    """
    named = model.named_parameters()
    return {name: tuple(tensor._backward_hooks.values()) for name, tensor in named if tensor._backward_hooks}


def with_hooks(model: nn.Module, hooks: Hooks) -> nn.Module:
    """The model, once hooks are on its parameters: a copy has none of its own."""
    for name, parameter in model.named_parameters():
        for hook in hooks.get(name, ()):
            parameter.register_hook(hook)
    return model


def names_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of each parameter, by its first: a tied weight has several.

    Args:
        model: Any module.

    Returns:
        In the order of `model.named_parameters()`.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].weight = net[0].weight
        >>> names_of(net)["0.weight"]
        ('0.weight', '1.weight')
    """
    found: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(tensor), []).append(name)
    return {names[0]: tuple(names) for names in found.values()}


def held(l2: Decay) -> Decay:
    """A copy, so that a dictionary that changes later changes nothing."""
    return dict(l2) if isinstance(l2, Mapping) else l2


def decays(l2: Decay, names: Mapping[str, Sequence[str]], setting: str = "l2") -> dict[str, float]:
    """The l2 coefficient of each trained parameter.

    Args:
        l2: One number, or one for each glob.
        names: All names of each trained parameter, by its first.
        setting: What it is called in errors.

    Returns:
        By first name; 0 where no glob matches.

    Raises:
        ParameterError: If a coefficient is not a number of zero or more, if a glob matches nothing, or if two globs
            give one parameter different coefficients.

    Example:
        >>> decays({"*weight": 0.01}, {"weight": ["weight"], "bias": ["bias"]})
        {'weight': 0.01, 'bias': 0.0}
    """
    if not isinstance(l2, Mapping):
        return dict.fromkeys(names, _coefficient(setting, l2))
    given = {glob: _coefficient(f"{setting}[{glob!r}]", value) for glob, value in l2.items()}
    matching = _matching(given, names, setting)
    return {name: _one_of(name, matching[name], setting) for name in matching}


def _matching(
    given: Mapping[str, float], names: Mapping[str, Sequence[str]], setting: str
) -> dict[str, dict[str, float]]:
    """The globs that match each parameter, with their coefficients."""
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for glob, value in given.items():
        hits = [name for name, aliases in names.items() if any(fnmatchcase(alias, glob) for alias in aliases)]
        if not hits:
            raise ParameterError(
                f"The glob {glob!r} of {setting} matches none of the {len(names)} trained parameters "
                f"{list(names)[:5]}. Parameters that no glob names have a {setting} of 0; leave it out, or write a "
                f"glob such as '*weight'."
            )
        for name in hits:
            found[name][glob] = value
    return found


def _one_of(name: str, matching: Mapping[str, float], setting: str) -> float:
    if len(set(matching.values())) > 1:
        raise ParameterError(
            f"The parameter {name!r} has several {setting} coefficients, {dict(matching)}. Write globs that do "
            f"not overlap."
        )
    return next(iter(matching.values()), 0.0)


def _coefficient(name: str, value: object) -> float:
    if isinstance(value, Real) and 0 <= float(value) < float("inf"):
        return float(value)
    raise ParameterError(
        f"Got {name}={value!r}; needed a number, zero or more, or one for each glob over parameter names, such as "
        f"{{'*weight': 1e-2}}."
    )


def _refuse_unmade(model: nn.Module) -> None:
    """Lazy parameters and those on the meta device have no values yet."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        lazy = isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))
        if lazy or tensor.is_meta:
            what = "is lazy and has no shape yet" if lazy else "is on the meta device and has no values"
            line = "Call it once, model(x), and train it" if lazy else "Load its values, or build it on a real device"
            raise ParameterError(f"{name!r} {what}: this model was not trained. {line}.")


def _refuse_complex(chosen: Mapping[str, Tensor]) -> None:
    for name, tensor in chosen.items():
        if tensor.is_complex():
            raise ParameterError(
                f"The trained parameter {name!r} is complex ({tensor.dtype}), and derivatives here are those of real "
                f"numbers. Hold its two parts, nn.Parameter(torch.view_as_real(weight)), and make it of them in the "
                f"model: torch.view_as_complex(parts). If it was not trained, call requires_grad_(False) on it, or "
                f"leave it out with params=."
            )


def _refuse_hooks(chosen: Mapping[str, Tensor], hooked: bool) -> None:
    """A hook may mask or scale the gradient that training followed, and no derivative of the loss knows of it."""
    for name, tensor in chosen.items():
        if (tensor._backward_hooks and not hooked) or getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise ParameterError(
                f"The parameter {name!r} has a hook on its gradient, so training may have followed another gradient "
                f"than that of the loss. If the hook only looks, take it off: handle.remove(). If it holds part of the "
                f"parameter, make the trained part an nn.Parameter of its own, and the rest a buffer."
            )


def _refuse_shared_memory(model: nn.Module, chosen: Mapping[str, Tensor]) -> None:
    """Tensors that are one in memory move together in training, and apart in a derivative."""
    everything = [*model.named_parameters(), *model.named_buffers()]
    spans = sorted(_spans(everything), key=lambda span: span[:2])
    for first, (_, end, name, tensor) in enumerate(spans):
        for start, _, other, beside in spans[first + 1 :]:
            if start >= end:
                break
            if (name in chosen or other in chosen) and _overlap(tensor, beside):
                raise ParameterError(
                    f"{name!r} and {other!r} share memory without being one parameter: training moved both together, "
                    f"and they would count as two. Tie them as one nn.Parameter, b.weight = a.weight, or give one of "
                    f"them memory of its own: nn.Parameter(weight.detach().clone())."
                )


def _spans(named: Sequence[tuple[str, Tensor]]) -> Iterator[tuple[int, int, str, Tensor]]:
    """Beginning and end of each tensor in memory, for those that have an address."""
    for name, tensor in named:
        address = _address(tensor)
        if address and tensor.numel():
            yield address, address + _reach(tensor) * tensor.element_size(), name, tensor


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr() if tensor.layout is torch.strided else 0
    except RuntimeError:  # a tensor that only stands for others
        return 0


def _overlap(first: Tensor, second: Tensor) -> bool:
    """True if two tensors, of which the first begins earlier, have a number in common; two columns have none."""
    apart, rest = divmod(second.data_ptr() - first.data_ptr(), first.element_size())
    if first.device != second.device:
        return False
    if rest or first.dtype != second.dtype:
        return True
    seen = torch.zeros(max(_reach(first), apart + _reach(second)), dtype=torch.bool)
    seen.as_strided(first.shape, first.stride()).fill_(True)
    return bool(seen.as_strided(second.shape, second.stride(), apart).any())


def _reach(tensor: Tensor) -> int:
    """Numbers from a tensor's first to its last in memory."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
