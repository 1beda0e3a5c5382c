"""Kronecker factors, their eigenbases, and mean squared gradients along them: the curvature that EK-FAC inverts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._autodiff.functional import evaluated
from .._autodiff.params import Layout
from .._curvature.fisher import AbstractFisher
from .._curvature.output_gradients import projected
from .._data.samples import SAMPLES, first_samples
from .._losses import length_of
from .._risk.risk import Risk
from .._storage.archive import stored
from .._storage.partial import NO_CHECKPOINT, Checkpoint
from .._types import Batch, SampleLoss
from ..errors import NonFiniteError
from .coupled import CoupledRows
from .gradients import AbstractGradients, ByBlock, ParameterBlock
from .layers import Layers, layers_of
from .pace import Pace

Moments: TypeAlias = dict[ParameterBlock, tuple[Tensor, ...]]
Bases: TypeAlias = tuple[tuple[ParameterBlock, Tensor | None, Tensor | None], ...]
Keep: TypeAlias = Callable[[Callable[[], "FitProgress"]], None]
LONGEST_SIDE = 8_192  # of a block, beyond which it keeps its own coordinates: its factor would not fit


@stored("Eigenblock")
@dataclass(frozen=True, eq=False)
class Eigenblock:
    r"""One block of a curvature, $(U_L \otimes U_R)\operatorname{diag}(\text{values})(U_L \otimes U_R)^\top$.

    A block with one row is exact, because its right factor is all of it; one without bases is a diagonal.

    Attributes:
        slot: Where it lies.
        left: Eigenvectors of the output gradients' factor in columns, `(g, r, r)`; `None` for the rows as they are.
        right: The same of the inputs' factor, `(g, c, c)`.
        values: Mean squared gradients along the eigenvectors, `(g, r, c)`, in units of the mean loss; without l2.
    """

    slot: ParameterBlock
    left: Tensor | None
    right: Tensor | None
    values: Shaped[Tensor, "g r c"]

    def apply_eigenfunction(self, block: Shaped[Tensor, "m g r c"], values: Shaped[Tensor, "g r c"]) -> Tensor:
        """A block with its components along the eigenvectors multiplied by a function's values there."""
        return self.back(self.along(block) * values)

    def along(self, block: Shaped[Tensor, "m g r c"]) -> Shaped[Tensor, "m g r c"]:
        """Components along the eigenvectors."""
        block = block if self.left is None else self.left.mT @ block
        return block if self.right is None else block @ self.right

    def back(self, components: Shaped[Tensor, "m g r c"]) -> Shaped[Tensor, "m g r c"]:
        """The inverse of `along`."""
        block = components if self.left is None else self.left @ components
        return block if self.right is None else block @ self.right.mT


@stored("Sums")
@dataclass(frozen=True, eq=False)
class FitProgress:
    """A pass over the data that is under way.

    Attributes:
        done: Batches that are in it.
        draws: State of the generator of draws after them.
        totals: By block, divided by n, in float64.
    """

    done: int = 0
    draws: Tensor | None = None
    totals: tuple[tuple[ParameterBlock, tuple[Tensor, ...]], ...] = ()


