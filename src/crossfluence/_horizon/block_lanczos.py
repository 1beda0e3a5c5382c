"""Block Lanczos: functions of two symmetric matrices of which only products are known, in one Krylov subspace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._solvers.krylov import orthogonalised

Halves: TypeAlias = Callable[[Shaped[Tensor, "k p"]], tuple[Tensor, Tensor]]
"""Rows to their products with two matrices, of which the mean is meant."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """The Krylov subspace of a block of vectors.

    Attributes:
        basis: Orthonormal rows.
        halves: The two matrices in it, in float64.
        inside: Coordinates of the vectors that it began with, shape `(m, k)`, in float64.
        steps: Products for each vector.
        share: Of the solution in the last step's directions, at most.
    """

    basis: Shaped[Tensor, "k p"]
    halves: tuple[Float[Tensor, "k k"], Float[Tensor, "k k"]]
    inside: Float[Tensor, "m k"]
    steps: int
    share: float

    @property
    def whole(self) -> Float[Tensor, "k k"]:
        """Their mean."""
        return (self.halves[0] + self.halves[1]) / 2


def block_lanczos(
    products: Halves, vectors: Shaped[Tensor, "m p"], function: Callable[[Tensor], Tensor], *, rtol: float, steps: int
) -> Subspace:
    """Builds the subspace until a function of the mean matrix, applied to the vectors, hardly changes.

    Every row is made orthogonal to all earlier ones, and rows that depend on others are left out: in as many
    dimensions as there are, the result is exact.

    Args:
        products: Of rows with the two halves.
        vectors: One in each row.
        function: Of eigenvalues.
        rtol: Stops where the last step's directions have at most this share of each result.
        steps: Products to take at most for each vector.

    Returns:
        The subspace.

    References:
        Golub and Underwood, "The block Lanczos method for computing eigenvalues", 1977; Saad, "Analysis of some Krylov
        subspace approximations to the matrix exponential operator", 1992.
    """
    sizes = vectors.norm(dim=1, keepdim=True)
    units = torch.where(sizes > 0, vectors / sizes, 0)
    block, basis = _orthonormal(units, vectors.new_zeros(0, vectors.shape[1])), vectors.new_zeros(0, vectors.shape[1])
    halves, found = (_empty(vectors), _empty(vectors)), None
    for step in tqdm(range(steps), desc="block Lanczos", unit="step", disable=None, leave=False):
        if not len(block):
            break
        images = products(block)
        basis = torch.cat([basis, block])
        halves = _grown(halves[0], basis, images[0]), _grown(halves[1], basis, images[1])
        inside = (vectors @ basis.T).double()
        share = _share(function, (halves[0] + halves[1]) / 2, inside, len(block))
        block = _orthonormal((images[0] + images[1]) / 2, basis)
        found = Subspace(basis, halves, inside, step + 1, 0.0 if not len(block) else share)
        if step and share <= rtol:
            break
    if found is None:  # nothing but zeros was asked
        return Subspace(basis, halves, vectors.new_zeros(len(vectors), 0).double(), 0, 0.0)
    return found


def function_within(core: Float[Tensor, "k k"], function: Callable[[Tensor], Tensor], inside: Tensor) -> Tensor:
    """A function of a small symmetric matrix times rows."""
    values, turned = torch.linalg.eigh(core)
    return (inside @ turned * function(values)) @ turned.T


def _empty(like: Tensor) -> Tensor:
    return torch.zeros(0, 0, dtype=torch.float64, device=like.device)


def _grown(core: Tensor, basis: Tensor, image: Tensor) -> Tensor:
    """The matrix in a basis that the last rows were added to, from products with these."""
    columns = (basis @ image.T).double()  # (k, new)
    before = len(core)
    core = torch.nn.functional.pad(core, (0, len(basis) - before, 0, len(basis) - before))
    core[:, before:], core[before:, :before] = columns, columns[:before].T
    corner = core[before:, before:]
    core[before:, before:] = (corner + corner.T) / 2
    return core


def _share(function: Callable[[Tensor], Tensor], core: Tensor, inside: Tensor, last: int) -> float:
    found = function_within(core, function, inside)
    sizes = found.norm(dim=1).clamp_min(torch.finfo(found.dtype).tiny)
    return float((found[:, -last:].norm(dim=1) / sizes).max()) if len(found) else 0.0


def _orthonormal(rows: Shaped[Tensor, "k p"], basis: Shaped[Tensor, "r p"]) -> Shaped[Tensor, "k2 p"]:
    """An orthonormal basis of some rows, one after the other; rows that are zero to rounding are left out."""
    sizes, tolerance, before = rows.norm(dim=1), 100 * torch.finfo(rows.dtype).eps, len(basis)
    rest, _ = orthogonalised(rows, basis.unsqueeze(0).expand(len(rows), -1, -1))
    for row, size in zip(rest, sizes, strict=True):
        if not size > 0 or len(basis) == rows.shape[1]:
            continue
        left, _ = orthogonalised(row.unsqueeze(0), basis.unsqueeze(0))
        if left.norm() > tolerance * size:
            basis = torch.cat([basis, left / left.norm()])
    return basis[before:]
