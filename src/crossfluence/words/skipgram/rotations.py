"""Directions that only rotate the embedding: the loss does not change along them, so they are taken out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crossfluence.extend import stored


@stored("Rotations")
@dataclass(frozen=True, eq=False)
class Rotations:
    r"""The tangent space $\{(WA, CA) : A^\top = -A\}$ of the rotations of both tables.

    The loss depends on $W C^\top$ alone, so training determines the tables up to a rotation. Away from a minimum the
    Hessian mixes these directions with others; between the embeddings that differ by more than a rotation, its second
    derivative is that of the projection.

    Attributes:
        tables: Shape `(N, d)`, N = 2V: orthonormal left singular vectors of W on top of C.
        axes: Shape `(d, d)`: its right singular vectors, one in each column.
        shares: Shape `(d, d)`: each singular value over the root of the sum of its square and another's; zero where
            both are zero to rounding, since an axis without length has no direction to turn in.

    References:
        Absil, Mahony and Sepulchre, "Optimization algorithms on matrix manifolds", 2008, section 5.3.4.
    """

    tables: Float[Tensor, "N d"]
    axes: Float[Tensor, "d d"]
    shares: Float[Tensor, "d d"]

    @classmethod
    def of(cls, tables: Float[Tensor, "2 V d"]) -> Rotations:
        """The rotations of two tables."""
        stacked = tables.flatten(0, 1)
        rows, d = stacked.shape
        padding = tables.new_zeros(max(0, d - rows), d)  # at least as many rows as axes, so that there are d vectors
        vectors, sizes, axes = torch.linalg.svd(torch.cat([stacked, padding]), full_matrices=False)
        both = torch.hypot(sizes[:, None], sizes)
        both[both <= len(vectors) * torch.finfo(sizes.dtype).eps * sizes[0]] = torch.inf
        return cls(vectors[:rows], axes.T, sizes[:, None] / both)

    def project_out(self, along: Float[Tensor, "m 2 V d"]) -> Float[Tensor, "m 2 V d"]:
        """Directions without their nearest rotations: an orthogonal projection.

        Args:
            along: The directions' parts in W and C.

        Returns:
            The same shape.
        """
        turned = self.shares * ((self.tables.T @ along.flatten(1, 2)) @ self.axes)  # (m, d, d)
        angle = (self.shares * (turned - turned.mT)) @ self.axes.T
        return along - (self.tables @ angle).view(along.shape)
