"""Codes of one row of numbers: in single or half precision, as whole numbers, or as signs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

Parts: TypeAlias = dict[str, Tensor]
"""Tensors of b rows: the code of one block of b samples."""

LARGEST = 127  # of the whole numbers
SMALL = 7  # of those that take half a byte
CLIPPED = (1.0, 0.7, 0.5)  # shares of a row's largest number that 7 may stand for
FEW = 3  # questions that are multiplied one by one
FINER = 254  # steps of a question's second plane in one of the first
LONGEST = 2**16  # numbers in one product of whole ones, whose sum is to fit into 32 bits


class AbstractCode(ABC):
    """A way to write rows of numbers, and to multiply them with questions as they are written.

    Attributes:
        name: In `Index.build(dtype=...)` and in files.
        exact: Whether numbers keep their sizes, so that no coordinate has to be brought to a common one.
        tolerance: Share of the scores that coordinates left out may hold, where nobody says.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    tolerance: ClassVar[float]

    @property
    def of_zeros(self) -> AbstractCode:
        """The code of blocks in which many numbers are zero, as in a table of which a sample reads few rows."""
        return self

    @abstractmethod
    def encoded(self, rows: Shaped[Tensor, "b k"], energy: Shaped[Tensor, " k"]) -> Parts:
        """The code of some rows; the energy is each coordinate's share in the scores per squared unit."""

    @abstractmethod
    def decoded(self, parts: Parts, k: int) -> Shaped[Tensor, "b k"]:
        """Rows in single precision, as the code has them."""

    @abstractmethod
    def prepared(self, questions: Shaped[Tensor, "m k"]) -> Any:
        """Questions as `products` takes them."""

    @abstractmethod
    def products(self, parts: Parts, prepared: Any) -> Shaped[Tensor, "b m"]:
        """Inner products of rows and questions, in single precision."""

    @abstractmethod
    def bytes_of(self, k: int) -> int:
        """Bytes of one row of k numbers."""


@dataclass(frozen=True)
class Floats(AbstractCode):
    """Numbers as they are, in some precision."""

    exact: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype]

    def encoded(self, rows: Shaped[Tensor, "b k"], energy: Shaped[Tensor, " k"]) -> Parts:
        """In the nearest numbers of that precision."""
        limit = torch.finfo(self.dtype).max
        return {"rows": rows.clamp(-limit, limit).to(self.dtype)}

    def decoded(self, parts: Parts, k: int) -> Shaped[Tensor, "b k"]:
        """Widened."""
        return parts["rows"].float()

    def prepared(self, questions: Shaped[Tensor, "m k"]) -> Tensor:
        """In single precision, one in each column."""
        return questions.float().T.contiguous()

    def products(self, parts: Parts, prepared: Tensor) -> Shaped[Tensor, "b m"]:
        """One matrix product in single precision."""
        return parts["rows"].float() @ prepared

    def bytes_of(self, k: int) -> int:
        """Two or four each."""
        return k * self.dtype.itemsize


@dataclass(frozen=True)
class Single(Floats):
    """Single precision."""

    name: ClassVar[str] = "float32"
    tolerance: ClassVar[float] = 0.0
    dtype: ClassVar[torch.dtype] = torch.float32


@dataclass(frozen=True)
class Half(Floats):
    """Half precision."""

    name: ClassVar[str] = "float16"
    tolerance: ClassVar[float] = 0.05
    dtype: ClassVar[torch.dtype] = torch.float16