@dataclass(frozen=True, eq=False)
class KroneckerFit:
    """All blocks of a curvature, pass by pass over the data.

    Attributes:
        risk: The trained model.
        curvature: Whose blocks.
        layers: Of the model.
        by_factors: Whether it takes a pass for the Kronecker factors; without, blocks are diagonal.
        by_squares: Whether it takes a pass for the eigenvalues; without, they are products of those of the factors.
        pace: What a training did to each parameter; bases are then those of the scaled factors, times the scale.
    """

    risk: Risk
    curvature: AbstractFisher
    layers: Layers | CoupledRows
    by_factors: bool = True
    by_squares: bool = True
    pace: Pace | None = None

    @classmethod
    def of(
        cls,
        risk: Risk,
        curvature: AbstractFisher,
        *,
        by_factors: bool = True,
        by_squares: bool = True,
        in_full: bool = False,
    ) -> KroneckerFit:
        """Looks at the layers; `in_full`: second moments of whole layers' gradients, where these are small."""
        if not risk.kind.per_sample:
            rows = CoupledRows.of(risk, LONGEST_SIDE if in_full else 0)
            return cls(risk, curvature, rows, by_factors, by_squares)
        number = largest_batch(risk)
        _, batch, output_gradients = next(curvature.output_gradients(risk, number))
        layers = layers_of_risk(risk, output_gradients.outputs, batch)
        return cls(risk, curvature, replace(layers, rows=LONGEST_SIDE) if in_full else layers, by_factors, by_squares)

    def blocks(self, kept: Checkpoint = NO_CHECKPOINT) -> list[Eigenblock]:
        """Fits every block.

        Args:
            kept: Is offered the sums after each batch.

        Returns:
            One block for each slot of the layers, in the precision of the model.

        Raises:
            NonFiniteError: If a gradient is not finite, with its batch and parameters.

        References:
            Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015;
            George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018;
            Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural network architectures",
            NeurIPS 2023, for layers that are used at many positions.
        """
        bases, so_far = kept.state or ((), FitProgress())
        if self.by_factors and not bases:
            moments = self.moments(so_far, lambda sums: kept.maybe_save(lambda: ((), sums())))
            if not self.by_squares:
                return self.products(moments)
            bases, so_far = self.bases(moments), FitProgress()
            kept.maybe_save(lambda: (bases, so_far))
        return self.along(bases, so_far, lambda sums: kept.maybe_save(lambda: (bases, sums())))

    def moments(self, so_far: FitProgress = FitProgress(), keep: Keep | None = None) -> Moments:
        """One pass: mean second moments of both sides of each block, in float64."""
        return self._mean(lambda _, gradients: gradients.moments(LONGEST_SIDE), so_far, keep)

    def bases(self, moments: Moments) -> Bases:
        """Eigenvectors of both sides of each block, in the precision of the model; `None` for sides without factors."""
        both = {slot: self._eigen(slot, *sides) for slot, (*sides, _) in moments.items()}
        return tuple((slot, left, right) for slot, ((_, left), (_, right)) in both.items())

    def _eigen(
        self, slot: ParameterBlock, left: Tensor, right: Tensor
    ) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """Of both sides of a block."""
        rows, columns = (None, None) if self.pace is None else self.pace.sides(slot)
        return _eigen(left, self.risk.weights, rows), _eigen(right, self.risk.weights, columns)

    def along(self, bases: Bases, so_far: FitProgress = FitProgress(), keep: Keep | None = None) -> list[Eigenblock]:
        """One pass: mean squared gradients along the eigenvectors, or along the parameters where there are none."""
        sides = {slot: (left, right) for slot, left, right in bases}

        def squares(slot: ParameterBlock, gradients: AbstractGradients) -> tuple[Tensor]:
            return (gradients.squares_along(*sides.get(slot, (None, None))),)

        found = self._mean(squares, so_far, keep)
        return self._whole({slot: (*sides.get(slot, (None, None)), values) for slot, (values,) in found.items()})

    def products(self, moments: Moments) -> list[Eigenblock]:
        """Without another pass: products of the factors' eigenvalues."""
        found = {}
        for slot, (*sides, excess) in moments.items():
            (rows, turned), (columns, across) = self._eigen(slot, *sides)
            sizes = excess.clamp_min(torch.finfo(excess.dtype).tiny)[:, None, None]
            found[slot] = turned, across, rows.unsqueeze(2) * columns.unsqueeze(1) / sizes
        return self._whole(found)

    def _whole(self, found: dict[ParameterBlock, tuple[Tensor | None, Tensor | None, Tensor]]) -> list[Eigenblock]:
        """All blocks in the precision of the model; zero where no batch reaches one."""
        like = self.risk.weights
        unused = {slot: (None, None, like.new_zeros(slot.form)) for slot in self.layers.slots}
        return [
            Eigenblock(slot, left, right, values.to(like)) for slot, (left, right, values) in (unused | found).items()
        ]

    def _found(self, start: int, draws: torch.Generator) -> Iterator[tuple[int, Batch, Iterator[ByBlock]]]:
        """Gradients by block of each batch of this rank's part, for each of its output gradients."""
        part = self.risk.part
        if isinstance(self.layers, CoupledRows):
            for index, batch, weights in self.risk.passes(range(max(start, part.start), max(start, part.stop))):
                yield index, batch, self.layers.rows(batch, weights)
            return
        for index, batch, output_gradients in self.curvature.output_gradients(self.risk, start, draws, part):
            yield index, batch, self.layers.along(output_gradients, batch)

    def _mean(
        self,
        statistic: Callable[[ParameterBlock, AbstractGradients], tuple[Tensor, ...]],
        so_far: FitProgress,
        keep: Keep | None,
    ) -> Moments:
        """Statistics of the samples' gradients, added up in double precision and divided by n."""
        ranks = self.risk.ranks

        def part() -> dict[tuple[ParameterBlock, int], Tensor]:
            found = self._part_of_mean(statistic, so_far, keep if ranks.count == 1 else None)
            return {(slot, place): part for slot, parts in found.items() for place, part in enumerate(parts)}

        whole: dict[ParameterBlock, tuple[Tensor, ...]] = {}
        for (slot, _), part_of_slot in ranks.added("fitting", part, self.risk.weights.device).items():
            whole[slot] = (*whole.get(slot, ()), part_of_slot)
        return whole

    def _part_of_mean(
        self,
        statistic: Callable[[ParameterBlock, AbstractGradients], tuple[Tensor, ...]],
        so_far: FitProgress,
        keep: Keep | None,
    ) -> Moments:
        """Of the samples that this rank reads; an earlier part counts on the first rank."""
        risk, draws = self.risk, self.curvature.generator()
        totals = {} if risk.ranks.number else dict(so_far.totals)
        if so_far.draws is not None:
            draws.set_state(so_far.draws.cpu())
        batches = tqdm(
            self._found(so_far.done, draws), desc="EK-FAC", unit="batch", initial=so_far.done,
            total=len(risk.part), disable=None, leave=False,
        )  # fmt: skip
        for index, batch, each in batches:
            for found in each:
                for slot, gradients in found.items():
                    parts = statistic(slot, gradients)
                    if not all(part.sum().isfinite() for part in parts):
                        raise NonFiniteError(
                            risk.nan_message(index, batch, f"The gradient by {' and '.join(slot.names)}")
                        )
                    if slot not in totals:
                        totals[slot] = tuple(torch.zeros_like(part, dtype=torch.float64) for part in parts)
                    for total, part in zip(totals[slot], parts, strict=True):
                        total.add_(part, alpha=1 / risk.n)
            if keep is not None:
                keep(lambda done=index + 1: FitProgress(done, draws.get_state(), tuple(totals.items())))
        return totals


