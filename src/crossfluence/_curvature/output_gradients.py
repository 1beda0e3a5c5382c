"""Square roots of a criterion's Hessian in the outputs, identified from products, and cotangents made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._risk.criterion import (
    DOUBLED,
    LOST,
    CriterionCurvature,
    dims_of_classes,
    lengths,
    random_direction,
    random_signs,
)
from .._types import SampleLoss
from ..errors import SolveError, UnsupportedError

DENSE_OUTPUTS = 256  # numbers in one sample's outputs up to which its second derivative is written out


@dataclass(frozen=True, eq=False)
class OutputGradients:
    """Output-space cotangents of one batch: each is pulled back to one gradient per sample.

    Attributes:
        outputs: `(model, batch) -> (b, ...)`.
        directions: From the values of the outputs to directions of their shape; if they are random, drawn each time.
    """

    outputs: SampleLoss
    directions: Callable[[Tensor], Iterable[Tensor]]

    @classmethod
    def of(cls, scalars: SampleLoss) -> OutputGradients:
        """Numbers `(b,)` themselves."""
        return cls(scalars, lambda z: [torch.ones_like(z)])

    def along(self, direction: Shaped[Tensor, "b *out"]) -> SampleLoss:
        """Each sample's outputs along one direction: `(model, batch) -> (b,)`."""
        return lambda model, batch: projected(self.outputs(model, batch), direction)


def projected(z: Shaped[Tensor, "b *out"], direction: Shaped[Tensor, "b *out"]) -> Shaped[Tensor, " b"]:
    """Each sample's outputs along a direction.

    Args:
        z: The outputs.
        direction: Of their shape.

    Returns:
        Shape `(b,)`.
    """
    return (z * direction).reshape(len(z), -1).sum(1)


def square_root(criterion: Callable[[Tensor], Tensor], z: Shaped[Tensor, "b *out"]) -> Callable[[Tensor], Tensor]:
    r"""The map $S$ with $S S^\top = \partial^2\ell_i/\partial z_i^2$ for every sample i.

    Criteria that take outputs one by one (squared error, logistic) have a diagonal; softmax cross-entropy has
    $c(\operatorname{diag} p - p p^\top)$ at every position, whose square root is $\sqrt{c}(I - p 1^\top)
    \operatorname{diag}\sqrt{p}$. Both are told by products with random vectors; anything else is factorised. Where
    one class is nearly certain, the products leave it out: then nothing cancels.

    Args:
        criterion: Outputs `(b, ...)` to losses `(b,)`, convex.
        z: The outputs.

    Returns:
        Maps `(b, ...)` to `(b, ...)`.

    Raises:
        SolveError: If the criterion is not convex at these outputs.
        UnsupportedError: If it couples more than 256 outputs in a way of its own, or has no second derivative.

    Example:
        >>> root = square_root(lambda z: 2 * z.square().sum(1), torch.zeros(1, 3))
        >>> root(torch.ones(1, 3))
        tensor([[2., 2., 2.]])
    """
    if not len(z):
        return lambda noise: noise
    bend = CriterionCurvature.of(criterion, z)
    root = _softmax(bend) or _diagonal(bend) or _dense(bend)
    return lambda noise: root(noise.to(torch.promote_types(noise.dtype, bend.z.dtype))).to(z)


def _diagonal(bend: CriterionCurvature) -> Callable[[Tensor], Tensor] | None:
    signs, trial = random_signs(bend.z, 0), random_direction(bend.z)
    diagonal, bent = bend.along(signs) * signs, bend.along(trial)
    if not bent.any():
        bend.refuse_saved()
    if not _same(bend, diagonal * trial, bent, trial):
        return None
    _refuse_concave(bend, diagonal.reshape(len(diagonal), -1), trial)
    root = diagonal.clamp_min(0).sqrt()
    return lambda noise: root * noise


def _softmax(bend: CriterionCurvature) -> Callable[[Tensor], Tensor] | None:
    """Softmax along the last dimension or the second, times one number at every position."""
    for dim in dims_of_classes(bend.z):
        root = _softmax_along(bend, dim)
        if root is not None:
            return root
    return None


