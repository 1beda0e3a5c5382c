"""A criterion at the outputs of one batch: its derivatives in double precision, and what rounding takes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .._autodiff.precision import coarsest_precision
from .._data.ranks import ALONE, Ranks
from .._types import Batch
from ..errors import SolveError, UnsupportedError

DOUBLED = 2**24  # numbers in a batch's outputs up to which a criterion is differentiated in double precision
LOST = 0.1  # share of a criterion's derivative that rounding may take


@dataclass(frozen=True, eq=False)
class CriterionCurvature:
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
    def of(cls, criterion: Callable[[Tensor], Tensor], z: Shaped[Tensor, "b *out"]) -> CriterionCurvature:
        """Tries double precision first: what a confident model leaves over is a small difference of large terms."""
        wide = z.detach().double() if z.numel() <= DOUBLED else z.detach()
        try:
            _, rough = coarsest_precision(lambda: criterion(wide))
        except Exception:  # it holds tensors of its own precision, or the device has no other
            wide = z.detach()
            _, rough = coarsest_precision(lambda: criterion(wide))
        return cls(criterion, wide, max(rough, torch.finfo(z.dtype).eps, torch.finfo(wide.dtype).eps))

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
        """Rounding error of products with a direction: how far they move with the last digits of the outputs."""
        plain, found = self.along(direction), torch.zeros(len(self.z), dtype=self.z.dtype, device=self.z.device)
        for seed in (1, 2):
            moved = self.z * (1 + 4 * self.rough * random_signs(self.z, seed))
            found = found.maximum(lengths(self._at(moved)(direction) - plain))
        return 8 * found

    @cached_property
    def invariant(self) -> int | None:
        """A dimension along which all outputs may move together, as logits of a softmax may; `None` if there is none.

        Then derivatives along it add up to zero, and the largest of them needs no difference of large terms.
        """
        with torch.no_grad():
            here, size = self.criterion(self.z), 1 + float(self.z.abs().max())
            for dim in dims_of_classes(self.z):
                shift = random_direction(self.z.narrow(dim, 0, 1))
                gap = (self.criterion(self.z + shift) - here).abs()
                if (gap <= 100 * self.rough * (size + here.abs())).all():
                    return dim
        return None

    def refuse_saved(self) -> None:
        """Refuses a criterion that works its derivative out beforehand, so that no second derivative is left."""
        step = 1e-2 * (1 + self.z.abs()) * random_signs(self.z, 3)
        here, there = self.gradient(self.z), self.gradient(self.z + step)
        moved = lengths(there - here) > 1e-5 * lengths(here)
        if int(moved.sum()) * 2 > len(moved):  # a kink between them, as in a hinge loss, moves a few
            raise UnsupportedError(
                "The criterion has no second derivative, yet its first one changes with the outputs: a Function of "
                "its own saves the derivative in forward(), or is once_differentiable. Write the criterion in plain "
                "torch, or use EmpiricalFisher()."
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


def across(
    criterion: Callable[[Tensor], Tensor],
    z: Shaped[Tensor, "b *out"],
    moves: Shaped[Tensor, "m b *out"],
    weights: Shaped[Tensor, " b"],
) -> Shaped[Tensor, "m b *out"]:
    """Products of a criterion's second derivative with directions of the outputs, as a Gauss-Newton matrix has them.

    Args:
        criterion: Outputs `(b, ...)` to losses `(b,)`.
        z: The outputs.
        moves: Directions of their shape.
        weights: One for each sample.

    Returns:
        One product in each row, in the precision of the outputs.

    Example:
        >>> z, moves = torch.zeros(1, 2), torch.ones(1, 1, 2)
        >>> across(lambda z: 2 * z.square().sum(1), z, moves, torch.ones(1))
        tensor([[[4., 4.]]])
    """
    bend = CriterionCurvature.of(criterion, z)
    return (bend.along(moves.to(bend.z)) * weights.reshape(-1, *[1] * (z.ndim - 1))).to(z)


@dataclass(frozen=True, eq=False)
class Rounding:
    """Adds up over the data how much of a criterion's derivative the precision of the outputs takes.

    Attributes:
        squares: Squared lengths of what is lost, and of the derivative in double precision; changed in place.
        kinds: Precisions of the outputs.
    """

    squares: Shaped[Tensor, "2"] = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    kinds: set[torch.dtype] = field(default_factory=set)

    def add(
        self, criterion: Callable[[Tensor], Tensor], z: Shaped[Tensor, "b *out"], weights: Shaped[Tensor, " b"]
    ) -> None:
        """One batch's outputs, beside double precision; of that itself, what is left of a sum that should be zero."""
        bend = CriterionCurvature.of(criterion, z)
        fine = bend.gradient(bend.z)
        if bend.z.dtype != z.dtype:
            gap = bend.gradient(z) - fine
        elif bend.invariant is not None:
            gap = fine.sum(bend.invariant, keepdim=True)  # nothing, but for rounding
        else:
            return
        parts = ((lengths(part) * weights).square().sum().double().cpu() for part in (gap, fine))
        self.squares.add_(torch.stack(list(parts)))
        self.kinds.add(z.dtype)

    def refuse(self, ranks: Ranks = ALONE) -> None:
        """Refuses outputs too confident for their precision.

        Args:
            ranks: Those that share the data.

        Raises:
            SolveError: If rounding takes more than a tenth of the derivative.
        """
        heard = ranks.told("adding up rounding errors", (self.squares.tolist(), self.kinds))
        lost, whole = (sum(squares[place] for squares, _ in heard) for place in (0, 1))
        share = (lost / whole) ** 0.5 if whole else 0.0
        if share > LOST:
            known = set().union(*(kinds for _, kinds in heard))
            kinds = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in known))
            advice = "Use float64: model.double(), and the data with it"
            if torch.float64 in known:
                advice = (
                    "Write it so that nothing cancels: softplus(logsumexp of the other logits - logit of the class)"
                )
            raise SolveError(
                f"The model is so sure of its training samples that the precision of its outputs ({kinds}) loses "
                f"{share:.0%} of the derivative of the criterion to rounding. {advice}."
            )


def dims_of_classes(z: Tensor) -> list[int]:
    """Dimensions that classes may have: the last, or the one after the samples."""
    return [dim for dim in dict.fromkeys((z.ndim - 1, 1)) if 1 <= dim < z.ndim and z.shape[dim] > 1]


def random_direction(z: Tensor) -> Tensor:
    """Normal numbers of the shape and precision of a tensor, always the same."""
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)


def random_signs(z: Tensor, seed: int) -> Tensor:
    """Plus and minus one, of the shape and precision of a tensor."""
    return (torch.randint(2, z.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(z)


def lengths(vectors: Shaped[Tensor, "b *out"]) -> Shaped[Tensor, " b"]:
    """The norm of each sample's part."""
    return vectors.reshape(len(vectors), -1).norm(dim=1)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:120].rstrip(". ")
