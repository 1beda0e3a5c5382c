r"""Three ways to $\varphi(X)b$ for $X = A^{1/2} F A^{1/2} + D$: from roots of F, from a dense matrix, from products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .._curvature.base import AbstractCurvature
from .._curvature.gauss_newton import GaussNewton
from .._data.ranks import ALONE, Ranks
from .._risk.risk import Risk
from .._solvers.krylov import lanczos_functions
from .._solvers.phi import phi
from .._storage.archive import stored
from .block_lanczos import block_lanczos, function_within

COMPARED = 8  # questions of a chunk that two halves are compared on
TIGHT, MANY = 1e-8, 100  # share of a solution and products, where a product costs no pass over the data
NUMBERS_AT_ONCE = 2**27  # in a Krylov basis
COLUMNS = 2**13  # of roots that are multiplied at once


Functions: TypeAlias = Sequence[Callable[[Tensor], Tensor]]
PHI: Functions = (phi,)


@dataclass(frozen=True, eq=False)
class Applied:
    r"""Functions of X times some questions.

    Attributes:
        results: One for each function, shape `(m, p)`; the first is $\varphi(X)b$.
        agreements: With as many roots or samples as one could wish, foretold by two halves, for the first questions:
            correlation and slope of scores; the slope is below one where there are too few.
        steps: Products for each question.
    """

    results: tuple[Shaped[Tensor, "m p"], ...]
    agreements: tuple[tuple[float, float], ...] = ()
    steps: int = 0

    @property
    def vectors(self) -> Shaped[Tensor, "m p"]:
        r"""$\varphi(X)b$."""
        return self.results[0]


@stored("HorizonRoots")
@dataclass(frozen=True, eq=False)
class RootsEngine:
    r"""F as $Z^\top Z$: $\varphi$ in its eigenbasis, and $\varphi(D)$ outside of it.

    Attributes:
        roots: Z, in the coordinates of $A^{1/2}$.
        decay: D, one number, or one for each parameter: then $\varphi$ is found by Lanczos on the roots.
        vectors: Eigenvectors of $Z Z^\top$ in columns.
        values: Its eigenvalues.
        halves: Rows of two random halves of Z, and eigenvectors and eigenvalues of twice their own products.
    """

    roots: Shaped[Tensor, "k p"]
    decay: float | Tensor
    vectors: Float[Tensor, "k r"]
    values: Float[Tensor, " r"]
    halves: tuple[tuple[Tensor, Tensor, Tensor], ...]

    @classmethod
    def of(cls, roots: Shaped[Tensor, "k p"], decay: Tensor, seed: int) -> RootsEngine:
        """Factorises the Gram matrix, and those of two halves."""
        products = gram(roots)
        order = torch.randperm(len(roots), generator=torch.Generator().manual_seed(seed)).to(roots.device)
        parts = [part.sort().values for part in order.chunk(2)]
        halves = [(part, *_eigen(2 * products[part][:, part])) for part in parts] if len(parts) == 2 else []
        return cls(roots, plain(decay), *_eigen(products), tuple(halves))

    @property
    def trained(self) -> int:
        """Directions with an exponent above 1."""
        return int((self.values > 1).sum())

    def apply(self, b: Shaped[Tensor, "m p"], functions: Functions = PHI) -> Applied:
        """All questions by a few small products."""
        read = (b @ self.roots.T).double()  # (m, k)
        agreed = self._agreements(read[:COMPARED]) if self.halves else ()
        if isinstance(self.decay, Tensor):
            return Applied(tuple(self._by_lanczos(b, functions)), agreed)
        found = [_outside_and_inside(self.decay, self.vectors, self.values, read, each) for each in functions]
        return Applied(tuple(base * b + inside.to(b) @ self.roots for base, inside in found), agreed)

    def _agreements(self, read: Float[Tensor, "m k"]) -> tuple[tuple[float, float], ...]:
        """All of it in products of roots; decay counts in the mean."""
        decay, found = float(torch.as_tensor(self.decay).mean()), []
        across = self.vectors * self.values  # (k, r): with the vectors again, products of all roots
        for part, vectors, values in self.halves:
            base, inside = _outside_and_inside(decay, vectors, values, read[:, part], phi)
            found.append(base * read + 2 * inside @ self.vectors[part] @ across.T)
        places = [part for part, _, _ in self.halves]
        own = torch.cat([one[:, part] for one, part in zip(found, places, strict=True)], 1)
        other = torch.cat([one[:, part] for one, part in zip(found[::-1], places, strict=True)], 1)
        return _pairs((own * other).sum(1), other.square().sum(1), own.square().sum(1))

    def _by_lanczos(self, b: Tensor, functions: Functions) -> list[Tensor]:
        def product(v: Tensor) -> Tensor:
            return (v @ self.roots.T) @ self.roots + self.decay * v

        return lanczos_functions(product, b, functions, rtol=rough(b), max_steps=MANY)[0]


@stored("HorizonMatrix")
@dataclass(frozen=True, eq=False)
class DenseEngine:
    r"""X written out: for fewer parameters than roots.

    Attributes:
        vectors: Eigenvectors in columns.
        values: Exponents.
        halves: $A^{1/2} F A^{1/2}$ from two halves of the roots; none if nothing is left to chance.
        decay: D.
    """

    vectors: Float[Tensor, "p p"]
    values: Float[Tensor, " p"]
    halves: tuple[Float[Tensor, "p p"], ...]
    decay: Tensor

    @classmethod
    def of(cls, rows: Iterable[Tensor], decay: Tensor, *, chance: bool, ranks: Ranks = ALONE) -> DenseEngine:
        """Adds up outer products of roots in double precision, every other one in the second half."""
        p = len(decay)

        def halves() -> dict[int, Tensor]:
            sums = [torch.zeros(p, p, dtype=torch.float64, device=decay.device) for _ in range(2)]
            for part in rows:
                for half, some in zip(sums, (part[::2].double(), part[1::2].double()), strict=True):
                    half.addmm_(some.T, some)
            return dict(enumerate(sums))

        sums = list(ranks.added("multiplying roots", halves).values())
        whole = sums[0] + sums[1] + torch.diag(decay.double())
        values, vectors = torch.linalg.eigh(whole)
        return cls(vectors, values.clamp_min(0), tuple(2 * half for half in sums) if chance else (), decay)

    @property
    def trained(self) -> int:
        """Directions with an exponent above 1."""
        return int((self.values > 1).sum())

    def apply(self, b: Shaped[Tensor, "m p"], functions: Functions = PHI) -> Applied:
        """In the eigenbasis."""
        agreed = ()
        if self.halves:
            first = b[:COMPARED].double()
            found = [
                lanczos_functions(
                    lambda v, half=half: v @ half + self.decay.double() * v, first, [phi], rtol=TIGHT, max_steps=MANY
                )[0][0]
                for half in self.halves
            ]
            agreed = agreements_within(found, self.halves)
        along = b.double() @ self.vectors
        return Applied(tuple((along * each(self.values) @ self.vectors.T).to(b) for each in functions), agreed)


@dataclass(frozen=True, eq=False)
class ProductsEngine:
    """Block Lanczos with Gauss-Newton products on random samples, in two halves.

    Attributes:
        pilots: Two risks at the trained parameters.
        share: What their means are multiplied by where samples have weight 0.
        pace: $A^{1/2}$.
        decay: The part of D that is outside of the loss.
        steps: Products for each question, at most.
        rtol: Share of the last step in a solution, at which it ends.
        curvature: F. Of one that is not positive, directions of negative curvature count as if it were zero there.
    """

    pilots: tuple[Risk, ...]
    share: float
    pace: Tensor
    decay: Tensor
    steps: int
    rtol: float
    curvature: AbstractCurvature = field(default_factory=GaussNewton)

    def apply(self, b: Shaped[Tensor, "m p"], functions: Functions = PHI) -> Applied:
        """Questions in chunks, each with one subspace for all of its questions."""
        size = max(1, NUMBERS_AT_ONCE // (self.steps * b.shape[1]))
        parts = [self._apply(part, functions) for part in b.split(size)]
        whole = tuple(torch.cat(each) for each in zip(*(part.results for part in parts), strict=True))
        return Applied(whole, sum((part.agreements for part in parts), ()), max(part.steps for part in parts))

    def _apply(self, b: Tensor, functions: Functions) -> Applied:
        found = block_lanczos(self._products, b, phi, rtol=self.rtol, steps=self.steps)
        inside = [function_within(found.whole, each, found.inside) for each in functions]
        first = found.inside[:COMPARED]
        each = [function_within(half, phi, first) for half in found.halves] if len(self.pilots) == 2 else []
        whole = tuple(one.to(b) @ found.basis for one in inside)
        return Applied(whole, agreements_within(each, found.halves), found.steps)

    def _products(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        count = sum(pilot.n for pilot in self.pilots) / len(self.pilots)
        found = [pilot.n / count * self._product(pilot, rows) for pilot in self.pilots]
        return found[0], found[-1]

    def _product(self, pilot: Risk, rows: Tensor) -> Tensor:
        moved = rows * self.pace
        bent = self.curvature.product(pilot, moved)
        l2 = pilot.decay * moved
        return (self.share * (bent - l2) + l2) * self.pace + self.decay * rows


def gram(roots: Shaped[Tensor, "k p"]) -> Float[Tensor, "k k"]:
    """Products of all rows, some columns at a time, added up in double precision."""
    total = torch.zeros(len(roots), len(roots), dtype=torch.float64, device=roots.device)
    for part in roots.split(COLUMNS, 1):
        total += (part @ part.T).double()
    return total


def plain(decay: Tensor) -> float | Tensor:
    """One number, where it is one."""
    low, high = float(decay.min()), float(decay.max())
    return (low + high) / 2 if high - low <= 1e-6 * high else decay


def rough(b: Tensor) -> float:
    """The share at which Lanczos on stored numbers ends."""
    return TIGHT if b.dtype == torch.float64 else 1e-5


def _eigen(products: Float[Tensor, "k k"]) -> tuple[Tensor, Tensor]:
    """Eigenvectors in columns and eigenvalues, without those that are rounding."""
    values, vectors = torch.linalg.eigh(products)
    kept = values > 1e-12 * values.max().clamp_min(0)
    return vectors[:, kept], values[kept]


def _outside_and_inside(
    decay: float, vectors: Tensor, values: Tensor, read: Tensor, function: Callable[[Tensor], Tensor]
) -> tuple[float, Tensor]:
    """A function of D, and what is to be added to it along the roots, given the questions' products with these."""
    base = float(function(torch.tensor(decay, dtype=torch.float64)))
    return base, (read @ vectors * ((function(decay + values) - base) / values)) @ vectors.T


