"""A loss evaluated at and around the trained parameters, and whether its derivatives agree with its values there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import differentiating, recorded_twice, strided
from .._autodiff.params import Layout
from .._autodiff.ways import AbstractWay, Difference, Forward, Reverse, moved, step_length
from .._types import Params

DIRECTIONS = 3  # along which derivatives are compared; two must disagree, since one may cross a kink
CLOSE = 0.05  # of a limit: the first direction settles it alone
FIRST_DISAGREEMENT = 0.05  # share of a first derivative; kinks and rounding stay far below
EXACT_DISAGREEMENT = 1e-3  # share of a first derivative by another way, without kinks
SECOND_DISAGREEMENT = 0.02  # share of a product with the curvature
COARSE = 1e-4  # rounding beyond which differences tell nothing
ELSEWHERE = (-1.0, 0.5)  # factors of the parameters
SETTLED = 0.25  # of a gap, by which a wider difference may change
WIDER = 8  # times the step of a difference, to see whether it depends on the step
DRAWS = 8  # more calls of a loss or a question that draws random numbers
ROUNDINGS = 100  # rounding errors of a value that a difference may hold

Terms = Callable[[Params, Params], Tensor]
"""`(theta, frozen theta)` to the losses of some samples `(b,)`, or to the one loss of a batch `(1,)`."""


@dataclass(frozen=True, eq=False)
class Point:
    """A loss at some parameters.

    Attributes:
        terms: The losses, shape `(b,)`.
        slope: Gradient of their signed sum, shape `(p,)`.
        functions: Names of the user's own autograd functions that were met on the way.
        reached: Whether the losses depend on the parameters at all.
        others: Tensors beside the parameters that the losses depend on and that ask for gradients.
    """

    terms: Shaped[Tensor, " b"]
    slope: Shaped[Tensor, " p"]
    functions: tuple[str, ...]
    reached: bool
    others: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Look:
    """A loss of some samples as a function of the parameters.

    The samples are added up with signs, so that nothing cancels at a minimum.

    Attributes:
        terms: The losses.
        theta: The trained parameters.
        layout: Their names and shapes.
        signs: Of the samples, shape `(b,)`.
        moving: 1 for entries that training moves, 0 for padding rows, shape `(p,)`.
        precision: Relative rounding error of the loss.
    """

    terms: Terms
    theta: Params
    layout: Layout
    signs: Shaped[Tensor, " b"]
    moving: Shaped[Tensor, " p"]
    precision: float

    def scalar(self, live: Params, still: Params) -> Tensor:
        """The signed sum."""
        terms = self.terms(live, still)
        return (self.signs.to(terms) * terms).sum()

    def at(self, theta: Params) -> Point:
        """Losses and slope at some parameters, the frozen ones beside them: one call of the loss."""
        with recorded_twice():
            live = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
            terms = self.terms(live, theta)
            if not terms.requires_grad:
                return Point(terms.detach(), self.layout.flatten(theta) * 0, (), reached=False)
            total = (self.signs.to(terms) * terms).sum()
            with differentiating():
                found = torch.autograd.grad(total, list(live.values()), allow_unused=True)
        reached = any(part is not None for part in found)
        dense = (
            torch.zeros_like(live[name]) if part is None else strided(part)
            for name, part in zip(live, found, strict=True)
        )
        slope = self.layout.flatten(dict(zip(theta, dense, strict=True)))
        functions, others = _beside(terms, live.values())
        return Point(terms.detach(), slope, functions, reached, others)

    def with_buffers(self, buffers: Params) -> Tensor | None:
        """The losses with a graph from some of the model's buffers; nothing, where that cannot be had."""
        with recorded_twice(), contextlib.suppress(Exception):
            return self.terms({**self.theta, **buffers}, self.theta)
        return None

    def around(self) -> Iterator[Around]:
        """Random directions, with the loss a small step ahead and behind along each."""
        flat = self.layout.flatten(self.theta)
        for seed in range(DIRECTIONS):
            direction = random_direction(self.layout, self.theta, seed)
            step = step_length(self.precision, float(flat.norm()), direction)
            move = self.layout.split(direction * self.moving * step)
            ahead, behind = (self.at(moved(self.theta, move, sign)) for sign in (1, -1))
            yield Around(direction, step, ahead, behind)

    @cached_property
    def elsewhere(self) -> tuple[Point, ...]:
        """The loss at parameters of other sign and size: how large the terms are that cancel in a perfect fit."""
        return tuple(self.at({name: scale * part for name, part in self.theta.items()}) for scale in ELSEWHERE)


