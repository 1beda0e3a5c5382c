"""The field of a risk, and products with its Jacobian and with the Gauss-Newton matrix, batch by batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar

from jaxtyping import Shaped
from torch import Tensor, nn

from .._autodiff.functional import all_finite, bind, gradient_of, undisturbed
from .._autodiff.params import wide
from .._autodiff.ways import AbstractWay
from .._data.batches import Reading
from .._losses import AbstractLoss, OnOutputs
from .._types import Batch, Params
from ..errors import NonFiniteError, UnsupportedError
from .base import AbstractRisk
from .criterion import Rounding, across, of_batch
from .split import split_of

Along: TypeAlias = Callable[[Tensor, Batch, Tensor], Params]
"""Directions, a batch and its weights to one product for each direction."""


Self = TypeVar("Self", bound="AbstractBatchedRisk")


class AbstractBatchedRisk(AbstractRisk):
    """A risk whose loss is differentiated batch by batch.

    Attributes:
        reading: Length and content hash of each batch.
        total: `(theta, frozen theta, batch, weights)` to the weighted sum of the batch's losses.
    """

    reading: Reading
    total: Callable[[Params, Params, Batch, Tensor], Tensor]

    @property
    @abstractmethod
    def kind(self) -> AbstractLoss:
        """The loss as one of the four kinds."""

    @property
    @abstractmethod
    def first(self) -> AbstractWay:
        """The way to differentiate the loss once along a direction."""

    @property
    @abstractmethod
    def second(self) -> AbstractWay:
        """The way to differentiate the loss twice."""

    @abstractmethod
    def passes(self) -> Iterator[tuple[int, Batch, Tensor]]:
        """One reading of the data: number, batch and sample weights."""

    @abstractmethod
    def blame(self, index: int, batch: Batch, what: str = "The risk") -> str:
        """A sentence about a number that is not finite, and where it begins."""

    @abstractmethod
    def rebuilt(self: Self, model: nn.Module, loss: AbstractLoss, theta: Params, weights: Tensor) -> Self:
        """The same data with another model, loss, parameters and precision."""

    @abstractmethod
    def look(self) -> None:
        """Finds the ways to differentiate, from the first batch."""

    @property
    def split(self) -> OnOutputs | str:
        """The loss split at the model's outputs, or the reason why it cannot be, as a clause; worked out once."""
        if "split" not in self.remembered:
            self.remembered["split"] = split_of(self.kind, self.model, self.theta, self.passes, self.precision)
        return self.remembered["split"]

    def on_outputs(self, who: str, instead: str) -> OnOutputs:
        """The loss split at the model's outputs.

        Args:
            who: Needs it.
            instead: What else to type.

        Returns:
            The loss itself, or one with the same values.

        Raises:
            UnsupportedError: If there is no split, with the reason and how to write one.
        """
        found = self.split
        if isinstance(found, OnOutputs):
            return found
        raise UnsupportedError(
            f"{who} needs to know where the outputs are; this risk has a {type(self.kind).__name__}: {found}. Write "
            f"the loss as OnOutputs(outputs, criterion), with outputs = lambda model, batch: ... of shape (b, ...) and "
            f"criterion = lambda outputs, batch: ... of shape (b,), or {instead}."
        )

    def field(self, theta: Params) -> Shaped[Tensor, " p"]:
        """The field g at any parameters: one pass over the data; batches whose weights are all zero cost nothing.

        Args:
            theta: Names and shapes of the trained parameters.

        Returns:
            Shape `(p,)`, l2 term included, in units of mean loss per parameter.

        Raises:
            NonFiniteError: If a batch gives a NaN, with its number.
        """
        total = self.layout.flatten(theta).mul_(self.decay)
        for index, batch, weights in self.passes():
            if not weights.any():
                continue
            found = gradient_of(lambda at, batch=batch, w=weights: self.total(at, theta, batch, w), theta)
            if not all(map(all_finite, found.values())):
                raise NonFiniteError(self.blame(index, batch))
            self.layout.add(total, found, 1 / self.n)
            del found  # not beside the next one
        return total

    def jacobian_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """J v for each row, in the way that the first look at the loss found to be right."""
        products = self.second.symmetric_products if self.symmetric else self.second.products
        with undisturbed():
            return self._accumulated(self._by(products), vectors)

    def jacobian_transpose_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Jᵀ v for each row."""
        if self.symmetric:
            return self.jacobian_product(vectors)
        with undisturbed():
            return self._accumulated(self._by(self.second.transposed_products), vectors)

    def gauss_newton_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """G v for each row: forward through the outputs, across the criterion, and back.

        Args:
            vectors: One in each row.

        Returns:
            One product in each row.

        Raises:
            UnsupportedError: If the loss is not split at the outputs, and no split is found.
        """
        loss = self.on_outputs("GaussNewton", "use curvature=Hessian()")
        outputs, rounding = bind(loss.outputs, self.model), Rounding()

        def along(directions: Tensor, batch: Batch, weights: Tensor) -> Params:
            criterion = of_batch(loss.criterion, batch)

            def values(theta: Params) -> Tensor:
                return outputs(theta, batch)

            def cotangents(z: Tensor) -> Tensor:
                moves = self.first.derivatives(values, self.theta, self.layout, directions)
                rounding.add(criterion, wide(z), weights)
                return across(criterion, wide(z), moves, weights)

            return self.first.pulled(values, self.theta, cotangents)

        with undisturbed():
            total = self._accumulated(along, vectors)
            rounding.refuse()
        return total

    def _by(self, products: Callable[..., Params]) -> Along:
        def along(directions: Tensor, batch: Batch, weights: Tensor) -> Params:
            return products(
                lambda live, still: self.total(live, still, batch, weights), self.theta, self.layout, directions
            )

        return along

    def _accumulated(self, along: Along, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Sums a product over the batches, divides by n and adds the l2 term; batches of weight zero are free."""
        total = self.decay * vectors
        for index, batch, weights in self.passes():
            if not weights.any():
                continue
            part = along(vectors, batch, weights)
            if not all(map(all_finite, part.values())):
                raise NonFiniteError(self.blame(index, batch, "A second derivative of the loss"))
            self.layout.add(total, part, 1 / self.n)
            del part  # not beside the next one
        return total
