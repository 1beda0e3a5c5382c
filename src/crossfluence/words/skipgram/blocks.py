"""One small system for each word: the solver of skip-gram's block diagonal, and the preconditioner for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from crossfluence import CG, Relative
from crossfluence.errors import SingularCurvatureError, UnsupportedError
from crossfluence.extend import (
    AbstractInverse,
    AbstractRisk,
    AbstractSolver,
    Cost,
    Solution,
    absolute,
    preferred,
    refuse_damping,
    stored,
)

from .risk import SkipGramRisk
from .rotations import Rotations

RTOL = 1e-2  # less changes predictions little and follows ever flatter directions; see docs/words.md
BLOCKS_AT_ONCE = 1_000  # that are factorised together


@dataclass(frozen=True)
class WordBlocks(AbstractSolver):
    """The second derivatives by each vector alone: 2V systems of size d, solved for any number of questions.

    Enough to rank sentences. To predict sizes, it is the preconditioner:
    `CG(curvature=Hessian(), preconditioner=WordBlocks())`.

    Attributes:
        damping: Added to the eigenvalues of each block; `Relative` is by the mean eigenvalue over all blocks.

    Example:
        >>> WordBlocks()
        WordBlocks(damping=0.0)

    References:
        Brunet, Alkalay-Houlihan, Anderson and Zemel, "Understanding the origins of bias in word embeddings", ICML 2019.
    """

    saveable: ClassVar[bool] = True
    damping: float | Relative = 0.0

    def __post_init__(self) -> None:
        refuse_damping(self.damping)

    def cost(self, risk: AbstractRisk) -> Cost:
        """No product and no pass: the blocks come from the counts, d numbers for each parameter."""
        size = risk.weights.element_size() * risk.p * next(iter(risk.theta.values())).shape[-1]
        return Cost(inverse_bytes=size, temporary_bytes=size)

    def _invert(self, risk: AbstractRisk) -> WordBlocksInverse:
        """Factorises the blocks.

        Args:
            risk: A `SkipGramRisk`.

        Returns:
            Cholesky factors, d numbers for each parameter.

        Raises:
            UnsupportedError: If the risk has no word blocks.
            SingularCurvatureError: If a word has no curvature of its own.
        """
        if not isinstance(risk, SkipGramRisk):
            raise UnsupportedError(
                f"WordBlocks needs a SkipGramRisk; got {type(risk).__name__}. Use Auto(), or CG without it."
            )
        tables = risk.word_blocks()
        mean = sum(float(table.diagonal(dim1=1, dim2=2).sum()) for table in tables) / risk.p
        damping = absolute(self.damping, mean)
        factors = tuple(cholesky(table, damping) for table in tables)
        return WordBlocksInverse(repr(self), risk.signature, factors, risk.rotations, damping)


@stored("WordBlocksInverse")
@dataclass(frozen=True, eq=False)
class WordBlocksInverse(AbstractInverse):
    """Cholesky factors of the blocks of both tables."""

    approximation: ClassVar[str] = "WordBlocks leaves out what words do to each other"
    solver: str
    signature: str
    factors: tuple[Float[Tensor, "V d d"], ...]
    rotations: Rotations
    damping: float
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ("Each word by itself: what words do to each other is left out.",)

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Two triangular solves for each word and question; what only rotates is taken out before and after."""
        return Solution(self._determined(solve_blocks(self.factors, self._determined(vectors))))

    def _determined(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        tables = vectors.reshape(len(vectors), len(self.factors), -1, self.factors[0].shape[-1])
        return self.rotations.project_out(tables).flatten(1)


def cholesky(blocks: Float[Tensor, "V d d"], damping: float = 0.0) -> Float[Tensor, "V d d"]:
    """Lower factors of symmetric positive blocks, refused if one is singular; written over the large blocks."""
    blocks.diagonal(dim1=1, dim2=2).add_(damping)
    failed = []
    for some in blocks.split(BLOCKS_AT_ONCE):
        factors, wrong = torch.linalg.cholesky_ex(some)
        some.copy_(factors)
        failed.append(wrong)
    if rows := torch.cat(failed).nonzero().flatten().tolist():
        raise SingularCurvatureError(
            f"{len(rows)} of {len(blocks)} words, such as number {rows[0]}, have no curvature of their own in some "
            f"direction: they stand in no pair, or their vectors hold a NaN. Give the risk an l2, such as "
            f"5 / pairs.all.total, or WordBlocks a damping."
        )
    return blocks


def solve_blocks(factors: tuple[Float[Tensor, "V d d"], ...], vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
    """Each row of the vectors, multiplied by the inverse of the block-diagonal matrix.

    Args:
        factors: Lower Cholesky factors of the blocks, table by table.
        vectors: Right-hand sides, one in each row.

    Returns:
        The solutions.
    """
    parts, start = [], 0
    for table in factors:
        size, d, _ = table.shape
        wanted = vectors[:, start : start + size * d].reshape(len(vectors), size, d).permute(1, 2, 0)
        solved = torch.cholesky_solve(wanted, table)  # (V, d, m)
        parts.append(solved.permute(2, 0, 1).reshape(len(vectors), -1))
        start += size * d
    return torch.cat(parts, dim=1)


@preferred.register
def _(risk: SkipGramRisk, damping: float | Relative) -> tuple[AbstractSolver, str]:
    """Conjugate gradients on the true Hessian, each word's own block as preconditioner."""
    solver = CG(damping, rtol=RTOL, preconditioner=WordBlocks(damping), truncate=True)
    return solver, "skip-gram has a Hessian product from its counts, and a block for each word"
