"""A model's outputs: along directions, and the square root of what a criterion makes of them, told by products."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.func import grad, vmap

from .._errors import SolveError, UnsupportedError
from .._functional import jvp
from .._types import SampleLoss

DENSE_OUTPUTS = 256  # numbers in one sample's outputs up to which its second derivative is written out


@dataclass(frozen=True, eq=False)
class Roots:
    """What the gradients of one batch's samples are of: outputs, along one direction or several.

    Attributes:
        outputs: `(model, batch) -> (b, ...)`.
        directions: From the values of the outputs to directions of their shape; if they are random, drawn each time.
    """

    outputs: SampleLoss
    directions: Callable[[Tensor], Iterable[Tensor]]

    @classmethod
    def of(cls, scalars: SampleLoss) -> Roots:
        """Numbers `(b,)` themselves."""
        return cls(scalars, lambda z: [torch.ones_like(z)])

    def along(self, direction: Shaped[Tensor, "b *out"]) -> SampleLoss:
        """Each sample's outputs along one direction: `(model, batch) -> (b,)`."""
        return lambda model, batch: (self.outputs(model, batch) * direction).reshape(len(direction), -1).sum(1)


def square_root(criterion: Callable[[Tensor], Tensor], z: Shaped[Tensor, "b *out"]) -> Callable[[Tensor], Tensor]:
    r"""The map $S$ with $S S^\top = \partial^2\ell_i/\partial z_i^2$ for every sample i.

    Criteria that take outputs one by one (squared error, logistic) have a diagonal; softmax cross-entropy has
    $c(\operatorname{diag} p - p p^\top)$ at every position, whose square root is $\sqrt{c}(I - p 1^\top)
    \operatorname{diag}\sqrt{p}$. Both are told by products with random vectors; anything else is factorised.

    Args:
        criterion: Outputs `(b, ...)` to losses `(b,)`, convex.
        z: The outputs.

    Returns:
        Maps `(b, ...)` to `(b, ...)`.

    Raises:
        SolveError: If the criterion is not convex at these outputs.
        UnsupportedError: If it couples more than 256 outputs in a way of its own.

    Example:
        >>> root = square_root(lambda z: 2 * z.square().sum(1), torch.zeros(1, 3))
        >>> root(torch.ones(1, 3))
        tensor([[2., 2., 2.]])
    """
    if not len(z):
        return lambda noise: noise

    def bend(v: Tensor) -> Tensor:
        return jvp(grad(lambda outputs: criterion(outputs).sum()), z, v)

    generator = torch.Generator().manual_seed(0)
    signs = (torch.randint(2, z.shape, generator=generator) * 2 - 1).to(z)
    trial = torch.randn(z.shape, generator=generator).to(z)
    diagonal, bent = bend(signs) * signs, bend(trial)
    if _same(diagonal * trial, bent):
        return _diagonal(diagonal)
    for dim in {z.ndim - 1, 1}:
        p = z.softmax(dim)
        plain = p * trial - p * (p * trial).sum(dim, keepdim=True)
        found, across = ((trial * vector).sum(dim, keepdim=True) for vector in (bent, plain))
        known = across > 10 * torch.finfo(z.dtype).eps  # where one class is certain there is no curvature to scale
        scale = torch.where(known, found / across, 0)
        if _same(scale * plain, bent):
            return _softmax(p, scale, dim)
    return _dense(bend, z)


def _diagonal(diagonal: Tensor) -> Callable[[Tensor], Tensor]:
    _refuse_concave(diagonal)
    root = diagonal.clamp_min(0).sqrt()
    return lambda noise: root * noise


def _softmax(p: Tensor, scale: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    _refuse_concave(scale)
    root = scale.clamp_min(0).sqrt()

    def apply(noise: Tensor) -> Tensor:
        part = p.sqrt() * noise
        return root * (part - p * part.sum(dim, keepdim=True))

    return apply


def _dense(bend: Callable[[Tensor], Tensor], z: Tensor) -> Callable[[Tensor], Tensor]:
    count = z[0].numel()
    if count > DENSE_OUTPUTS:
        raise UnsupportedError(
            f"The criterion couples the {count} outputs of a sample in a way that is neither softmax nor one by one, "
            f"and more than {DENSE_OUTPUTS} are too many to factorise. Use EmpiricalFisher()."
        )
    units = torch.eye(count, dtype=z.dtype, device=z.device)
    columns = vmap(lambda unit: bend(unit.reshape(1, *z.shape[1:]).expand_as(z)))(units)  # (out, b, ...)
    values, vectors = torch.linalg.eigh(columns.reshape(count, len(z), count).movedim(0, 2).double())
    _refuse_concave(values)
    root = (vectors * values.clamp_min(0).sqrt().unsqueeze(1)).to(z)  # (b, out, out)
    return lambda noise: (root @ noise.reshape(len(z), count, 1)).reshape(z.shape)


def _same(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).norm() <= torch.finfo(wanted.dtype).eps ** 0.5 * wanted.norm())


def _refuse_concave(values: Tensor) -> None:
    lowest, size = float(values.min()), float(values.abs().max())
    if lowest < -(torch.finfo(values.dtype).eps ** 0.5) * size:
        raise SolveError(
            f"The criterion is not convex in the outputs: its second derivative has {lowest:.3g} beside values up to "
            f"{size:.3g}, so it has no Fisher matrix. Use EmpiricalFisher(), or curvature=Hessian()."
        )
