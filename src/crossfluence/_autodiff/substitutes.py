"""Exact stand-ins for functions of PyTorch whose derivatives are wrong or missing, or hold what training moved."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint

parametrizations = importlib.import_module("torch.nn.utils.parametrizations")
hooked_weight_norm = importlib.import_module("torch.nn.utils.weight_norm")
hooked_spectral_norm = importlib.import_module("torch.nn.utils.spectral_norm")
SPECTRAL = parametrizations._SpectralNorm
HOOKED_SPECTRAL = hooked_spectral_norm.SpectralNorm


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """A weight of a given norm; the fused function of the CPU has wrong second derivatives."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _spectral_forward(self: Any, weight: Tensor) -> Tensor:
    """Divides by the largest singular value itself; in evaluation mode PyTorch holds its singular vectors constant."""
    if self.training or weight.ndim == 1:
        return _SPECTRAL_FORWARD(self, weight)
    return weight / largest_singular_value(self._reshape_weight_to_matrix(weight))


def _spectral_weight(self: Any, module: Any, do_power_iteration: bool) -> Tensor:
    """The same of the older spectral norm, which works by a hook."""
    if do_power_iteration:
        return _SPECTRAL_WEIGHT(self, module, do_power_iteration)
    weight = getattr(module, f"{self.name}_orig")
    return weight / largest_singular_value(self.reshape_weight_to_matrix(weight))


def largest_singular_value(matrix: Tensor) -> Tensor:
    """The spectral norm, differentiable where the largest singular value is a single one."""
    return torch.linalg.matrix_norm(matrix, 2)


def _kept(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    """Runs a checkpointed function once and keeps its activations, so that it can be differentiated again."""
    return function(*args)


def _kept_generator(function: Callable[..., Any], *settings: Any, **kwargs: Any) -> Iterator[None]:
    yield  # between the two, `checkpoint` runs the function


_SPECTRAL_FORWARD, _SPECTRAL_WEIGHT = SPECTRAL.forward, HOOKED_SPECTRAL.compute_weight
STAND_INS: tuple[tuple[Any, str, Any], ...] = (
    (torch, "_weight_norm", _weight_norm),
    (hooked_weight_norm, "_weight_norm", _weight_norm),
    (SPECTRAL, "forward", _spectral_forward),
    (HOOKED_SPECTRAL, "compute_weight", _spectral_weight),
    (checkpoint.CheckpointFunction, "apply", _kept),
    (checkpoint, "_checkpoint_without_reentrant_generator", _kept_generator),
)
"""Owner, attribute and stand-in; an attribute that a version of PyTorch does not have is passed over."""


@contextlib.contextmanager
def original_functions() -> Iterator[None]:
    """Inside `exact_functions`, PyTorch's own functions once more.

    Yields:
        Nothing.
    """
    SPECTRAL.forward, HOOKED_SPECTRAL.compute_weight = _SPECTRAL_FORWARD, _SPECTRAL_WEIGHT
    try:
        yield
    finally:
        SPECTRAL.forward, HOOKED_SPECTRAL.compute_weight = _spectral_forward, _spectral_weight


@contextlib.contextmanager
def exact_functions() -> Iterator[None]:
    """Puts the stand-ins in place, and the originals back; callers see to it that no other thread computes.

    Yields:
        Nothing.
    """
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in STAND_INS if hasattr(owner, name)]
    for owner, name, stand_in in STAND_INS:
        if hasattr(owner, name):
            setattr(owner, name, stand_in)
    try:
        yield
    finally:
        for owner, name, original in before:
            if original is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, original)
