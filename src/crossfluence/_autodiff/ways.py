"""Three ways to differentiate a loss twice: each goes where the one before cannot, or is wrong."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

from .._types import Params
from ..errors import UnsupportedError
from .functional import VECTORS_AT_ONCE, differentiating, jvp, recorded, recorded_twice, strided, vmap_in_chunks
from .params import Layout, wide

Total: TypeAlias = Callable[[Params, Params], Tensor]
"""`(theta, frozen theta)` to the weighted sum of a batch's losses."""

Weighed: TypeAlias = Callable[[Params, Params, Tensor], Tensor]
"""The same, with the weights as an argument."""

Values: TypeAlias = Callable[[Params], Tensor]
"""Parameters to values `(b, ...)`, such as the losses of a batch."""


class AbstractWay(ABC):
    """A way to differentiate a training field. Directions are rows `(m, p)`, results have m in front."""

    @abstractmethod
    def products(self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]) -> Params:
        """The Jacobian of the field of `total` times each direction."""

    @abstractmethod
    def transposed_products(
        self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Params:
        """The transpose of that Jacobian times each direction."""

    def symmetric_products(
        self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Params:
        """Either of the two, whichever costs less, of a field that is a gradient."""
        return self.products(total, theta, layout, directions)

    @abstractmethod
    def derivatives(
        self, values: Values, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Shaped[Tensor, "m *values"]:
        """First derivatives of values along each direction."""

    @abstractmethod
    def sensitivities(
        self, total: Weighed, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"], weights: Tensor
    ) -> Shaped[Tensor, "m b"]:
        """Derivatives by each weight of the field along each direction."""

    def pulled(self, values: Values, theta: Params, cotangents: Callable[[Tensor], Tensor]) -> Params:
        """Pulls back cotangents `(m, b, ...)`, made from the values after the graph, with other attention kernels."""
        with recorded():
            live = _tracked(theta)
            z = values(live)
        with torch.no_grad():
            back = cotangents(z.detach()).to(z)
        return _named(theta, pulled_rows([z], list(live.values()), [back]))

    def rows(self, total: Weighed, theta: Params, weights: Tensor) -> Params:
        """Derivatives of the field by each weight: named tensors `(b, ...)`."""
        with recorded_twice():
            live, w = _tracked(theta), weights.detach().requires_grad_()
            (terms,) = _pull([total(live, theta, w)], [w], None, create=True)
            return gradient_rows(terms, live)


@dataclass(frozen=True)
class Forward(AbstractWay):
    """Forward mode over reverse mode, by `torch.func`."""

    def products(self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]) -> Params:
        """Pearlmutter's products, all directions in one vectorised pass."""

        def along(direction: Tensor) -> Params:
            return jvp(lambda at: grad(total)(at, at), theta, layout.unflatten(direction))

        return vmap_in_chunks(along, directions)

    def transposed_products(
        self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Params:
        """Reverse mode over forward mode."""

        def along(direction: Tensor) -> Params:
            tangent = layout.unflatten(direction)
            return grad(lambda at: jvp(lambda live: total(live, at), at, tangent))(theta)

        return vmap_in_chunks(along, directions)

    def derivatives(
        self, values: Values, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Shaped[Tensor, "m *values"]:
        """One forward-mode pass."""
        return vmap_in_chunks(lambda v: jvp(values, theta, layout.unflatten(v)), directions)

    def sensitivities(
        self, total: Weighed, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"], weights: Tensor
    ) -> Shaped[Tensor, "m b"]:
        """Reverse mode by the weights over forward mode by the parameters."""

        def along(direction: Tensor, w: Tensor) -> Tensor:
            return jvp(lambda live: total(live, theta, w), theta, layout.unflatten(direction))

        return vmap_in_chunks(lambda v: grad(along, argnums=1)(v, weights), directions)


@dataclass(frozen=True)
class Reverse(AbstractWay):
    """Reverse mode twice, by plain autograd: what PyTorch runs in training, and no transformation of it."""

    def products(self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]) -> Params:
        """The transposed products once more transposed, through a cotangent that is a variable."""
        with recorded_twice():
            base, field = _field(total, theta)
            cotangent = [torch.zeros_like(part).requires_grad_() for part in field]
            pulled = _pull(field, list(base.values()), cotangent, create=True)
            return _named(theta, pulled_rows(pulled, cotangent, _stacked(layout, directions)))

    def transposed_products(
        self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Params:
        """The gradient of the field along each direction."""
        with recorded_twice():
            base, field = _field(total, theta)
            return _named(theta, pulled_rows(field, list(base.values()), _stacked(layout, directions)))

    def symmetric_products(
        self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Params:
        """The transposed ones, which need one pass less."""
        return self.transposed_products(total, theta, layout, directions)

    def derivatives(
        self, values: Values, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Shaped[Tensor, "m *values"]:
        """The pull-back of a cotangent, differentiated by the cotangent."""
        with recorded_twice():
            base = _tracked(theta)
            z = values(base)
            cotangent = torch.zeros_like(z).requires_grad_()
            pulled = _pull([z], list(base.values()), [cotangent], create=True)
            return pulled_rows(pulled, [cotangent], _stacked(layout, directions))[0]

    def sensitivities(
        self, total: Weighed, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"], weights: Tensor
    ) -> Shaped[Tensor, "m b"]:
        """The gradient by the weights of the field along each direction."""
        with recorded_twice():
            live, w = _tracked(theta), weights.detach().requires_grad_()
            field = _pull([total(live, theta, w)], list(live.values()), None, create=True)
            return pulled_rows(field, [w], _stacked(layout, directions))[0]


@dataclass(frozen=True)
class Difference(AbstractWay):
    """Central differences of first derivatives, for functions that can be differentiated only once.

    Attributes:
        precision: Relative rounding error of the loss.
    """

    precision: float

    def products(self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]) -> Params:
        """Differences of the field, the frozen parameters moved along."""
        return self._differences(lambda at: slope(lambda live: total(live, at), at), theta, layout, directions)

    def transposed_products(
        self, total: Total, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Params:
        """Not to be had: a difference gives the Jacobian's columns, not its rows."""
        raise UnsupportedError(
            "A FieldLoss needs second derivatives that PyTorch can compute, and something in this model has none or "
            "wrong ones, such as an autograd.Function whose backward is not differentiable. Replace it by PyTorch's "
            "own operations."
        )

    def derivatives(
        self, values: Values, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"]
    ) -> Shaped[Tensor, "m *values"]:
        """Every value's gradient along each direction, if there is one value for each sample; else differences."""
        with recorded_twice():
            live = _tracked(theta)
            z = values(live)
            if z.ndim == 1:
                return directions @ layout.flatten(gradient_rows(z, live)).T  # (m, b)
        return self._differences(lambda at: values(at).detach(), theta, layout, directions)

    def sensitivities(
        self, total: Weighed, theta: Params, layout: Layout, directions: Shaped[Tensor, "m p"], weights: Tensor
    ) -> Shaped[Tensor, "m b"]:
        """Differences of the gradient by the weights."""

        def by_weights(at: Params) -> Tensor:
            return slope(lambda named: total(at, theta, named["w"]), {"w": weights})["w"]

        return self._differences(by_weights, theta, layout, directions)

    def rows(self, total: Weighed, theta: Params, weights: Tensor) -> Params:
        """Differences of the field, one weight after the other moved."""
        step = self.precision ** (1 / 3)
        found = []
        for unit in torch.eye(len(weights)).to(weights):
            ahead, behind = (
                slope(lambda live, w=weights + sign * step * unit: total(live, theta, w), theta) for sign in (1, -1)
            )
            found.append({name: (ahead[name] - behind[name]) / (2 * step) for name in theta})
        return {name: torch.stack([row[name] for row in found]) for name in theta}

    def _differences(self, function: Callable, theta: Params, layout: Layout, directions: Tensor):
        size = float(layout.flatten(theta).norm())
        found = []
        for direction in directions:
            step = step_length(self.precision, size, direction)
            move = layout.split(direction * step)
            ahead, behind = (function(moved(theta, move, sign)) for sign in (1, -1))
            found.append(tree_map(lambda a, b, step=step: (wide(a) - wide(b)) / (2 * step), ahead, behind))
        return tree_map(lambda *parts: torch.stack(parts), *found)


def moved(theta: Params, move: Params, factor: float) -> Params:
    """Parameters some way along a direction, in their own precision.

    Args:
        theta: Named tensors.
        move: Of the same names and shapes.
        factor: How far.

    Returns:
        New tensors.
    """
    return {name: part + (factor * move[name]).to(part) for name, part in theta.items()}


def step_length(precision: float, size: float, direction: Shaped[Tensor, " p"]) -> float:
    """The factor of a direction for a central difference: the cube root of the rounding error, of the parameters' size.

    Args:
        precision: Relative rounding error.
        size: Norm of the parameters.
        direction: Of any length.

    Returns:
        A positive number.
    """
    return precision ** (1 / 3) * max(size, 1e-3) / max(float(direction.norm()), 1e-300)


def slope(function: Callable[[Params], Tensor], theta: Params, *, differentiable: bool = False) -> Params:
    """The gradient of a scalar by plain autograd.

    Args:
        function: Of named tensors.
        theta: Where to differentiate.
        differentiable: Whether the gradient has a graph that begins with `theta`.

    Returns:
        Named tensors.
    """
    with recorded_twice():
        live = {name: part.view_as(part) for name, part in theta.items()} if differentiable else _tracked(theta)
        return _named(theta, _pull([function(live)], list(live.values()), None, create=differentiable))


def pulled_rows(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """Gradients along m rows of cotangents: together where the model allows it, otherwise one after the other.

    Args:
        outputs: With a graph, or without one: their gradient is zero.
        inputs: Where the graph began.
        cotangents: One for each output, with m in front of its shape.

    Returns:
        One for each input, with m in front of its shape.
    """
    chunks = zip(*(part.split(VECTORS_AT_ONCE) for part in cotangents), strict=True)
    parts = [_rows_together(outputs, inputs, chunk) for chunk in chunks]
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def value_and_rows(function: Values, theta: Params) -> tuple[Shaped[Tensor, " b"], Params]:
    """Values and the gradient of each, by plain autograd: it asks nothing of the function but one derivative.

    Args:
        function: Parameters to values `(b,)`.
        theta: Where to differentiate.

    Returns:
        The values, and named tensors `(b, ...)`.
    """
    with recorded_twice():
        live = _tracked(theta)
        values = function(live)
        with differentiating():
            return values.detach(), gradient_rows(values, live)


def gradient_rows(values: Shaped[Tensor, " b"], theta: Params) -> Params:
    """Every value's gradient, by one backward pass for each.

    Args:
        values: With a graph.
        theta: Tensors that the graph began with.

    Returns:
        Named tensors `(b, ...)`; zeros where a value does not depend on one.
    """
    units = torch.eye(len(values), dtype=values.dtype, device=values.device)
    return _named(theta, pulled_rows([values], list(theta.values()), [units]))


def _tracked(theta: Params) -> Params:
    return {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}


def _field(total: Total, theta: Params) -> tuple[Params, list[Tensor]]:
    """The parameters, and the field as their function: live and frozen ones are equal, derivatives are by the live."""
    base = _tracked(theta)
    live = {name: tensor.clone() for name, tensor in base.items()}
    return base, _pull([total(live, base)], list(live.values()), None, create=True)


def _pull(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None,
    *,
    create: bool,
    batched: bool = False,
) -> list[Tensor]:
    """Gradients of those outputs that have any, zeros where there are none."""
    chosen = [place for place, part in enumerate(outputs) if part.requires_grad]
    lead = cotangents[0].shape[:1] if batched and cotangents else ()
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if chosen:
        found = torch.autograd.grad(
            [outputs[place] for place in chosen],
            inputs,
            None if cotangents is None else [cotangents[place] for place in chosen],
            create_graph=create,
            retain_graph=create or cotangents is not None,
            allow_unused=True,
            is_grads_batched=batched,
        )
    pairs = zip(found, inputs, strict=True)
    return [part.new_zeros(*lead, *part.shape) if one is None else strided(one) for one, part in pairs]


def _rows_together(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    if len(cotangents[0]) > 1:
        with contextlib.suppress(RuntimeError):  # a function without a rule for batches, a layer without storage
            return _pull(outputs, inputs, cotangents, create=False, batched=True)
    each = [_pull(outputs, inputs, row, create=False) for row in zip(*cotangents, strict=True)]
    return [torch.stack(found) for found in zip(*each, strict=True)]


def _stacked(layout: Layout, directions: Shaped[Tensor, "m p"]) -> list[Tensor]:
    return list(layout.unflatten(directions).values())


def _named(theta: Params, found: Sequence[Tensor]) -> Params:
    return dict(zip(theta, found, strict=True))
