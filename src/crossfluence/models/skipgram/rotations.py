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
        words: W.
        contexts: C.
        axes: Eigenvectors of $W^\top W + C^\top C$.
        sizes: Its eigenvalues.

    References:
        Absil, Mahony and Sepulchre, "Optimization algorithms on matrix manifolds", 2008, section 5.3.4.
    """

    words: Float[Tensor, "V d"]
    contexts: Float[Tensor, "V d"]
    axes: Float[Tensor, "d d"]
    sizes: Float[Tensor, " d"]

    @classmethod
    def of(cls, words: Float[Tensor, "V d"], contexts: Float[Tensor, "V d"]) -> Rotations:
        """The rotations of two tables."""
        sizes, axes = torch.linalg.eigh(words.T @ words + contexts.T @ contexts)
        return cls(words, contexts, axes, sizes)

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
        turned = self.axes.T @ (self.words.T @ along_words + self.contexts.T @ along_contexts) @ self.axes
        scale = (self.sizes[:, None] + self.sizes[None, :]).clamp_min(torch.finfo(self.sizes.dtype).tiny)
        angle = self.axes @ ((turned - turned.T) / scale) @ self.axes.T
        return along_words - self.words @ angle, along_contexts - self.contexts @ angle
