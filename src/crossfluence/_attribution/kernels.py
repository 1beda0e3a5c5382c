"""Kernels between training samples and queries: last-layer features, tangents, tangents in the metric of curvature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from .._default.auto import Auto
from .._risk.risk import Risk
from .._solvers.base import AbstractInverse, AbstractSolver, inverse_of
from ..errors import ParameterError, UnsupportedError


class AbstractKernel(ABC):
    """Similarity of two samples' outputs, from their gradients by the trained parameters."""

    @abstractmethod
    def metric(self, risk: Risk) -> AbstractMetric:
        """The matrix between the two gradients, at one trained model."""


class AbstractMetric(ABC):
    """A symmetric matrix between gradients.

    Attributes:
        method: How it came about.
    """

    method: str

    @abstractmethod
    def product(self, gradients: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """The matrix times each row."""

    @abstractmethod
    def unexplained(self, theta: Shaped[Tensor, " p"], gradients: Shaped[Tensor, "m p"]) -> Shaped[Tensor, " m"]:
        """The part of each query's value that lies in parameters without l2, which no sample explains."""


@dataclass(frozen=True)
class NTK(AbstractKernel):
    """The tangent kernel of all trained parameters, each direction divided by its l2 coefficient.

    Example:
        >>> NTK()
        NTK()

    References:
        Jacot, Gabriel and Hongler, "Neural tangent kernel", NeurIPS 2018.
    """

    def metric(self, risk: Risk) -> AbstractMetric:
        """One over the l2 coefficients."""
        return _by_decay(risk, torch.ones(risk.p, dtype=torch.bool), "NTK()")


@dataclass(frozen=True)
class LastLayer(AbstractKernel):
    """Products of the inputs of the last linear layer, over the l2 coefficient of its weights.

    Attributes:
        name: Of the layer, such as "head"; default: the last `Linear` of the model.

    Example:
        >>> LastLayer("head").name
        'head'

    References:
        Yeh et al., "Representer point selection for explaining deep neural networks", NeurIPS 2018.
    """

    name: str | None = None

    def metric(self, risk: Risk) -> AbstractMetric:
        """One over the l2 coefficients, for the parameters of the layer."""
        name = self.name if self.name is not None else _last_linear(risk.model)
        prefix = f"{name}." if name else ""
        own = {f"{prefix}weight", f"{prefix}bias"}
        if not own & set(risk.layout.names):
            raise ParameterError(
                f"LastLayer({name!r}) has no parameter among the trained ones {list(risk.layout.names)[:5]}. "
                f"Type LastLayer('NAME') with the name of a trained Linear."
            )
        parts = [
            torch.full((shape.numel(),), label in own)
            for label, shape in zip(risk.layout.names, risk.layout.shapes, strict=True)
        ]
        return _by_decay(risk, torch.cat(parts), f"LastLayer({name!r})")


@dataclass(frozen=True)
class InfluenceKernel(AbstractKernel):
    """The tangent kernel in the metric of the inverse curvature: parts are then the scores of `influence`.

    Attributes:
        solver: How to solve with the curvature, or an inverse computed earlier.

    Example:
        >>> InfluenceKernel().solver
        Auto(damping=0.0)
    """

    solver: AbstractSolver | AbstractInverse = Auto()

    def metric(self, risk: Risk) -> AbstractMetric:
        """The inverse of the curvature."""
        return _Inverse(risk, inverse_of(self.solver, risk))


@dataclass(frozen=True, eq=False)
class _Diagonal(AbstractMetric):
    """A number for each parameter.

    Attributes:
        factors: Of the parameters that take part; 0 for others.
        free: Those that take part and have no l2.
        method: How it came about.
    """

    factors: Tensor
    free: Tensor
    method: str

    def product(self, gradients: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        return gradients * self.factors.to(gradients)

    def unexplained(self, theta: Shaped[Tensor, " p"], gradients: Shaped[Tensor, "m p"]) -> Shaped[Tensor, " m"]:
        return (gradients * self.free.to(gradients)) @ theta


@dataclass(frozen=True, eq=False)
class _Inverse(AbstractMetric):
    """The inverse of the curvature.

    Attributes:
        risk: Where it is solved.
        inverse: Solves.
    """

    risk: Risk
    inverse: AbstractInverse

    @property
    def method(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"InfluenceKernel({self.inverse.solver})"

    def product(self, gradients: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        return self.inverse.solve(self.risk.project(gradients)).vectors

    def unexplained(self, theta: Shaped[Tensor, " p"], gradients: Shaped[Tensor, "m p"]) -> Shaped[Tensor, " m"]:
        return gradients.new_zeros(len(gradients))


def _by_decay(risk: Risk, chosen: Tensor, method: str) -> _Diagonal:
    """One over the l2 coefficient of each parameter that takes part."""
    decay = risk.decay
    coefficients = torch.full((risk.p,), float(decay)) if not isinstance(decay, Tensor) else decay.detach().cpu()
    chosen = chosen & (torch.ones(risk.p) > 0)
    free = chosen & (coefficients == 0)
    if not (chosen & ~free).any():
        raise UnsupportedError(
            f"{method} divides by the l2 coefficient of its parameters, and the risk has none. Train with l2, or type "
            f"kernel=InfluenceKernel() or importance='path'."
        )
    factors = torch.where(chosen & ~free, 1 / coefficients.double().clamp(min=1e-300), 0.0)
    return _Diagonal(factors, free, method)


def plain_metric(risk: Risk, kernel: AbstractKernel) -> AbstractMetric:
    """The metric of a kernel without division by l2, for sums along a path.

    Args:
        risk: The trained model.
        kernel: `NTK` or `LastLayer`.

    Returns:
        Ones for the parameters that take part.

    Raises:
        UnsupportedError: If it is another kernel.
    """
    if not isinstance(kernel, (NTK, LastLayer)):
        raise UnsupportedError(f"importance='path' goes with NTK() or LastLayer(); got {kernel!r}.")
    found = kernel.metric(risk._changed(l2=1.0))
    assert isinstance(found, _Diagonal)
    return _Diagonal(found.factors, torch.zeros_like(found.free), found.method)


def _last_linear(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise UnsupportedError(f"{type(model).__name__} has no Linear layer. Type kernel=NTK().")
    return names[-1]