def _softmax_along(bend: CriterionCurvature, dim: int) -> Callable[[Tensor], Tensor] | None:
    p = (bend.z.double() if bend.z.numel() <= DOUBLED else bend.z).softmax(dim)
    top = p.argmax(dim, keepdim=True)
    trial = random_direction(p).scatter(dim, top, 0)  # a difference to the largest class: only small terms are added
    plain = p * trial - p * (p * trial).sum(dim, keepdim=True)
    bent = bend.along(trial.to(bend.z)).to(p)
    found, across = ((trial * vector).sum(dim, keepdim=True) for vector in (bent, plain))
    scale = torch.where(across > 0, found / across, 0)
    constant = bend.along(torch.ones_like(bend.z)).to(p)
    cancelling = 100 * bend.rough * lengths(scale * p)  # the terms that make up zero along a constant
    if not (_close(bend, scale * plain, bent) and (lengths(constant) <= cancelling + _floor(bend)).all()):
        return None
    if not bent.any():
        return None
    terms = (trial * bent).abs().sum(dim, keepdim=True)
    if (found < -(bend.rough**0.5) * terms).any():
        _refuse(float(scale.min()), float(scale.abs().max()))
    root = scale.clamp_min(0).sqrt()

    def apply(noise: Tensor) -> Tensor:
        part = p.sqrt() * noise
        part = (part - p * part.sum(dim, keepdim=True)).scatter(dim, top, 0)
        return root * part.scatter(dim, top, -part.sum(dim, keepdim=True))  # the sum is zero: no 1 - p of rounding

    return apply


def _dense(bend: CriterionCurvature) -> Callable[[Tensor], Tensor]:
    z, count = bend.z, bend.z[0].numel()
    if count > DENSE_OUTPUTS:
        raise UnsupportedError(
            f"The criterion couples the {count} outputs of a sample in a way that is neither softmax nor one by one, "
            f"and more than {DENSE_OUTPUTS} are too many to factorise. Use EmpiricalFisher()."
        )
    units = torch.eye(count, dtype=z.dtype, device=z.device).reshape(count, 1, *z.shape[1:])
    columns = bend.along(units.expand(count, *z.shape))  # (out, b, ...)
    matrices = columns.reshape(count, len(z), count).movedim(0, 2).double()
    if not matrices.isfinite().all():
        return lambda noise: noise * torch.nan  # named with its batch by those who check
    matrices = (matrices + matrices.mT) / 2
    if bend.invariant is not None:
        matrices = _balanced(matrices, z.shape[1:], bend.invariant - 1)
    values, vectors = torch.linalg.eigh(matrices)
    _refuse_concave(bend, values, random_direction(z))
    root = (vectors * values.clamp_min(0).sqrt().unsqueeze(1)).to(z)  # (b, out, out)
    return lambda noise: (root @ noise.to(root).reshape(len(z), count, 1)).reshape(z.shape)


def _balanced(matrices: Shaped[Tensor, "b k k"], shape: torch.Size, dim: int) -> Tensor:
    """With the diagonal as what makes the rows add up to zero along a dimension of the outputs."""
    count = matrices.shape[-1]
    place = torch.arange(count, device=matrices.device).reshape(shape)
    position = place.select(dim, 0).unsqueeze(dim).expand(shape).flatten()
    same = position.unsqueeze(0) == position.unsqueeze(1)
    beside = matrices * (same & ~torch.eye(count, dtype=torch.bool, device=matrices.device))
    return matrices - torch.diag_embed(matrices.diagonal(dim1=1, dim2=2) + beside.sum(2))


def _floor(bend: CriterionCurvature) -> float:
    """The size below which numbers of this precision cannot be told from zero."""
    info = torch.finfo(bend.z.dtype)
    return info.tiny / info.eps


def _close(bend: CriterionCurvature, found: Tensor, wanted: Tensor) -> bool:
    """True if they agree, sample by sample."""
    return bool((lengths(found - wanted) <= bend.rough**0.5 * lengths(wanted) + _floor(bend)).all())


def _same(bend: CriterionCurvature, found: Tensor, wanted: Tensor, direction: Tensor) -> bool:
    """The same, with what rounding explains of the difference, if that is a small part."""
    if _close(bend, found, wanted):
        return True
    noise, sizes = bend.noise(direction), lengths(wanted)
    explained = torch.where(noise < LOST * sizes, noise, 0)
    return bool((lengths(found - wanted) <= bend.rough**0.5 * sizes + explained + _floor(bend)).all())


def _refuse_concave(bend: CriterionCurvature, values: Shaped[Tensor, "b k"], direction: Tensor) -> None:
    """Judges each sample's second derivative beside its own size, and beside what rounding does to it."""
    lowest, sizes = values.amin(1), values.abs().amax(1)
    allowed = bend.rough**0.5 * sizes + 64 * bend.rough * sizes.max()
    if (lowest < -allowed).any() and (lowest < -allowed - bend.noise(direction).max()).any():
        worst = (lowest + allowed).argmin()
        _refuse(float(lowest[worst]), float(sizes[worst]))


def _refuse(lowest: float, size: float) -> None:
    raise SolveError(
        f"The criterion is not convex in the outputs: its second derivative has {lowest:.3g} beside values up to "
        f"{size:.3g}, so it has no Fisher matrix. Use EmpiricalFisher(), or curvature=Hessian()."
    )