def apply_eigenfunction(
    blocks: Sequence[Eigenblock], values: Sequence[Tensor], layout: Layout, vectors: Shaped[Tensor, "m p"]
) -> Shaped[Tensor, "m p"]:
    """A function of the matrix times vectors: components along all eigenvectors, multiplied by its values there.

    Args:
        blocks: Of all parameters.
        values: Of the function, one for each eigenvalue of each block.
        layout: Of the parameters.
        vectors: One in each row.

    Returns:
        One in each row, in the precision of the given ones.
    """
    params, found = layout.split(vectors), {}
    if sum(block.slot.size for block in blocks) < layout.size:  # some layers were left out
        found = {name: torch.zeros_like(part) for name, part in params.items()}
    for block, each in zip(blocks, values, strict=True):
        found |= block.slot.scatter(block.apply_eigenfunction(block.slot.gather(params), each))
    return layout.flatten(found).to(vectors)


def layers_of_risk(risk: Risk, outputs: SampleLoss | None = None, batch: Batch | None = None) -> Layers:
    """The layers of a model as its training loss uses them; looked at once for fit, samples and queries.

    Args:
        risk: The trained model.
        outputs: All that the losses are computed from; default: the losses themselves.
        batch: The largest of the data; default: read again.

    Returns:
        Layers, and the parameters outside of them.
    """
    if "layers" not in risk.remembered:
        batch = next(islice(risk.data, largest_batch(risk), None)) if batch is None else batch
        risk.remembered["layers"] = layers_at(risk, outputs or risk.kind.losses, batch)
    return risk.remembered["layers"]


def layers_at(risk: Risk, outputs: SampleLoss, batch: Batch) -> Layers:
    """A model's layers, as some outputs along a random direction show them: neither weights nor fit can hide one.

    Args:
        risk: The trained model.
        outputs: `(model, batch) -> (b, ...)`.
        batch: One of the data, with several samples.

    Returns:
        Layers, and the parameters outside of them.
    """

    def along(model: nn.Module, given: Batch) -> Tensor:
        z = outputs(model, given)
        return projected(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(z))

    few = first_samples(batch, length_of(batch)) if length_of(batch) > 2 * SAMPLES else None
    if few is not None and _reads(outputs, risk.model, *few):
        batch = few[0]
    return layers_of(risk.model, risk.theta, along, batch, precision=risk.precision, decay=risk.decays)


def _reads(outputs: SampleLoss, model: nn.Module, batch: Batch, count: int) -> bool:
    """True if a part of a batch is a batch of so many samples."""
    try:
        return len(evaluated(lambda: outputs(model, batch))) == count
    except Exception:  # whatever the user's code says of a batch that it cannot read
        return False


def largest_batch(risk: Risk) -> int:
    """The number of the batch to look at first: one sample alone does not tell samples from positions."""
    sizes = risk.reading.sizes
    return max(range(len(sizes)), key=sizes.__getitem__)


def _eigen(
    factor: Tensor, like: Tensor, scale: Shaped[Tensor, "g d"] | None = None
) -> tuple[Shaped[Tensor, "g d"], Shaped[Tensor, "g d d"] | None]:
    """Eigenvalues, and eigenvectors in columns; a diagonal is its own. With a scale, of the scaled factor, scaled."""
    if factor.ndim == 2:
        return factor, None
    if scale is None:
        values, vectors = torch.linalg.eigh(factor)
    else:
        root = scale.to(factor).sqrt().unsqueeze(2)
        values, vectors = torch.linalg.eigh(root * factor * root.mT)
        vectors = root * vectors
    return values.clamp_min(0), vectors.to(like)
