"""State that training moved beside the parameters, and parameters that it never moved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from .._autodiff.functional import evaluated
from .._autodiff.params import state_of
from .._autodiff.substitutes import SPECTRAL, original_functions
from .._types import Params
from ..errors import ObjectiveError, ParameterError, UnsupportedError
from .looks import Look, random_direction

Value = TypeVar("Value", bound=Any)

STATISTICS = (nn.modules.batchnorm._NormBase,)  # batch and instance normalisation
KEPT = 1 << 30  # bytes of a model that are kept while a question is evaluated for the first time
ROUGH = 1e-2  # share of the loss by which a stored spectral norm may change it


def moved_statistics(model: nn.Module, look: Look) -> tuple[str, ...]:
    """Running statistics that a loss depends on, and that training moved.

    Args:
        model: The trained module, put back as it was.
        look: A loss of a few samples.

    Returns:
        Names of normalisation layers in evaluation mode.

    Raises:
        UnsupportedError: If the loss depends on a buffer of another kind that the model changes in training mode.
    """
    layers = tuple(
        f"{type(module).__name__} {name!r}"
        for name, module in model.named_modules()
        if isinstance(module, STATISTICS) and not module.training and module.running_mean is not None
    )
    _refuse_rough_norm(model, look)
    known = {id(part) for module in model.modules() if _explained(module) for part in module.buffers(recurse=False)}
    buffers = {name: part for name, part in _saved_buffers(model) if id(part) not in known}
    used = _used(look, buffers) if buffers else []
    by_data, by_parameters = _changed_in_training(model, look, used) if used else ([], [])
    if by_parameters:
        raise UnsupportedError(
            f"The loss depends on the buffer {by_parameters[0]!r}, which in training mode follows the parameters and "
            f"in evaluation mode is constant: training moved it along, so derivatives that hold it are wrong. Compute "
            f"it inside forward from the parameters, as it comes out in the end; or, if training did not move it, keep "
            f"the module from changing it."
        )
    return (*layers, *(f"buffer {name!r}" for name in by_data))


def unmoved(model: nn.Module, question: Callable[[], Value]) -> Value:
    """The value of a question, after a check that it leaves the model as it was.

    Args:
        model: The trained module; put back as it was, up to 1 GB.
        question: Evaluates it.

    Returns:
        Its value.

    Raises:
        ObjectiveError: If evaluating it changes a parameter or buffer, or calls `backward`.
        RuntimeError: That of the question, if it is another.
    """
    state = {name: part for name, part in state_of(model).items() if _plain(part)}
    small = sum(part.nbytes for part in state.values()) <= KEPT
    kept = {name: part.detach().clone() for name, part in state.items()} if small else {}
    try:
        found = question()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise ObjectiveError(
            "The question calls backward() itself. It need only return its value, computed from the model that is "
            "passed in; the gradient is taken from outside."
        ) from error
    changed = [name for name, part in kept.items() if not torch.equal(_bits(part), _bits(state[name]))]
    if changed:
        with torch.no_grad():
            for name in changed:
                state[name].copy_(kept[name])
        raise ObjectiveError(
            f"Evaluating the question changes the model itself ({', '.join(changed[:3])}). Compute it from copies, "
            f"such as {changed[0]}.clone(), or call model.eval() first. The model was put back as it was."
        )
    return found


def _plain(tensor: Tensor) -> bool:
    """True for a tensor of numbers in memory, as against sparse, quantised, nested and absent ones."""
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: a NaN is like itself, whatever the type of number."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def refuse_others(model: nn.Module, others: Sequence[Tensor], trained: Collection[str]) -> tuple[Tensor, ...]:
    """Refuses parameters that a loss depends on and the model does not list: training may have moved them.

    Args:
        model: The trained module.
        others: Tensors that ask for gradients, beside the parameters that the model was called with.
        trained: Names of these.

    Returns:
        Those of them that are no parameters.

    Raises:
        ParameterError: If one is a parameter, and not one of the model's; or one that was trained, so that the loss
            knows it beside the model that it was given.
    """
    found = {id(part) for part in others}
    kept = [name for name, part in model.named_parameters() if id(part) in found and name in trained]
    if kept:
        caches = [
            f" ({type(module).__name__}.{name} is such a value)"
            for module in model.modules() for name, value in vars(module).items()
            if isinstance(value, Tensor) and value.grad_fn is not None
        ]  # fmt: skip
        raise ParameterError(
            f"The loss depends on {kept[0]!r} beside the model that it is given: by a value that was computed from it "
            f"before and kept{caches[0] if caches else ''}, or by another variable for it. No derivative follows that. "
            f"Compute it anew in each call, from the first argument of the loss, or empty the cache first."
        )
    own = {id(part) for part in model.parameters()}
    beside = [part for part in others if id(part) not in own]
    hidden = [tuple(part.shape) for part in beside if isinstance(part, nn.Parameter)]
    if hidden:
        lists = [
            f"{type(module).__name__}.{name} is a plain {type(value).__name__}"
            for module in model.modules()
            for name, value in vars(module).items()
            if not name.startswith("_") and isinstance(value, (list, tuple, dict)) and _holds_modules(value)
        ]
        found = f" ({lists[0]}: make it an nn.ModuleList or nn.ModuleDict)" if lists else ""
        raise ParameterError(
            f"The loss depends on {len(hidden)} parameters that model.parameters() does not list, the first of shape "
            f"{hidden[0]}{found}, and what training did to them would be left out. Give Risk one module that holds "
            f"them all: nn.ModuleDict({{'model': model, 'other': other}}), with loss = lambda both, batch: ... If "
            f"training did not move them, say so: other.requires_grad_(False)."
        )
    return tuple(beside)


def _holds_modules(value: Iterable[Any]) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return any(isinstance(part, (nn.Module, nn.Parameter)) for part in parts)


def _explained(module: nn.Module) -> bool:
    """Layers whose buffers are noted, or never read because an exact function stands in."""
    return _spectral(module) or isinstance(module, STATISTICS)


def _spectral(module: nn.Module) -> bool:
    hooked = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    return hooked or isinstance(module, SPECTRAL)


def _refuse_rough_norm(model: nn.Module, look: Look) -> None:
    """Spectral norm is computed exactly here, so what the model stored must be near it."""
    if not any(map(_spectral, model.modules())):
        return

    def losses() -> Tensor:
        return evaluated(lambda: look.terms(look.theta, look.theta))

    exact = losses()
    with original_functions():
        stored = losses()
    if float((exact - stored).abs().max()) > ROUGH * float(exact.abs().max()):
        raise UnsupportedError(
            f"The spectral norms that the model stores are rough: with exact ones the loss is {float(exact[0]):.6g} "
            f"where it is {float(stored[0]):.6g}. Let the power iteration converge before: model.train(), some "
            f"forward passes under torch.no_grad(), model.eval()."
        )


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers of floating point that a saved model holds: statistics are, tables that can be made anew are not."""
    for prefix, module in model.named_modules():
        for name, part in module.named_buffers(recurse=False):
            if part.is_floating_point() and part.numel() and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}".lstrip("."), part