@dataclass(frozen=True, eq=False)
class Planes:
    """Questions as two planes of whole numbers, the second 254 times finer than the first.

    Attributes:
        pieces: Of the coordinates, which fit into one product each; and both planes there, `(k, m)`, in the columns
            that are multiplied at once: all, or one where they are few, which is quicker.
        unit: Of the first plane, shape `(m,)`.
    """

    pieces: tuple[tuple[slice, list[Tensor], list[Tensor]], ...]
    unit: Shaped[Tensor, " m"]

    @classmethod
    def of(cls, questions: Shaped[Tensor, "m k"]) -> Planes:
        """Rounded to 1/64,516 of each question's largest number."""
        unit = (questions.abs().amax(1) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
        shares = questions / unit
        coarse = shares.round()
        planes = [plane.to(torch.int8).T for plane in (coarse, ((shares - coarse) * FINER).round())]
        at_once = 1 if len(questions) <= FEW else len(questions)
        pieces = []
        for start in range(0, questions.shape[1], LONGEST):
            own = slice(start, start + LONGEST)
            pieces.append((own, *([_plain(part) for part in plane[own].split(at_once, 1)] for plane in planes)))
        return cls(tuple(pieces), unit.squeeze(1).float())

    def times(self, rows: Int[Tensor, "b k"]) -> Shaped[Tensor, "b m"]:
        """Products with rows of whole numbers."""
        total = None
        for at, coarse, fine in self.pieces:
            own = _plain(rows if len(self.pieces) == 1 else rows[:, at])
            found = _products(own, coarse).add_(_products(own, fine), alpha=1 / FINER)
            total = found if total is None else total.add_(found)
        assert total is not None
        return total.mul_(self.unit)


@dataclass(frozen=True)
class Whole(AbstractCode):
    """Whole numbers between -127 and 127, and one scale for each sample and block."""

    name: ClassVar[str] = "int8"
    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.05

    def encoded(self, rows: Shaped[Tensor, "b k"], energy: Shaped[Tensor, " k"]) -> Parts:
        """Rounded, the largest of each row to 127."""
        scales = (rows.abs().amax(1) / LARGEST).float()
        steps = rows / scales.clamp_min(torch.finfo(torch.float32).tiny).to(rows).unsqueeze(1)
        return {"rows": steps.round().clamp(-LARGEST, LARGEST).to(torch.int8), "scales": scales}

    def decoded(self, parts: Parts, k: int) -> Shaped[Tensor, "b k"]:
        """Whole numbers times their scale."""
        return parts["rows"].float() * parts["scales"].unsqueeze(1)

    def prepared(self, questions: Shaped[Tensor, "m k"]) -> Planes:
        """Whole numbers, too."""
        return Planes.of(questions)

    def products(self, parts: Parts, prepared: Planes) -> Shaped[Tensor, "b m"]:
        """In whole numbers, then scaled."""
        return prepared.times(parts["rows"]) * parts["scales"].unsqueeze(1)

    def bytes_of(self, k: int) -> int:
        """One each, and the scale."""
        return k + 4


@dataclass(frozen=True)
class Nibbles(AbstractCode):
    """Whole numbers between -7 and 7, two in a byte, and one scale for each sample and block."""

    name: ClassVar[str] = "int4"
    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.05

    def encoded(self, rows: Shaped[Tensor, "b k"], energy: Shaped[Tensor, " k"]) -> Parts:
        """Rounded; the largest of each row to 7 or beyond it, whichever is nearer to the row."""
        largest = (rows.abs().amax(1) / SMALL).clamp_min(torch.finfo(torch.float32).tiny)
        best, steps, scales = torch.full_like(largest, torch.inf), torch.zeros_like(rows), torch.zeros_like(largest)
        for share in CLIPPED:
            own = largest * share
            found = (rows / own.unsqueeze(1)).round().clamp(-SMALL, SMALL)
            missed = (rows - found * own.unsqueeze(1)).square() @ energy
            better = missed < best
            best, scales = torch.where(better, missed, best), torch.where(better, own, scales)
            steps = torch.where(better.unsqueeze(1), found, steps)
        high, low = _two(steps).to(torch.int8).view(torch.uint8).unbind(1)
        return {"rows": (high << 4) | (low & 15), "scales": scales.float()}

    def decoded(self, parts: Parts, k: int) -> Shaped[Tensor, "b k"]:
        """Whole numbers times their scale."""
        return torch.cat([part.float() / 16 for part in _apart(parts["rows"])], 1)[:, :k] * parts["scales"].unsqueeze(1)

    def prepared(self, questions: Shaped[Tensor, "m k"]) -> list[Planes]:
        """Whole numbers, in two parts of which each belongs to one half of a byte."""
        return [Planes.of(part) for part in _two(questions).unbind(1)]

    def products(self, parts: Parts, prepared: list[Planes]) -> Shaped[Tensor, "b m"]:
        """In whole numbers, then scaled."""
        high, low = (own.times(part) for own, part in zip(prepared, _apart(parts["rows"]), strict=True))
        return (high + low) * (parts["scales"] / 16).unsqueeze(1)

    def bytes_of(self, k: int) -> int:
        """Half a byte each, and the scale."""
        return -(-k // 2) + 4


@dataclass(frozen=True)
class Signs(AbstractCode):
    r"""Signs, and for each sample and block the scale with which its product with itself is exact.

    A row $c$ is read as $s \operatorname{sign}(c)$ with $s = \sum_j e_j c_j^2 / \sum_j e_j |c_j|$, e the energy: for
    normal numbers it is $\pi/2$ times their mean size, which makes up for what signs lose of a correlated question.

    References:
        Gao and Long, "RaBitQ: quantizing high-dimensional vectors with a theoretical error bound for approximate
        nearest neighbor search", SIGMOD 2024, for a scale that makes inner products unbiased.
    """

    name: ClassVar[str] = "sign"
    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.05

    @property
    def of_zeros(self) -> AbstractCode:
        """Signs of which some are zero."""
        return SomeSigns()

    def encoded(self, rows: Shaped[Tensor, "b k"], energy: Shaped[Tensor, " k"]) -> Parts:
        """Eight signs in a byte."""
        return {"bits": _packed(rows > 0), "scales": _scales(rows, energy)}

    def decoded(self, parts: Parts, k: int) -> Shaped[Tensor, "b k"]:
        """Signs times their scale."""
        return (2 * _unpacked(parts["bits"], k) - 1) * parts["scales"].unsqueeze(1)

    def prepared(self, questions: Shaped[Tensor, "m k"]) -> tuple[list[Planes], Tensor]:
        """Whole numbers, in eight parts of which each belongs to one bit; and their sums."""
        padded = torch.nn.functional.pad(questions, (0, -questions.shape[1] % 8)).unflatten(1, (8, -1))
        return [Planes.of(part) for part in padded.unbind(1)], questions.sum(1).float()

    def products(self, parts: Parts, prepared: tuple[list[Planes], Tensor]) -> Shaped[Tensor, "b m"]:
        """Twice the sum where the bit is set, less the sum of all."""
        planes, total = prepared
        return (2 * _sums(parts["bits"], planes) - total) * parts["scales"].unsqueeze(1)

    def bytes_of(self, k: int) -> int:
        """An eighth each, and the scale."""
        return -(-k // 8) + 4


@dataclass(frozen=True)
class SomeSigns(Signs):
    """As `Signs`, where many numbers are zero: one bit says which are above it, and one which are below."""

    def encoded(self, rows: Shaped[Tensor, "b k"], energy: Shaped[Tensor, " k"]) -> Parts:
        """Eight numbers in two bytes."""
        return {"above": _packed(rows > 0), "below": _packed(rows < 0), "scales": _scales(rows, energy)}

    def decoded(self, parts: Parts, k: int) -> Shaped[Tensor, "b k"]:
        """Signs times their scale."""
        return (_unpacked(parts["above"], k) - _unpacked(parts["below"], k)) * parts["scales"].unsqueeze(1)

    def products(self, parts: Parts, prepared: tuple[list[Planes], Tensor]) -> Shaped[Tensor, "b m"]:
        """The sum where the first bit is set, less that where the second is."""
        planes, _ = prepared
        return (_sums(parts["above"], planes) - _sums(parts["below"], planes)) * parts["scales"].unsqueeze(1)

    def bytes_of(self, k: int) -> int:
        """A quarter each, and the scale."""
        return 2 * -(-k // 8) + 4


CODES: Mapping[str, AbstractCode] = {code.name: code for code in (Single(), Half(), Whole(), Nibbles(), Signs())}


def _two(numbers: Shaped[Tensor, "b k"]) -> Shaped[Tensor, "b 2 B"]:
    """Coordinate i B + j belongs into half i of byte j, the upper one first."""
    return torch.nn.functional.pad(numbers, (0, numbers.shape[1] % 2)).unflatten(1, (2, -1))


def _apart(packed: Shaped[Tensor, "b B"]) -> tuple[Int[Tensor, "b B"], Int[Tensor, "b B"]]:
    """Both halves of all bytes, each 16 times its number."""
    return (packed & 240).view(torch.int8), (packed << 4).view(torch.int8)


def _packed(bits: Shaped[Tensor, "b k"]) -> Shaped[Tensor, "b B"]:
    """Bit i of byte j is that of coordinate i B + j."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8)).unflatten(1, (8, -1))
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded << places[:, None]).sum(1, dtype=torch.uint8)


def _unpacked(packed: Shaped[Tensor, "b B"], k: int) -> Shaped[Tensor, "b k"]:
    """Zeros and ones, the inverse of `_packed`."""
    places = torch.arange(8, dtype=torch.uint8)
    return ((packed.unsqueeze(1) >> places[:, None]) & 1).flatten(1)[:, :k].float()


def _scales(rows: Shaped[Tensor, "b k"], energy: Shaped[Tensor, " k"]) -> Shaped[Tensor, " b"]:
    sizes = rows.abs()
    return (sizes.square() @ energy / (sizes @ energy).clamp_min(torch.finfo(rows.dtype).tiny)).float()


def _sums(packed: Shaped[Tensor, "b B"], planes: Sequence[Planes]) -> Shaped[Tensor, "b m"]:
    """Of questions where bits are set."""
    found = torch.zeros(())
    for place, own in enumerate(planes):
        masked = (packed & (1 << place)).view(torch.int8)  # the eighth bit is that of -128
        found = found + own.times(masked) / (1 << place if place < 7 else -128)
    return found


def _products(rows: Int[Tensor, "b k"], columns: Sequence[Int[Tensor, "k _"]]) -> Shaped[Tensor, "b m"]:
    """Products of whole numbers, which are exact."""
    multiplied: Callable[[Tensor, Tensor], Tensor] = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]
    found = [multiplied(rows, each) for each in columns]
    return (found[0] if len(found) == 1 else torch.cat(found, 1)).float()


def _plain(matrix: Int[Tensor, "r c"]) -> Int[Tensor, "r c"]:
    """With the strides of its shape, also where a side is 1: the product reads those, whatever they mean."""
    return matrix.contiguous().flatten().view(matrix.shape)
