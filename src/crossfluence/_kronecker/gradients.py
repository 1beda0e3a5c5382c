"""A block of parameters as matrices, and the samples' gradients of it: outer products, rows of a table, or in full."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from .._storage.archive import stored
from .._types import Params

SPLIT = 256  # columns from which a symmetric product is taken in parts
NUMBERS_AT_ONCE = 2**24  # of per-sample gradients written out together: 64 MB in single precision


@stored("Slot")
@dataclass(frozen=True)
class ParameterBlock:
    """The place of a block among the parameters: g matrices of r rows and c columns (g > 1 for grouped layers).

    Attributes:
        names: The parameters, side by side in the columns: a weight, then its bias.
        shapes: Their own shapes.
        form: `(g, r, c)`.
        transposed: Whether the first parameter, a matrix, stands in the block transposed: inputs count its rows.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    form: tuple[int, int, int]
    transposed: bool = False

    @classmethod
    def of(
        cls, params: Params, names: Sequence[str], groups: int, rows: int, *, transposed: bool = False
    ) -> ParameterBlock:
        """The slot of some parameters, whose last dimension is what is left after groups and rows."""
        shapes = tuple(params[name].shape for name in names)
        columns = sum(shape.numel() for shape in shapes) // (groups * rows)
        return cls(tuple(names), shapes, (groups, rows, columns), transposed)

    @property
    def row(self) -> ParameterBlock:
        """The same parameters as one row of one matrix."""
        return ParameterBlock(self.names, self.shapes, (1, 1, self.size))

    @property
    def size(self) -> int:
        """The number of parameters in it."""
        return sum(shape.numel() for shape in self.shapes)

    def gather(self, params: Params) -> Shaped[Tensor, "*lead g r c"]:
        """The block out of named tensors; leading dimensions are kept."""
        lead = params[self.names[0]].shape[: params[self.names[0]].ndim - len(self.shapes[0])]
        parts = [params[name] for name in self.names]
        parts[0] = parts[0].mT if self.transposed else parts[0]
        return torch.cat([part.reshape(*lead, *self.form[:2], -1) for part in parts], dim=-1)

    def scatter(self, block: Shaped[Tensor, "*lead g r c"]) -> Params:
        """Named tensors out of the block; the inverse of `gather`."""
        groups, rows, _ = self.form
        parts = block.split([shape.numel() // (groups * rows) for shape in self.shapes], dim=-1)
        lead, shapes = block.shape[:-3], list(self.shapes)
        shapes[0] = torch.Size(reversed(shapes[0])) if self.transposed else shapes[0]
        named = zip(self.names, shapes, parts, strict=True)
        found = {name: part.reshape((*lead, *shape)) for name, shape, part in named}
        if self.transposed:
            found[self.names[0]] = found[self.names[0]].mT
        return found


class AbstractGradients(ABC):
    """The gradients of b samples with respect to one block, each of shape `(g, r, c)`."""

    @property
    @abstractmethod
    def numel(self) -> int:
        """Numbers in one sample's gradient."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, samples: slice) -> AbstractGradients: ...

    @abstractmethod
    def dense(self) -> Shaped[Tensor, "g b r c"]:
        """Written out."""

    @abstractmethod
    def moments(self, longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """The Kronecker factors `(g, r, r)` and `(g, c, c)`, and `(g,)`: by how much their product is too large.

        Summed over samples; of sides that are longer, only the diagonals `(g, r)` and `(g, c)`.
        """

    @abstractmethod
    def rotated(self, left: Tensor | None, right: Tensor | None) -> AbstractGradients:
        """In the coordinates of two bases `(g, r, r)` and `(g, c, c)`, each in columns; `None` leaves a side alone."""

    @abstractmethod
    def weighted(self, weights: Shaped[Tensor, " b"]) -> Shaped[Tensor, "g r c"]:
        """Their sum over samples, each with its weight."""

    @abstractmethod
    def squared(self) -> AbstractGradients:
        """With every number squared, before products and sums are taken: the sizes of the terms."""

    def pieces(self) -> Iterator[Shaped[Tensor, "g b r c"]]:
        """Written out, some samples at a time."""
        step = max(1, NUMBERS_AT_ONCE // self.numel)
        for start in range(0, len(self), step):
            yield self[start : start + step].dense()

    def squares(self) -> Shaped[Tensor, "g r c"]:
        """Every entry squared, summed over samples."""
        return torch.stack([piece.square().sum(1) for piece in self.pieces()]).sum(0)

    def squares_along(self, left: Tensor | None, right: Tensor | None) -> Shaped[Tensor, "g r c"]:
        """Every component along two bases squared, summed over samples."""
        return self.rotated(left, right).squares()

    def weighted_squared_norms(self, weights: Shaped[Tensor, "g r c"]) -> Shaped[Tensor, " b"]:
        """Every sample's squared entries, each times its weight, added up."""
        return torch.cat([(piece.square() * weights.unsqueeze(1)).sum((0, 2, 3)) for piece in self.pieces()])

    def squared_norms(self) -> Shaped[Tensor, " b"]:
        """Every sample's squared entries, added up."""
        return torch.cat([piece.square().sum((0, 2, 3)) for piece in self.pieces()])

    def along(self, directions: Shaped[Tensor, "m g r c"]) -> Shaped[Tensor, "b m"]:
        """Inner products with some directions."""
        flat = directions.flatten(1).T
        return torch.cat([piece.movedim(0, 1).flatten(1) @ flat for piece in self.pieces()])


ByBlock: TypeAlias = dict[ParameterBlock, AbstractGradients]
"""Gradients of some samples with respect to each block that they reach."""


@dataclass(frozen=True, eq=False)
class OuterProducts(AbstractGradients):
    """FitProgress over t of outer products `left[t] ⊗ right[t]`: output gradients and inputs of a layer, by position.

    Attributes:
        left: Shape `(g, b, t, r)`.
        right: Shape `(g, b, t, c)`.
    """

    left: Shaped[Tensor, "g b t r"]
    right: Shaped[Tensor, "g b t c"]

    @property
    def numel(self) -> int:
        """Numbers in one sample's gradient."""
        return len(self.left) * self.left.shape[-1] * self.right.shape[-1]

    @property
    def single(self) -> bool:
        """True if every gradient is one outer product."""
        return self.left.shape[2] == 1

    def __len__(self) -> int:
        return self.left.shape[1]

    def __getitem__(self, samples: slice) -> OuterProducts:
        return OuterProducts(self.left[:, samples], self.right[:, samples])

    def dense(self) -> Shaped[Tensor, "g b r c"]:
        """Written out."""
        return self.left.mT @ self.right

    def moments(self, longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """Second moments of either side, positions counted as samples: the approximation that makes the factors."""
        x, y = self.left.flatten(1, 2), self.right.flatten(1, 2)
        return (
            _second_moment(x, longest),
            _second_moment(y, longest),
            x.new_full((len(x),), x.shape[1], dtype=torch.float64),
        )

    def weighted(self, weights: Shaped[Tensor, " b"]) -> Shaped[Tensor, "g r c"]:
        """One matrix product."""
        return (self.left * weights[:, None, None]).flatten(1, 2).mT @ self.right.flatten(1, 2)

    def squared(self) -> OuterProducts:
        """Both sides."""
        return OuterProducts(self.left.square(), self.right.square())

    def rotated(self, left: Tensor | None, right: Tensor | None) -> OuterProducts:
        """Each side in its own basis."""
        return OuterProducts(_turned(self.left, left), _turned(self.right, right))

    def squares_along(self, left: Tensor | None, right: Tensor | None) -> Shaped[Tensor, "g r c"]:
        """Turns the gradients instead of their factors where there are more positions than that takes."""
        t, r, c = self.left.shape[2], self.left.shape[3], self.right.shape[3]
        factors = t * (r * r * (left is not None) + c * c * (right is not None))
        if factors <= r * c * (r * (left is not None) + c * (right is not None)):
            return super().squares_along(left, right)
        pieces = (DenseGradients(piece).rotated(left, right).squares() for piece in self.pieces())
        return torch.stack(list(pieces)).sum(0)

    def squares(self) -> Shaped[Tensor, "g r c"]:
        """Without writing the gradients out where they are single outer products."""
        if not self.single:
            return super().squares()
        return self.left.squeeze(2).square().mT @ self.right.squeeze(2).square()

    def squared_norms(self) -> Shaped[Tensor, " b"]:
        """The same way: of one outer product, the product of both sides' norms."""
        if not self.single:
            return super().squared_norms()
        return (self.left.square().sum((2, 3)) * self.right.square().sum((2, 3))).sum(0)

    def weighted_squared_norms(self, weights: Shaped[Tensor, "g r c"]) -> Shaped[Tensor, " b"]:
        """The same way."""
        if not self.single:
            return super().weighted_squared_norms(weights)
        return ((self.left.squeeze(2).square() @ weights) * self.right.squeeze(2).square()).sum((0, 2))


@dataclass(frozen=True, eq=False)
class EmbeddingGradients(AbstractGradients):
    """Gradients of a table of which each sample reads a few rows.

    Attributes:
        rows: Which rows, shape `(b, t)`.
        right: Their gradients, shape `(1, b, t, c)`.
        height: The number r of rows.
    """

    rows: Int[Tensor, "b t"]
    right: Shaped[Tensor, "1 b t c"]
    height: int

    @property
    def numel(self) -> int:
        """Numbers in one sample's gradient."""
        return self.height * self.right.shape[-1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, samples: slice) -> EmbeddingGradients:
        return EmbeddingGradients(self.rows[samples], self.right[:, samples], self.height)

    def outer(self) -> OuterProducts:
        """The same with rows as unit vectors."""
        units = torch.nn.functional.one_hot(self.rows, self.height).to(self.right.dtype)
        return OuterProducts(units.unsqueeze(0), self.right)

    def dense(self) -> Shaped[Tensor, "1 b r c"]:
        """Written out."""
        table = self.right.new_zeros(len(self) * self.height, self.right.shape[-1])
        table.index_add_(0, self._places().flatten(), self.right.flatten(0, 2))
        return table.reshape(1, len(self), self.height, -1)

    def moments(self, longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """The table's rows are their own basis: how often each was read."""
        read = self.rows.flatten().bincount(minlength=self.height).double().unsqueeze(0)
        return read, _second_moment(self.right.flatten(1, 2), longest), read.sum(1)

    def weighted(self, weights: Shaped[Tensor, " b"]) -> Shaped[Tensor, "1 r c"]:
        """Adds into the rows that were read."""
        table = self.right.new_zeros(self.height, self.right.shape[-1])
        parts = (self.right[0] * weights[:, None, None]).flatten(0, 1)
        return table.index_add_(0, self.rows.flatten(), parts).unsqueeze(0)

    def squared(self) -> EmbeddingGradients:
        """The vectors that were looked up."""
        return EmbeddingGradients(self.rows, self.right.square(), self.height)

    def rotated(self, left: Tensor | None, right: Tensor | None) -> EmbeddingGradients:
        """The columns in their basis."""
        assert left is None
        return EmbeddingGradients(self.rows, _turned(self.right, right), self.height)

    def squares(self) -> Shaped[Tensor, "1 r c"]:
        """Only of rows that were read; a row read twice by one sample counts once, with the sum."""
        read, sums = self._sums()
        table = self.right.new_zeros(self.height, self.right.shape[-1])
        return table.index_add_(0, read % self.height, sums.square()).unsqueeze(0)

    def weighted_squared_norms(self, weights: Shaped[Tensor, "1 r c"]) -> Shaped[Tensor, " b"]:
        """The same way."""
        read, sums = self._sums()
        parts = (sums.square() * weights[0, read % self.height]).sum(1)
        return parts.new_zeros(len(self)).index_add_(0, read // self.height, parts)

    def squared_norms(self) -> Shaped[Tensor, " b"]:
        """The same way."""
        read, sums = self._sums()
        parts = sums.square().sum(1)
        return parts.new_zeros(len(self)).index_add_(0, read // self.height, parts)

    def along(self, directions: Shaped[Tensor, "m 1 r c"]) -> Shaped[Tensor, "b m"]:
        """Reads the directions where the samples read the table."""
        return torch.stack([(one[0, self.rows] * self.right[0]).sum((1, 2)) for one in directions], dim=1)

    def _sums(self) -> tuple[Int[Tensor, " k"], Shaped[Tensor, "k c"]]:
        """Places that were read, and their gradients."""
        read, place = self._places().flatten().unique(return_inverse=True)
        return read, self.right.new_zeros(len(read), self.right.shape[-1]).index_add_(
            0, place, self.right.flatten(0, 2)
        )

    def _places(self) -> Int[Tensor, "b t"]:
        samples = torch.arange(len(self), device=self.rows.device)
        return self.rows + self.height * samples.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class DenseGradients(AbstractGradients):
    """Gradients in full.

    Attributes:
        matrices: Shape `(g, b, r, c)`.
    """

    matrices: Shaped[Tensor, "g b r c"]

    @property
    def numel(self) -> int:
        """Numbers in one sample's gradient."""
        return self.matrices[:, 0].numel()

    def __len__(self) -> int:
        return self.matrices.shape[1]

    def __getitem__(self, samples: slice) -> DenseGradients:
        return DenseGradients(self.matrices[:, samples])

    def dense(self) -> Shaped[Tensor, "g b r c"]:
        """As they are."""
        return self.matrices

    def moments(self, longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """FitProgress of `G Gᵀ` and `Gᵀ G`; with one row the second is the exact block of the Fisher matrix."""
        x, y = self.matrices.mT.flatten(1, 2), self.matrices.flatten(1, 2)
        return _second_moment(x, longest), _second_moment(y, longest), self.matrices.square().sum((1, 2, 3))

    def weighted(self, weights: Shaped[Tensor, " b"]) -> Shaped[Tensor, "g r c"]:
        """Their sum."""
        return (self.matrices * weights[:, None, None]).sum(1)

    def squared(self) -> DenseGradients:
        """Entry by entry."""
        return DenseGradients(self.matrices.square())

    def rotated(self, left: Tensor | None, right: Tensor | None) -> DenseGradients:
        """From both sides."""
        return DenseGradients(_turned(_turned(self.matrices.mT, left).mT, right))


def joined(parts: Sequence[AbstractGradients]) -> AbstractGradients:
    """The sum of the gradients of several uses of one parameter.

    Args:
        parts: Of the same samples and the same block.

    Returns:
        Gradients in full if one of the parts is, and otherwise outer products with the positions of all parts.
    """
    if len(parts) == 1:
        return parts[0]
    if any(isinstance(part, DenseGradients) for part in parts):
        return DenseGradients(torch.stack([part.dense() for part in parts]).sum(0))
    tables = [part for part in parts if isinstance(part, EmbeddingGradients)]
    if len(tables) == len(parts):
        rows, right = torch.cat([part.rows for part in tables], 1), torch.cat([part.right for part in tables], 2)
        return EmbeddingGradients(rows, right, tables[0].height)
    outers = [part.outer() if isinstance(part, EmbeddingGradients) else part for part in parts]
    return OuterProducts(*(torch.cat([getattr(part, side) for part in outers], dim=2) for side in ("left", "right")))


def _second_moment(rows: Shaped[Tensor, "g n d"], longest: int) -> Shaped[Tensor, "g *d"]:
    return _gram(rows) if rows.shape[-1] <= longest else rows.square().sum(1)


def _gram(rows: Shaped[Tensor, "g n d"]) -> Shaped[Tensor, "g d d"]:
    """Products of all columns: what lies below the diagonal is copied, which saves a third of the work."""
    if rows.shape[-1] < SPLIT:
        return rows.mT @ rows
    first, second = rows.tensor_split(2, dim=-1)
    across = first.mT @ second
    return torch.cat([torch.cat([_gram(first), across], -1), torch.cat([across.mT, _gram(second)], -1)], -2)


def _turned(vectors: Shaped[Tensor, "g b t d"], basis: Tensor | None) -> Shaped[Tensor, "g b t d"]:
    """Rows in the coordinates of a basis."""
    return vectors if basis is None else (vectors.flatten(1, 2) @ basis).reshape(vectors.shape)