def _used(look: Look, buffers: dict[str, Tensor]) -> list[str]:
    """The buffers that the loss depends on."""
    tracked = {name: part.detach().clone().requires_grad_() for name, part in buffers.items()}
    terms = look.with_buffers(tracked)
    if terms is None or not terms.requires_grad:
        return []
    found = torch.autograd.grad([terms], list(tracked.values()), [torch.ones_like(terms)], allow_unused=True)
    return [name for name, part in zip(tracked, found, strict=True) if part is not None and part.any()]


def _changed_in_training(model: nn.Module, look: Look, names: list[str]) -> tuple[list[str], list[str]]:
    """Those of the buffers that a pass in training mode changes: by the data alone, and with the parameters."""
    direction = random_direction(look.layout, look.theta, 0)
    other = {name: part + 0.1 * look.layout.split(direction)[name] for name, part in look.theta.items()}
    before = {name: part.clone() for name, part in model.named_buffers() if name in names}
    here, there = (_after_training_pass(model, look, theta) for theta in (look.theta, other))
    if here is None or there is None:
        return [], []
    changed = [name for name, part in before.items() if not torch.equal(part, here[name])]
    following = [name for name in before if not torch.equal(here[name], there[name])]
    return [name for name in changed if name not in following], following


def _after_training_pass(model: nn.Module, look: Look, theta: Params) -> dict[str, Tensor] | None:
    """All buffers after a pass in training mode; everything is put back. Nothing, if the model cannot be run in it."""
    modes = [(module, module.training) for module in model.modules()]
    kept = [
        (module, name, part, part.clone())
        for module in model.modules()
        for name, part in module._buffers.items()
        if part is not None
    ]
    try:
        for module, _ in modes:
            module.training = True
        evaluated(lambda: look.terms(theta, theta))
        return {name: part.clone() for name, part in model.named_buffers()}
    except Exception:
        return None
    finally:
        with torch.no_grad():
            for module, name, part, content in kept:
                module._buffers[name] = part
                part.copy_(content)
        for module, mode in modes:
            module.training = mode
