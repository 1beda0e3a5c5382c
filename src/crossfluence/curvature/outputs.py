"""A model's outputs: along directions, and the square root of what a criterion makes of them, told by products."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .._errors import SolveError, UnsupportedError
from .._types import Batch, SampleLoss

DENSE_OUTPUTS = 256  # numbers in one sample's outputs up to which its second derivative is written out
DOUBLED = 2**24  # numbers in a batch's outputs up to which a criterion is differentiated in double precision
LOST = 0.1  # share of a criterion's derivative that rounding may take


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


@dataclass(frozen=True, eq=False)
class Bend:
    """A criterion's first two derivatives at the outputs of a batch, in double precision where it takes that.

    Attributes:
        criterion: Outputs `(b, ...)` to losses `(b,)`.
        z: The outputs, as they are differentiated.
        rough: The larger of the relative rounding errors of the outputs as they came, and of the losses.
    """

    criterion: Callable[[Tensor], Tensor]
    z: Shaped[Tensor, "b *out"]
    rough: float

    @classmethod
    def of(cls, criterion: Callable[[Tensor], Tensor], z: Shaped[Tensor, "b *out"]) -> Bend:
        """Tries double precision first: what a confident model leaves over is a small difference of large terms."""
        wide = z.detach().double() if z.numel() <= DOUBLED else z.detach()
        try:
            losses = criterion(wide)
        except Exception:  # it holds tensors of its own precision, or the device has no other
            wide = z.detach()
            losses = criterion(wide)
        return cls(criterion, wide, max(torch.finfo(kind).eps for kind in (z.dtype, wide.dtype, losses.dtype)))

    def gradient(self, z: Tensor, twice: bool = False) -> Tensor:
        """The first derivative at some outputs; zeros where the losses do not depend on them."""
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            losses = self.criterion(z)
            if not losses.requires_grad:
                return torch.zeros_like(z)
            found = torch.autograd.grad(losses.sum(), z, create_graph=twice, allow_unused=True)[0]
        return torch.zeros_like(z) if found is None else found

    @cached_property
    def along(self) -> Callable[[Tensor], Tensor]:
        """Products of the second derivative with directions `(b, ...)`, or with several `(k, b, ...)`."""
        return self._at(self.z)

    def _at(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        point = z.detach().requires_grad_()
        slope = self.gradient(point, twice=True)
        return lambda directions: _second(slope, point, directions)

    def noise(self, direction: Tensor) -> Shaped[Tensor, " b"]:
        """What rounding does to products with a direction: how far they move with the last digits of the outputs."""
        plain, found = self.along(direction), torch.zeros(len(self.z), dtype=self.z.dtype, device=self.z.device)
        for seed in (1, 2):
            moved = self.z * (1 + 4 * self.rough * _signs(self.z, seed))
            found = found.maximum(_lengths(self._at(moved)(direction) - plain))
        return 8 * found

    def refuse_saved(self) -> None:
        """Refuses a criterion that works its derivative out beforehand, so that no second derivative is left."""
        step = 1e-2 * (1 + self.z.abs()) * _signs(self.z, 3)
        here, there = self.gradient(self.z), self.gradient(self.z + step)
        moved = _lengths(there - here) > 1e-5 * _lengths(here)
        if int(moved.sum()) * 2 > len(moved):  # a kink between them, as in a hinge loss, moves a few
            raise UnsupportedError(
                "The criterion has no second derivative, yet its first one changes with the outputs: a Function of "
                "its own saves the derivative in forward(). Write the criterion in plain torch, or use "
                "EmpiricalFisher()."
            )


def _second(slope: Tensor, z: Tensor, directions: Tensor) -> Tensor:
    many = directions.ndim > z.ndim
    if not slope.requires_grad:  # linear in the outputs
        return torch.zeros_like(directions)

    def once(direction: Tensor, batched: bool = False) -> Tensor:
        found = torch.autograd.grad(
            slope, z, direction, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )[0]
        return torch.zeros_like(direction) if found is None else found

    try:
        if not many:
            return once(directions)
        try:
            return once(directions, batched=True)
        except RuntimeError:  # a derivative that cannot be vectorised
            return torch.stack([once(direction) for direction in directions])
    except RuntimeError as error:
        raise UnsupportedError(
            f"The criterion cannot be differentiated twice, as a Fisher matrix needs ({_first_line(error)}). Write it "
            f"in plain torch, or use EmpiricalFisher()."
        ) from error


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
    bend = Bend.of(criterion, z)
    root = _softmax(bend) or _diagonal(bend) or _dense(bend)
    return lambda noise: root(noise.to(torch.promote_types(noise.dtype, bend.z.dtype))).to(z)


def of_batch(criterion: Callable[[Tensor, Batch], Tensor], batch: Batch) -> Callable[[Tensor], Tensor]:
    """A criterion as a function of the outputs alone; what it is given is in their precision if it insists.

    Args:
        criterion: `(outputs, batch) -> (b,)`.
        batch: One of the data.

    Returns:
        Outputs `(b, ...)` to losses `(b,)`.
    """

    def of(z: Tensor) -> Tensor:
        try:
            return criterion(z, batch)
        except RuntimeError:
            like = tree_map_only(Tensor, lambda part: part.to(z) if part.is_floating_point() else part, batch)
            return criterion(z, like)

    return of


def lost_to_rounding(
    criterion: Callable[[Tensor], Tensor], z: Shaped[Tensor, "b *out"], weights: Shaped[Tensor, " b"]
) -> Tensor:
    """How much of a criterion's derivative the precision of the outputs takes.

    Args:
        criterion: Outputs `(b, ...)` to losses `(b,)`.
        z: The outputs.
        weights: One for each sample.

    Returns:
        Shape `(2,)`: the squared length of what is lost, and that of the derivative in double precision.
    """
    bend = Bend.of(criterion, z)
    if bend.z.dtype == z.dtype:
        return torch.zeros(2, dtype=torch.float64)
    fine, coarse = bend.gradient(bend.z), bend.gradient(z.detach())
    return torch.stack([(_lengths(part) * weights).square().sum().double().cpu() for part in (coarse - fine, fine)])


def refuse_lost(lost: Shaped[Tensor, "2"], dtype: torch.dtype) -> None:
    """Refuses outputs too confident for their precision.

    Args:
        lost: Sums of `lost_to_rounding` over the data.
        dtype: Of the outputs.

    Raises:
        SolveError: If rounding takes more than a tenth of the derivative.
    """
    share = float((lost[0] / lost[1]).sqrt()) if lost[1] else 0.0
    if share > LOST:
        raise SolveError(
            f"The model is so sure of its training samples that the precision of its outputs ({str(dtype)[6:]}) loses "
            f"{share:.0%} of the derivative of the criterion to rounding. Use float64: model.double(), and the data "
            f"with it."
        )


def _diagonal(bend: Bend) -> Callable[[Tensor], Tensor] | None:
    signs, trial = _signs(bend.z, 0), _trial(bend.z)
    diagonal, bent = bend.along(signs) * signs, bend.along(trial)
    if not bent.any():
        bend.refuse_saved()
    if not _same(bend, diagonal * trial, bent, trial):
        return None
    _refuse_concave(bend, diagonal.reshape(len(diagonal), -1), trial)
    root = diagonal.clamp_min(0).sqrt()
    return lambda noise: root * noise


def _softmax(bend: Bend) -> Callable[[Tensor], Tensor] | None:
    """Softmax along the last dimension or the second, times one number at every position."""
    for dim in {bend.z.ndim - 1, 1} & set(range(1, bend.z.ndim)):
        root = _softmax_along(bend, dim)
        if root is not None:
            return root
    return None


def _softmax_along(bend: Bend, dim: int) -> Callable[[Tensor], Tensor] | None:
    p = (bend.z.double() if bend.z.numel() <= DOUBLED else bend.z).softmax(dim)
    top = p.argmax(dim, keepdim=True)
    trial = _trial(p).scatter(dim, top, 0)  # a difference to the largest class: only small terms are added
    plain = p * trial - p * (p * trial).sum(dim, keepdim=True)
    bent = bend.along(trial.to(bend.z)).to(p)
    found, across = ((trial * vector).sum(dim, keepdim=True) for vector in (bent, plain))
    scale = torch.where(across > 0, found / across, 0)
    constant = bend.along(torch.ones_like(bend.z)).to(p)
    cancelling = 100 * bend.rough * _lengths(scale * p)  # the terms that make up zero along a constant
    if not (_close(bend, scale * plain, bent) and (_lengths(constant) <= cancelling + _floor(bend)).all()):
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


def _dense(bend: Bend) -> Callable[[Tensor], Tensor]:
    z, count = bend.z, bend.z[0].numel()
    if count > DENSE_OUTPUTS:
        raise UnsupportedError(
            f"The criterion couples the {count} outputs of a sample in a way that is neither softmax nor one by one, "
            f"and more than {DENSE_OUTPUTS} are too many to factorise. Use EmpiricalFisher()."
        )
    units = torch.eye(count, dtype=z.dtype, device=z.device).reshape(count, 1, *z.shape[1:])
    columns = bend.along(units.expand(count, *z.shape))  # (out, b, ...)
    matrices = columns.reshape(count, len(z), count).movedim(0, 2).double()
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    _refuse_concave(bend, values, _trial(z))
    root = (vectors * values.clamp_min(0).sqrt().unsqueeze(1)).to(z)  # (b, out, out)
    return lambda noise: (root @ noise.to(root).reshape(len(z), count, 1)).reshape(z.shape)


def _trial(z: Tensor) -> Tensor:
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)


def _signs(z: Tensor, seed: int) -> Tensor:
    return (torch.randint(2, z.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(z)


def _lengths(vectors: Shaped[Tensor, "b *out"]) -> Shaped[Tensor, " b"]:
    return vectors.reshape(len(vectors), -1).norm(dim=1)


def _floor(bend: Bend) -> float:
    """What numbers of this precision can no longer tell from zero."""
    info = torch.finfo(bend.z.dtype)
    return info.tiny / info.eps


def _close(bend: Bend, found: Tensor, wanted: Tensor) -> bool:
    """Whether they agree, sample by sample."""
    return bool((_lengths(found - wanted) <= bend.rough**0.5 * _lengths(wanted) + _floor(bend)).all())


def _same(bend: Bend, found: Tensor, wanted: Tensor, direction: Tensor) -> bool:
    """The same, with what rounding explains of the difference, if that is a small part."""
    if _close(bend, found, wanted):
        return True
    noise, sizes = bend.noise(direction), _lengths(wanted)
    explained = torch.where(noise < LOST * sizes, noise, 0)
    return bool((_lengths(found - wanted) <= bend.rough**0.5 * sizes + explained + _floor(bend)).all())


def _refuse_concave(bend: Bend, values: Shaped[Tensor, "b k"], direction: Tensor) -> None:
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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:120].rstrip(". ")