@dataclass(frozen=True, eq=False)
class Around:
    """A direction, and the loss on both sides.

    Attributes:
        direction: Shape `(p,)`.
        step: How far along it, as a factor.
        ahead: The loss there.
        behind: The loss on the other side.
    """

    direction: Shaped[Tensor, " p"]
    step: float
    ahead: Point
    behind: Point

    def value_gap(self, look: Look, here: Point, *others: Point) -> float:
        """Gap between the derivative and the difference of values, beyond kinks and rounding, as a share of them."""
        signs = look.signs.to(here.terms)
        ahead, behind, middle = (float((signs * point.terms).sum()) for point in (self.ahead, self.behind, here))
        difference, derivative = (ahead - behind) / (2 * self.step), float(here.slope @ self.direction)
        bend = abs(ahead + behind - 2 * middle) / self.step  # of the slope over the step: what a kink can do at most
        noise = ROUNDINGS * look.precision * _largest(p.terms for p in (self.ahead, self.behind, here, *others))
        return _share(abs(difference - derivative) - noise / self.step - bend, abs(difference), abs(derivative))

    def first_gap(self, look: Look, here: Point, way: AbstractWay, *others: Point) -> float:
        """Gap between a way's derivative along the direction and the gradient's."""
        found = way.derivatives(lambda at: look.terms(at, at), look.theta, look.layout, self.direction[None])[0]
        derivative, wanted = float((look.signs.to(found) * found).sum()), float(here.slope @ self.direction)
        lengths = (float((point.slope * self.direction).abs().sum()) for point in (here, *others))
        size = max(float(found.abs().sum()), *lengths)  # terms that cancel in the sum
        return _share(abs(derivative - wanted) - ROUNDINGS * look.precision * size, abs(wanted), abs(derivative))

    def second_gap(self, look: Look, here: Point, way: AbstractWay, *others: Point) -> float:
        """Gap between a way's product with the Jacobian and the difference of gradients."""
        found = way.products(look.scalar, look.theta, look.layout, self.direction[None])
        product = look.layout.flatten(found)[0]
        if not product.isfinite().all():
            return 0.0  # no reason to go another way round: the pass over the data names it
        units = self.direction.abs()  # of the parameters: what comes out has none
        before, after, middle, *far = (units * p.slope for p in (self.behind, self.ahead, here, *others))
        difference, product = (after - before) / (2 * self.step), units * product
        bend = float((after + before - 2 * middle).norm()) / self.step
        noise = ROUNDINGS * look.precision * _largest((before, after, middle, *far))
        gap = float((difference - product).norm())
        share = _share(gap - noise / self.step - bend, float(difference.norm()), float(product.norm()))
        return share if share <= SECOND_DISAGREEMENT or self._settles(look, units, difference, gap) else 0.0

    def _settles(self, look: Look, units: Shaped[Tensor, " p"], difference: Shaped[Tensor, " p"], gap: float) -> bool:
        """True if a wider difference is the same, beside the gap: at a kink, and where rounding decides, it is not."""
        move = look.layout.split(WIDER * self.step * self.direction * look.moving)
        ahead, behind = (look.at(moved(look.theta, move, sign)).slope for sign in (1, -1))
        wider = units * (ahead - behind) / (2 * WIDER * self.step)
        return float((wider - difference).norm()) <= SETTLED * gap


@dataclass(frozen=True, eq=False)
class Chosen:
    """The ways that agree with values and gradients.

    Attributes:
        first: To differentiate once along a direction.
        second: To differentiate twice.
        refused: Why the ways before them were passed over.
    """

    first: AbstractWay
    second: AbstractWay
    refused: tuple[str, ...] = ()


def disagree(gaps: Iterable[float], limit: float) -> bool:
    """True if derivatives differ along most directions; where they agree closely along the first, it stands for all.

    Args:
        gaps: One for each direction, worked out as it is read.
        limit: What a gap may be.

    Returns:
        True if at least half of the gaps, and two, exceed the limit.

    Example:
        >>> disagree([0.001, 1.0, 1.0], 0.05), disagree([0.2, 0.3, 0.001], 0.05)
        (False, True)
    """
    found = []
    for gap in gaps:
        found.append(gap)
        if len(found) == 1 and gap <= CLOSE * limit:
            return False
    return sum(not gap <= limit for gap in found) > len(found) / 2