def agreements_within(found: list[Tensor], halves: tuple[Tensor, ...]) -> tuple[tuple[float, float], ...]:
    r"""Compares scores of the roots of each half with its own solution and with that of the other half.

    If every half is the truth and noise of its own, so that they correlate with r, their mean correlates with the truth
    by $1/\sqrt{1 + (1/r - 1)/2}$; and if what is missing of a slope of 1 falls as one over the number of roots, half
    of it is left with both. Scores of roots enter by their products alone.

    Args:
        found: Two solutions, `(m, k)`.
        halves: The matrices that they were found with.

    Returns:
        For each question the correlation, and the slope of own on other.
    """
    if len(found) < 2:
        return ()
    (u, v), (a, c) = found, halves

    def form(x: Tensor, matrix: Tensor, y: Tensor) -> Tensor:
        return (x @ matrix * y).sum(1)

    return _pairs(form(u, a, v) + form(v, c, u), form(v, a, v) + form(u, c, u), form(u, a, u) + form(v, c, v))


def _pairs(both: Tensor, squares: Tensor, mine: Tensor) -> tuple[tuple[float, float], ...]:
    correlations = (both / (squares * mine).clamp_min(1e-300).sqrt()).clamp(1e-6, 1)
    slopes = both / squares.clamp_min(1e-300)
    blank = squares <= 1e-200
    return tuple(
        (1.0, 1.0) if none else (float((1 + (1 / r - 1) / 2) ** -0.5), float((1 + slope) / 2))
        for none, r, slope in zip(blank, correlations, slopes, strict=True)
    )
