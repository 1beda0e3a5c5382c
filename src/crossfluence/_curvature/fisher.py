"""Fisher matrices, true and empirical, as sums of outer products of per-sample gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import all_finite, bind, isolated
from .._autodiff.params import wide
from .._risk.base import AbstractRisk
from .._risk.criterion import Rounding, of_batch
from .._risk.risk import Risk
from .._types import Batch, Params
from ..errors import NonFiniteError, UnsupportedError
from .base import AbstractCurvature
from .output_gradients import OutputGradients, square_root


class AbstractFisher(AbstractCurvature):
    r"""A curvature $\frac{1}{n}\sum_i\sum_k s_{ik}s_{ik}^\top$ + l2, made of per-sample gradients."""

    def generator(self) -> torch.Generator:
        """The random state that `output_gradients` begins with."""
        return torch.Generator()

    @abstractmethod
    def output_gradients(
        self, risk: Risk, start: int = 0, draws: torch.Generator | None = None, part: range | None = None
    ) -> Iterator[tuple[int, Batch, OutputGradients]]:
        """Output-space cotangents of each batch, which pulled back give the $s_{ik}$.

        Args:
            risk: Where.
            start: Batches that are left out at the beginning.
            draws: Random state after the skipped batches; default: freshly seeded.
            part: Numbers of the batches that are wanted; default: all.

        Yields:
            The number of each batch, the batch, and its output gradients, to be taken before the next
            batch: once, or never.
        """

    def product(self, risk: AbstractRisk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Along the outputs, and back: one forward pass of each batch serves all its output gradients.

        Args:
            risk: Where.
            vectors: One in each row.

        Returns:
            One product in each row.

        Raises:
            UnsupportedError: If the risk is no `Risk`, whose samples have outputs.
        """
        if not isinstance(risk, Risk):
            raise UnsupportedError(
                f"{type(risk).__name__} has no product with {self}, which is made of gradients of single samples. "
                f"Use curvature=Hessian() or curvature=GaussNewton()."
            )
        with isolated():
            found = risk.ranks.added("multiplying with the curvature", lambda: {"total": self._sum(risk, vectors)})
        return found["total"].add_(risk.decay * vectors)

    def _sum(self, risk: Risk, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        total = torch.zeros_like(vectors)
        counted = [part.any() for part in risk.weights.split(list(risk.reading.sizes))]
        for index, batch, gradients in self.output_gradients(risk, part=risk.part):
            if not counted[index]:
                continue
            outputs = bind(gradients.outputs, risk.model)

            def values(theta: Params, outputs=outputs, batch=batch) -> Tensor:
                return outputs(theta, batch)

            moves = risk.first.derivatives(values, risk.theta, risk.layout, vectors)  # (m, b, ...)

            def cotangents(z: Tensor, moves=moves, gradients=gradients) -> Tensor:
                return sum((_outer(moves, direction) for direction in gradients.directions(z)), torch.zeros_like(moves))

            found = risk.first.pulled(values, risk.theta, cotangents)
            if not all(map(all_finite, found.values())):
                raise NonFiniteError(risk.nan_message(index, batch, "A derivative of the outputs or of the criterion"))
            risk.layout.add(total, found, 1 / risk.n)
        return total


def _outer(moves: Shaped[Tensor, "m b *out"], direction: Shaped[Tensor, "b *out"]) -> Shaped[Tensor, "m b *out"]:
    """Each sample's move along a direction, times the direction."""
    lengths = (moves * direction).flatten(2).sum(2) if moves.ndim > 2 else moves * direction
    return lengths.reshape(*lengths.shape, *[1] * (moves.ndim - 2)) * direction


@dataclass(frozen=True)
class EmpiricalFisher(AbstractFisher):
    r"""$\frac{1}{n}\sum_i w_i \nabla\ell_i\nabla\ell_i^\top$ + l2: second moments of the training gradients.

    Defined for every per-sample loss. It is not the Hessian, not even for a linear model: samples that are fitted well
    count little.

    Example:
        >>> EmpiricalFisher()
        EmpiricalFisher()

    References:
        Kunstner, Balles and Hennig, "Limitations of the empirical Fisher approximation for natural gradient descent",
        NeurIPS 2019.
    """

    def output_gradients(
        self, risk: Risk, start: int = 0, draws: torch.Generator | None = None, part: range | None = None
    ) -> Iterator[tuple[int, Batch, OutputGradients]]:
        """The losses themselves, times the square roots of their weights.

        Args:
            risk: Where.
            start: Batches that are left out at the beginning.
            draws: Not used.
            part: Numbers of the batches that are wanted; default: all.

        Yields:
            The number of each batch, the batch, and one root.

        Raises:
            UnsupportedError: If the loss couples samples or stops gradients.
        """
        if not risk.kind.per_sample:
            raise UnsupportedError(
                f"A {type(risk.kind).__name__} has no gradient for each sample alone, so it has no Fisher matrix. "
                f"Use curvature=Hessian() with CG or Exact, or GMRES for a FieldLoss."
            )
        for index, batch, weights in risk.passes(_after(risk, start, part)):
            root = weights.sqrt()
            yield index, batch, OutputGradients(risk.kind.losses, lambda _, root=root: [root])


@dataclass(frozen=True)
class Fisher(AbstractFisher):
    r"""$\frac{1}{n}\sum_i w_i J_{z_i}^\top F_{z_i} J_{z_i}$ + l2, with $F_z$ the Fisher matrix of the outputs.

    The Fisher matrix of the distribution that a criterion stands for (softmax: categorical, squared error: Gaussian,
    logistic: Bernoulli) is the criterion's second derivative by the outputs, so every convex criterion has one. It is
    sampled with random signs: each sample's outputs are pulled back along a random combination of the columns of a
    square root of $F_z$. The expectation is `GaussNewton`.

    Attributes:
        samples: Draws for each training sample; `None` takes every column of the square root, without chance.
        seed: Of the draws.

    Example:
        >>> Fisher()
        Fisher(samples=1, seed=0)

    References:
        Martens, "New insights and perspectives on the natural gradient method", JMLR 21(146), 2020.
    """

    samples: int | None = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"Got samples={self.samples}; needed at least 1, or None for every output.")

    def generator(self) -> torch.Generator:
        """The same at every beginning."""
        return torch.Generator().manual_seed(self.seed)

    def output_gradients(
        self, risk: Risk, start: int = 0, draws: torch.Generator | None = None, part: range | None = None
    ) -> Iterator[tuple[int, Batch, OutputGradients]]:
        """The outputs along random combinations, the same in every pass and however the data is batched.

        Args:
            risk: Where.
            start: Batches that are left out at the beginning.
            draws: Random state after the skipped batches; default: freshly seeded.
            part: Numbers of the batches that are wanted; default: all.

        Yields:
            The number of each batch, the batch, and one root for each draw.

        Raises:
            UnsupportedError: If the loss is not split at the outputs, and no split is found.
            SolveError: After the last batch, if the outputs are too confident for their precision.
        """
        loss, rounding = risk.on_outputs("Fisher", "use EmpiricalFisher()"), Rounding()
        generator = draws or self.generator()
        waiting: list[int] = []  # samples whose signs were not drawn, and have to be before those of later samples

        def directions(z: Tensor, batch: Batch, weights: Tensor) -> Iterator[Tensor]:
            z, criterion = wide(z), of_batch(loss.criterion, batch)
            if waiting:
                waiting.pop()
            for count in waiting if self.samples else ():
                self._signs(z[:1].expand(count, *z.shape[1:]), generator)
            waiting.clear()
            root = square_root(criterion, z)
            rounding.add(criterion, z, weights)
            scale = weights.sqrt().reshape(-1, *[1] * (z.ndim - 1))
            return (scale * root(signs) for signs in (self._signs(z, generator) if self.samples else _units(z)))

        for index, batch, weights in risk.passes(_after(risk, start, part)):
            waiting += risk.reading.sizes[start : index + 1]
            start = index + 1
            yield index, batch, OutputGradients(loss.outputs, partial(directions, batch=batch, weights=weights))
        rounding.refuse()

    def _signs(self, z: Shaped[Tensor, "b *out"], generator: torch.Generator) -> list[Tensor]:
        assert self.samples is not None
        signs = torch.randint(2, (len(z), self.samples, *z.shape[1:]), generator=generator) * 2 - 1
        return list((signs / self.samples**0.5).to(z).unbind(1))


def _after(risk: Risk, start: int, part: range | None) -> range:
    """Numbers of batches, from one on."""
    part = range(len(risk.reading.sizes)) if part is None else part
    return range(max(start, part.start), max(start, part.stop))


def _units(z: Shaped[Tensor, "b *out"]) -> Iterator[Shaped[Tensor, "b *out"]]:
    eye = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device)
    return (unit.reshape(1, *z.shape[1:]).expand_as(z) for unit in eye)
