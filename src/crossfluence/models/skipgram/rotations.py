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
        tables: Shape `(2V, d)`: orthonormal left singular vectors of W on top of C.
        axes: Shape `(d, d)`: its right singular vectors, one in each column.
        shares: Shape `(d, d)`: each singular value over the root of the sum of its square and another's; zero where
            both are zero to rounding, since an axis without length has no direction to turn in.

    References:
        Absil, Mahony and Sepulchre, "Optimization algorithms on matrix manifolds", 2008, section 5.3.4.
    """

    tables: Float[Tensor, "V2 d"]
    axes: Float[Tensor, "d d"]
    shares: Float[Tensor, "d d"]

    @classmethod
    def of(cls, words: Float[Tensor, "V d"], contexts: Float[Tensor, "V d"]) -> Rotations:
        """The rotations of two tables."""
        rows, d = 2 * len(words), words.shape[1]
        padding = words.new_zeros(max(0, d - rows), d)  # at least as many rows as axes, so that there are d vectors
        tables, sizes, axes = torch.linalg.svd(torch.cat([words, contexts, padding]), full_matrices=False)
        both = torch.hypot(sizes[:, None], sizes)
        both[both <= len(tables) * torch.finfo(sizes.dtype).eps * sizes[0]] = torch.inf
        return cls(tables[:rows], axes.T, sizes[:, None] / both)

    def taken_out(
        self, along_words: Float[Tensor, "V d"], along_contexts: Float[Tensor, "V d"]
    ) -> tuple[Float[Tensor, "V d"], Float[Tensor, "V d"]]:
        """What is left of a direction after its nearest rotation is subtracted: an orthogonal projection.

        Args:
            along_words: The direction's part in W.
            along_contexts: The direction's part in C.

        Returns:
            Two tables of the same shapes.
        """
        words, contexts = self.tables.tensor_split(2)
        turned = self.shares * ((words.T @ along_words + contexts.T @ along_contexts) @ self.axes)
        angle = (self.shares * (turned - turned.T)) @ self.axes.T
        return along_words - words @ angle, along_contexts - contexts @ angle