def random_direction(layout: Layout, theta: Params, seed: int) -> Shaped[Tensor, " p"]:
    """A random direction that moves each parameter by about its own size, so that no unit decides.

    Args:
        layout: Of the parameters.
        theta: The parameters.
        seed: Of the draw.

    Returns:
        Shape `(p,)`.
    """
    flat, generator = layout.flatten(theta), torch.Generator().manual_seed(seed)
    sizes = {name: _sizes(part) for name, part in theta.items()}
    return torch.randn(len(flat), generator=generator).to(flat) * layout.flatten(sizes)


def _sizes(part: Tensor) -> Tensor:
    """The size of each number; zeros are taken to be as large as the median of the others."""
    sizes = part.abs()
    others = sizes[sizes > 0]
    return torch.where(sizes > 0, sizes, others.median() if len(others) else 1e-8)


def choose(look: Look, here: Point, around: Iterable[Around]) -> Chosen:
    """The first of forward mode, reverse mode twice and differences whose derivatives agree with the loss.

    Args:
        look: The loss of some samples.
        here: At the trained parameters.
        around: Directions to compare along; the second and third are asked for only if the first disagrees.

    Returns:
        Ways for first and second derivatives.
    """
    refused: list[str] = []
    ways = (Forward(), Reverse()) if look.moving.all() else (Reverse(),)  # forward mode moves padding rows

    def agreeing(gap: Callable[[Around, AbstractWay], float], limit: float) -> AbstractWay | None:
        for way in ways:
            if not (reason := refusal(way, gap, limit)):
                return way
            refused.append(reason)
        return None

    def refusal(way: AbstractWay, gap: Callable[[Around, AbstractWay], float], limit: float) -> str:
        try:
            wrong = disagree((gap(place, way) for place in around), limit)
        except Exception as error:
            return str(error).strip().partition("\n")[0] or type(error).__name__
        return f"{type(way).__name__} disagrees with the gradient" if wrong else ""

    last = Difference(look.precision)

    def chosen(gap: Callable[..., float], limit: float) -> AbstractWay | None:
        """In a perfect fit, rounding is that of the terms that cancel: only then are they looked at."""
        plain = agreeing(lambda place, way: gap(place, look, here, way), limit)
        return plain or agreeing(lambda place, way: gap(place, look, here, way, *look.elsewhere), limit)

    first, second = chosen(Around.first_gap, EXACT_DISAGREEMENT), chosen(Around.second_gap, SECOND_DISAGREEMENT)
    return Chosen(first or last, second or last, tuple(refused))


def agrees(look: Look, here: Point, around: Iterable[Around], way: AbstractWay) -> bool:
    """True if a way's second derivatives agree with differences of gradients, beyond kinks and rounding.

    Args:
        look: The loss of some samples.
        here: At the trained parameters.
        around: Directions to compare along.
        way: To differentiate twice.

    Returns:
        False if most directions disagree.
    """
    return any(
        not disagree((place.second_gap(look, here, way, *others) for place in around), SECOND_DISAGREEMENT)
        for others in ((), look.elsewhere)
    )


class Remembered(Iterable[Any]):
    """An iterator that can be read again, and is read no further than asked for."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source, self._known = source, []

    def __iter__(self) -> Iterator[Any]:
        yield from self._known
        for item in self._source:
            self._known.append(item)
            yield item


def _beside(value: Tensor, known: Iterable[Tensor]) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Names of the autograd functions written in Python that a value came through, and the leaves beside known ones."""
    names, places, others = {}, {id(tensor) for tensor in known}, {}
    for node in _nodes(value):
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            names[type(node).__name__.removesuffix("Backward")] = None
        leaf = getattr(node, "variable", None)  # of the nodes that end a graph
        if isinstance(leaf, Tensor) and id(leaf) not in places:
            others[id(leaf)] = leaf
    return tuple(names), tuple(others.values())


def _nodes(value: Tensor) -> Iterator[Any]:
    """Every node of a graph once."""
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        yield node


def _largest(parts: Iterable[Tensor]) -> float:
    return max(float(part.abs().sum()) if part.isfinite().all() else 0.0 for part in parts)


def _share(gap: float, *sizes: float) -> float:
    return gap / max(*sizes, 1e-300)
