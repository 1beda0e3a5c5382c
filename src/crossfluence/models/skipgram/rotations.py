"""Directions that only rotate the embedding: the loss does not change along them, so they are taken out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotations:
    r"""The tangent space $\{(WA, CA) : A^\top = -A\}$ of the rotations of both tables.

    The loss depends on $W C^\top$ alone, so training determines the tables up to a rotation. Away from a minimum the
    Hessian mixes these directions with others; between the embeddings that differ by more than a rotation, its second
    derivative is that of the projection.

    Attributes:
        tables: W and C, one above the other.
        axes: Eigenvectors of $W^\top W + C^\top C$.
        sizes: Its eigenvalues.

    References:
        Absil, Mahony and Sepulchre, "Optimization algorithms on matrix manifolds", 2008, section 5.3.4.
    """

    tables: Float[Tensor, "N d"]
    axes: Float[Tensor, "d d"]
    sizes: Float[Tensor, " d"]

    @classmethod
    def of(cls, tables: Float[Tensor, "2 V d"]) -> Rotations:
        """The rotations of both tables."""
        stacked = tables.flatten(0, 1)
        sizes, axes = torch.linalg.eigh(stacked.T @ stacked)
        return cls(stacked, axes, sizes)

    def taken_out(self, along: Float[Tensor, "m 2 V d"]) -> Float[Tensor, "m 2 V d"]:
        """What is left of directions after their nearest rotations are subtracted: an orthogonal projection.

        Args:
            along: The directions' parts in W and C.

        Returns:
            The same shape.
        """
        turned = self.axes.T @ (self.tables.T @ along.flatten(1, 2)) @ self.axes  # (m, d, d)
        scale = (self.sizes[:, None] + self.sizes[None, :]).clamp_min(torch.finfo(self.sizes.dtype).tiny)
        angle = self.axes @ ((turned - turned.mT) / scale) @ self.axes.T
        return along - (self.tables @ angle).view(along.shape)
