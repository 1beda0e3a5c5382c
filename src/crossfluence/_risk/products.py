"""The field of a risk, and products with its Jacobian and with the Gauss-Newton matrix, batch by batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from .._autodiff.functional import all_finite, bind, gradient_of, isolated
from .._autodiff.params import wide
from .._autodiff.ways import AbstractWay, value_and_rows
from .._data.batches import DataManifest
from .._data.dealt import dealt
from .._data.ranks import Ranks
from .._losses import AbstractLoss, OnOutputs
from .._types import Batch, Params
from ..errors import NonFiniteError, UnsupportedError
from .base import AbstractRisk
from .chosen import same_alone, weighted_rows
from .criterion import Rounding, across, of_batch
from .split import split_of

Along: TypeAlias = Callable[[Tensor, Batch, Tensor], Params]
"""Directions, a batch and its weights to one product for each direction."""

SAMPLES_BY_VECTORS = 160_000
"""Of one batch that are multiplied together. A coupled loss has all samples in one batch: 32 vectors of 20,000 took
three times the memory of 8, and a quarter more time."""

Self = TypeVar("Self", bound="AbstractBatchedRisk")


class AbstractBatchedRisk(AbstractRisk):
    """A risk whose loss is differentiated batch by batch.

    Attributes:
        reading: Length and content hash of each batch.
        total: `(theta, frozen theta, batch, weights)` to the weighted sum of the batch's losses.
        ranks: The processes that share the work.
    """

    reading: DataManifest
    total: Callable[[Params, Params, Batch, Tensor], Tensor]
    ranks: Ranks

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
    def passes(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, Batch, Tensor]]:
        """One reading of the data, or of some batches: number, batch and sample weights."""

    @abstractmethod
    def nan_message(self, index: int, batch: Batch, what: str = "The risk") -> str:
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

    @property
    def part(self) -> range:
        """Numbers of the batches that this rank reads: all of them, if it is the only one."""
        return self.ranks.part(self.reading.sizes)

    @property
    def weighted(self) -> frozenset[int]:
        """Numbers of the batches of this rank with a sample whose weight is not zero."""
        parts = self.weights.cpu().split(self.reading.sizes)
        return frozenset(index for index in self.part if parts[index].any())

    def derivatives_along(self, directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "n m"]:
        r"""Derivatives $\partial(u^\top g)/\partial w_i$ of the field along each direction, by each sample's weight.

        One forward-mode pass over the data for each direction; no per-sample gradient is formed.

        Args:
            directions: Vectors in parameter space, one in each row.

        Returns:
            Shape `(n, m)`.

        Raises:
            NonFiniteError: If a batch gives a NaN, with its number.
        """

        def rows() -> Iterator[tuple[int, Tensor]]:
            for index, batch, weights in self.passes(self.part):
                part = self._derivatives(batch, weights, directions)  # (m, b)
                if not all_finite(part):
                    raise NonFiniteError(self.nan_message(index, batch))
                yield index, part.T.to(self.weights) / self.n

        with isolated():
            return self.in_rows("scoring samples", rows, len(directions))

    def in_rows(
        self,
        what: str,
        rows: Callable[[], Iterable[tuple[int, Shaped[Tensor, "b m"]]]],
        m: int,
        sizes: Sequence[int] | None = None,
    ) -> Shaped[Tensor, "n m"]:
        """Rows of all samples, from those that each rank finds of its part.

        Args:
            what: Is done, as a clause for errors.
            rows: Numbers of batches, and rows of their samples.
            m: Numbers in a row.
            sizes: Rows of each batch; default: those of the training data.

        Returns:
            One row for each sample, in order.
        """
        starts = [0, *accumulate(self.reading.sizes if sizes is None else sizes)]

        def placed() -> dict[str, Tensor]:
            whole = self.weights.new_zeros(starts[-1], m)
            for index, part in rows():
                whole[starts[index] : starts[index + 1]] = part
            return {"rows": whole}

        return self.ranks.added(what, placed)["rows"]

    def in_order(
        self, what: str, rows: Callable[[], Iterable[tuple[int, Shaped[Tensor, "b m"]]]], m: int
    ) -> Shaped[Tensor, "c m"]:
        """As `in_rows`, of batches whose numbers of rows show as they are read.

        Args:
            what: Is done, as a clause for errors.
            rows: Numbers of batches, and their rows.
            m: Numbers in a row.

        Returns:
            All rows, in order of the batches.
        """
        if self.ranks.count == 1:
            return torch.cat([part for _, part in rows()])
        found: dict[int, Tensor] = {}

        def lengths() -> dict[int, int]:
            found.update(rows())
            return {index: len(part) for index, part in found.items()}

        sizes = {index: b for own in self.ranks.heard(what, lengths) for index, b in own.items()}
        return self.in_rows(what, found.items, m, [sizes[index] for index in sorted(sizes)])

    def derivatives_along_of(
        self, candidates: Iterable[Batch], directions: Shaped[Tensor, "m p"]
    ) -> Shaped[Tensor, "c m"]:
        """As `derivatives_along`, for samples that were not trained on.

        Args:
            candidates: Batches like those of the training data.
            directions: Vectors in parameter space, one in each row.

        Returns:
            Shape `(c, m)`.

        Raises:
            UnsupportedError: If the loss couples samples: then a new sample's effect depends on its batch.
            NonFiniteError: If a candidate gives a NaN, with its batch.
        """
        if not self.kind.per_sample:
            raise UnsupportedError(
                f"candidates= needs a per-sample loss; this risk has a {type(self.kind).__name__}, where a new "
                f"sample's effect depends on the samples beside it."
            )

        def rows(batches: Iterable[tuple[int, Batch]]) -> Iterator[tuple[int, Tensor]]:
            for index, batch in batches:
                part = self._derivatives(batch, self.weights[:0], directions)  # needs no weights
                if not all_finite(part):
                    raise NonFiniteError(f"Candidate batch {index} gives a NaN or an infinity. Clean or drop it.")
                yield index, part.T.to(self.weights) / self.n

        return self.in_order("scoring candidates", lambda: rows(dealt(candidates, self.ranks)), len(directions))

    def _derivatives(self, batch: Batch, weights: Tensor, directions: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m b"]:
        if self.kind.per_sample:
            losses = bind(self.kind.losses, self.model)
            return self.first.derivatives(lambda theta: losses(theta, batch), self.theta, self.layout, directions)
        return self.second.sensitivities(self._weighed(batch), self.theta, self.layout, directions, weights)

    def _weighed(self, batch: Batch) -> Callable[[Params, Params, Tensor], Tensor]:
        return lambda live, still, weights: self.total(live, still, batch, weights)

    def sample_gradients(self) -> Iterator[Shaped[Tensor, "b p"]]:
        r"""The rows $\partial g/\partial w_i$ of every sample, batch by batch; needs memory for b times p numbers.

        Yields:
            Shape `(b, p)` for each batch.

        Raises:
            NonFiniteError: If a batch gives a NaN, with its number.
        """
        for index, batch, weights in self.passes():
            rows = self.layout.flatten(self.rows_of(batch, weights)) / self.n
            if not all_finite(rows):
                raise NonFiniteError(self.nan_message(index, batch))
            yield rows

    def rows_of(self, batch: Batch, weights: Tensor) -> Params:
        r"""The rows $n\,\partial g/\partial w_i$ of one batch.

        Args:
            batch: One of the data.
            weights: Of its samples.

        Returns:
            Named tensors with b in front.
        """
        if not self.kind.per_sample:
            return self.second.rows(self._weighed(batch), self.theta, weights)
        losses = bind(self.kind.losses, self.model)
        return value_and_rows(lambda theta: losses(theta, batch), self.theta)[1]

    def field(self, theta: Params) -> Shaped[Tensor, " p"]:
        """The field g at any parameters: one pass over the samples that have a weight.

        Args:
            theta: Names and shapes of the trained parameters.

        Returns:
            Shape `(p,)`, l2 term included, in units of mean loss per parameter.

        Raises:
            NonFiniteError: If a batch gives a NaN, with its number.
        """

        def of_batch(batch: Batch, weights: Tensor) -> Params:
            return gradient_of(lambda at: self.total(at, theta, batch, weights), theta)

        flat = self.layout.flatten(theta)
        return self._summed("taking the gradient", of_batch, flat, "The risk").add_(flat.mul_(self.decay))

    def jacobian_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """J v for each row, in the way that the first look at the loss found to be right."""
        products = self.second.symmetric_products if self.symmetric else self.second.products
        with isolated():
            return self._accumulated(self._by(products), vectors)

    def jacobian_transpose_product(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Jᵀ v for each row."""
        if self.symmetric:
            return self.jacobian_product(vectors)
        with isolated():
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

        with isolated():
            total = self._accumulated(along, vectors)
            rounding.refuse(self.ranks)
        return total

    def _by(self, products: Callable[..., Params]) -> Along:
        def along(directions: Tensor, batch: Batch, weights: Tensor) -> Params:
            return products(
                lambda live, still: self.total(live, still, batch, weights), self.theta, self.layout, directions
            )

        return along

    def _accumulated(self, along: Along, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Sums a product over the batches, divides by n and adds the l2 term."""

        def of_batch(batch: Batch, weights: Tensor) -> Params:
            parts = [along(part, batch, weights) for part in vectors.split(max(1, SAMPLES_BY_VECTORS // len(weights)))]
            return parts[0] if len(parts) == 1 else {name: torch.cat([one[name] for one in parts]) for name in parts[0]}

        found = self._summed("multiplying with the curvature", of_batch, vectors, "A second derivative of the loss")
        return found.add_(self.decay * vectors)

    def _summed(
        self, what: str, of_batch: Callable[[Batch, Tensor], Params], like: Shaped[Tensor, "*m p"], blamed: str
    ) -> Shaped[Tensor, "*m p"]:
        """The mean over the samples of what batches give; samples of weight zero are left out where they may be."""

        def part() -> dict[str, Tensor]:
            total = torch.zeros_like(like)
            for index, batch, weights in self.passes(self.weighted):
                found = of_batch(*self._weighted_rows(index, batch, weights))
                if not all(map(all_finite, found.values())):
                    raise NonFiniteError(self.nan_message(index, batch, blamed))
                self.layout.add(total, found, 1 / self.n)
                del found  # not beside the next one
            return {"total": total}

        return self.ranks.added(what, part)["total"]

    def _weighted_rows(self, index: int, batch: Batch, weights: Tensor) -> tuple[Batch, Tensor]:
        """The samples of a batch that have a weight, where their losses do not depend on the others; else all."""
        known = ("alone", index)
        if self.remembered.get(known) is False or (few := weighted_rows(self.kind, batch, weights)) is None:
            return batch, weights
        if known not in self.remembered:
            self.remembered[known] = same_alone(
                self.kind, self.model, self.theta, batch, weights, few[0], self.precision
            )
        return few if self.remembered[known] else (batch, weights)
