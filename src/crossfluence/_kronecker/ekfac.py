"""Kronecker-factored curvature with corrected eigenvalues: small eigenproblems, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.params import Layout
from .._curvature.base import Relative, absolute, refuse_damping
from .._curvature.fisher import AbstractFisher, EmpiricalFisher, Fisher
from .._losses import OnOutputs
from .._require import require
from .._risk.base import AbstractRisk
from .._risk.objectives import EachOf
from .._risk.risk import Risk
from .._solvers.base import AbstractInverse, AbstractSolver, Answers, Solution
from .._solvers.cost import Rehearsal, Stage, Work
from .._storage.archive import stored
from .._storage.partial import NOWHERE, Checkpoint
from .._types import Batch, Objective
from ..errors import NonFiniteError, SolveError, UnsupportedError
from .factors import Eigenblock, Fit, filtered, largest_batch, looked_at
from .layers import Layers
from .pairwise import Filter, Pairs, pairs_of

NAMES = {"corrected": "EK-FAC", "kronecker": "K-FAC", "exact": "Block-diagonal", "diagonal": "Diagonal"}
LEFT_OUT = (
    "without any curvature, never reached by the loss, left out",
    "without any curvature, left out",
)
NAMED = 8  # parameters that are left out, in a report


@dataclass(frozen=True)
class EKFAC(AbstractSolver):
    r"""Block-diagonal: for each layer $(U_L \otimes U_R)\operatorname{diag}(\lambda)(U_L \otimes U_R)^\top$.

    $U_L$ and $U_R$ are the eigenvectors of the second moments of the layer's output gradients and inputs, and $\lambda$
    the mean squared gradients along them. Two passes over the data, whatever the number of questions.

    Blocks: weight and bias of each linear layer, convolution and embedding (a table's rows keep their own
    coordinates) have Kronecker factors; scales and shifts of normalisations, biases beside a shared weight, and other
    parameters of at most 1,024 numbers are exact; larger ones outside of these layers have the factors of
    their own gradients. A side of more than 8,192 keeps its own coordinates. The report gives the shares.

    Attributes:
        damping: Added to the eigenvalues of each block; `Relative(x)` is x times the block's own mean.
        curvature: Default: `Fisher()` for an `OnOutputs` loss, and `EmpiricalFisher()` for other per-sample losses.
        tolerance: Share of the scores, in root mean square, that may be missed when hundreds of questions
            (`each_of`) are answered together; 0 for none.
        blocks: "corrected" as above; "kronecker" takes products of the factors' eigenvalues for $\lambda$ (K-FAC), one
            pass; "exact" blocks are second moments of whole layers' gradients, where these have at most 8,192 numbers
            (larger ones stay Kronecker); "diagonal" has mean squared gradients alone. For comparison.

    Example:
        >>> EKFAC(damping=1e-3)
        EKFAC(damping=0.001, curvature=None, tolerance=0.05, blocks='corrected')

    References:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015;
        George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018;
        Grosse et al., "Studying large language model generalization with influence functions", 2023.
    """

    damping: float | Relative = Relative(0.1)
    curvature: AbstractFisher | None = None
    tolerance: float = 0.05
    blocks: Literal["corrected", "kronecker", "exact", "diagonal"] = "corrected"

    def __post_init__(self) -> None:
        refuse_damping(self.damping)
        if self.blocks not in NAMES:
            raise ValueError(f"Got blocks={self.blocks!r}; needed one of {', '.join(map(repr, NAMES))}.")
        if self.curvature is not None:
            require(
                self.curvature, AbstractFisher, "EKFAC", "a Fisher matrix, made of gradients of single samples",
                "EKFAC(curvature=crossfluence.EmpiricalFisher())",
                GaussNewton="EKFAC(curvature=crossfluence.Fisher()), whose expectation is GaussNewton()",
            )  # fmt: skip

    def work(self, risk: AbstractRisk) -> Work:
        """One or two passes over the data, and eigenproblems that do not grow with it."""
        self._curvature(risk)
        return Work(readings=2 if self.blocks == "corrected" else 1, saved=True, rehearse=self._rehearse)

    def _rehearse(self, part: Risk, m: int) -> Rehearsal:
        curvature = self._curvature(part)
        fit = Fit.of(part, curvature, self.blocks)
        stages = [Stage(lambda: Fit.of(part, curvature, self.blocks))]
        moments = fit.moments() if fit.by_factors else {}
        bases = fit.bases(moments)
        if fit.by_factors:
            stages += [Stage(fit.moments, grows=True), Stage(lambda: fit.bases(moments))]
        if fit.by_squares:
            stages += [Stage(lambda: fit.along(bases), grows=True)]
        inverse = self._inverse(fit, fit.along(bases) if fit.by_squares else fit.products(moments))
        return Rehearsal(inverse.size, (*stages, *inverse.rehearse(part, m)))

    def _invert(self, risk: AbstractRisk) -> EKFACInverse:
        """Fits the blocks.

        Args:
            risk: The trained model.

        Returns:
            An inverse that solves with a few small matrix products.

        Raises:
            UnsupportedError: If the loss couples samples, stops gradients or has a structure of its own.
        """
        return self._resumed(risk, NOWHERE)

    def _resumed(self, risk: AbstractRisk, kept: Checkpoint) -> EKFACInverse:
        curvature = self._curvature(risk)
        assert isinstance(risk, Risk)
        fit = Fit.of(risk, curvature, self.blocks)
        return self._inverse(fit, fit.blocks(kept))

    def _curvature(self, risk: AbstractRisk) -> AbstractFisher:
        if not isinstance(risk, Risk):
            raise UnsupportedError(
                f"EKFAC needs a Risk, whose model has layers that it can look at; a {type(risk).__name__} has a "
                f"structure of its own. Use Auto(), which takes the solver that was made for it."
            )
        if not risk.kind.per_sample:
            raise UnsupportedError(
                f"EKFAC needs a gradient for each sample alone; a {type(risk.kind).__name__} has none. Use CG(damping) "
                f"where the loss couples samples, GMRES(damping) for a FieldLoss, or Auto()."
            )
        return self.curvature or (Fisher() if isinstance(risk.kind, OnOutputs) else EmpiricalFisher())

    def _inverse(self, fit: Fit, blocks: Sequence[Eigenblock]) -> EKFACInverse:
        risk, by_name = fit.risk, fit.risk.decays
        decay = [by_name[block.slot.names[0]] for block in blocks]
        means = [float(block.values.mean()) + own for block, own in zip(blocks, decay, strict=True)]
        if isinstance(self.damping, Relative) and not any(means):
            raise SolveError(
                f"The {fit.curvature} is zero at every parameter, so {self.damping} is no damping at all: the loss is "
                f"flat in the outputs (as a hinge loss is), or every sample is fitted exactly. Give an absolute "
                f"damping, such as EKFAC(damping=1e-3), or the l2 that training had."
            )
        damped = [absolute(self.damping, mean) if mean else _absolute_only(self.damping) for mean in means]
        responses = tuple(_response(block, own + by) for block, own, by in zip(blocks, decay, damped, strict=True))
        mean = sum(by * block.slot.size for by, block in zip(damped, blocks, strict=True)) / risk.p
        smallest = min(float(block.values.min()) + own for block, own in zip(blocks, decay, strict=True))
        notes = (f"{NAMES[self.blocks]} of {fit.curvature}.", _shares(risk, fit.layers, blocks))
        return EKFACInverse(
            repr(self), risk.signature, risk.layout, tuple(blocks), responses, self.tolerance, mean, smallest, notes
        )


stored("Layout")(Layout)  # its own room lies below that of files


@stored("EKFACInverse")
@dataclass(frozen=True, eq=False)
class EKFACInverse(AbstractInverse):
    """Eigenblocks and what they are multiplied with: one over eigenvalue, l2 and damping."""

    approximation: ClassVar[str] = "EKFAC leaves out what layers do to each other, so that sizes are off by a factor"
    solver: str
    signature: str
    layout: Layout
    blocks: tuple[Eigenblock, ...]
    responses: tuple[Tensor, ...]
    tolerance: float
    damping: float
    smallest_eigenvalue: float | None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        found = [side for block in self.blocks for side in (block.left, block.right, block.values)]
        return sum(tensor.nbytes for tensor in (*found, *self.responses) if tensor is not None)

    def rehearse(self, part: Risk, m: int) -> tuple[Stage, ...]:
        """All pairs of the samples of a part, as samples and as up to 256 questions; nothing if there is one question.

        Args:
            part: What this inverse was fitted to.
            m: How many questions there will be.

        Returns:
            What `answers` does; empty where it goes another way.
        """

        def start() -> Pairs | None:
            filters = self._filters()
            _ = [each.terms for each in filters]  # worked out with the first question
            return pairs_of(part, EachOf(part.data, part.kind.losses), filters)

        pairs = start() if m > 1 else None
        return () if pairs is None else (Stage(start), *pairs.rehearse(m))

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Block by block; the matrix is symmetric."""
        return Solution(filtered(self.blocks, self.responses, self.layout, vectors))

    def answers(
        self, risk: AbstractRisk, objective: Objective, candidates: Iterable[Batch] | None
    ) -> Iterator[Answers]:
        """All pairs at once, layer by layer, if there is a question for each test sample and hooks explain all layers.

        Args:
            risk: The trained model.
            objective: The questions.
            candidates: Samples that were not trained on, instead of the training data.

        Yields:
            Chunks of some hundred questions.
        """
        pairs = None
        if isinstance(objective, EachOf) and isinstance(risk, Risk):
            pairs = pairs_of(risk, objective, self._filters())
        if pairs is None:
            yield from super().answers(risk, objective, candidates)
            return
        step = self.solve(risk.gradient.unsqueeze(0)).vectors[0]
        yield from pairs.answers(candidates, self.layout.split(step))

    def own(self, risk: AbstractRisk) -> Iterator[tuple[Shaped[Tensor, " b"], Solution | None]]:
        """Every sample's score for its own loss: squares in the eigenbases, if hooks see the inverse's own blocks.

        Args:
            risk: The trained model.

        Yields:
            Scores, batch by batch.

        Raises:
            NonFiniteError: If a gradient is not finite, with its batch.
        """
        assert isinstance(risk, Risk)
        losses, sample = risk.kind.losses, next(islice(risk.data, largest_batch(risk), None))
        layers = looked_at(risk, losses, sample)
        filters = {block.slot: (block, response) for block, response in zip(self.blocks, self.responses, strict=True)}
        if set(layers.slots) != set(filters):
            yield from super().own(risk)
            return
        for index, batch, weights in risk.passes():
            total = torch.zeros_like(weights)
            for slot, gradients in layers.gradients(losses, batch).items():
                block, response = filters[slot]
                total -= gradients.rotated(block.left, block.right).energy(response) / risk.n
            if not total.isfinite().all():
                raise NonFiniteError(risk.blame(index, batch))
            yield total, None

    def _filters(self) -> list[Filter]:
        return [Filter(*each, self.tolerance) for each in zip(self.blocks, self.responses, strict=True)]


def _absolute_only(damping: float | Relative) -> float:
    """A multiple of a mean that is zero is zero."""
    return 0.0 if isinstance(damping, Relative) else absolute(damping, 0.0)


def _response(block: Eigenblock, shift: float) -> Tensor:
    """One over the damped eigenvalues; zero where there is no curvature and no damping."""
    damped = block.values + shift
    known = damped > torch.finfo(damped.dtype).eps * damped.max()
    return torch.where(known, 1 / damped, 0)


def _shares(risk: Risk, layers: Layers, blocks: Iterable[Eigenblock]) -> str:
    """A sentence about which parameters have which kind of block."""
    inside, sizes = {tap.slot for tap in layers.taps}, Counter[str]()
    names: dict[str, list[str]] = {}
    for block in blocks:
        kind = _kind(block, block.slot in inside)
        sizes[kind] += block.slot.size
        names.setdefault(kind, []).extend(block.slot.names)
    parts = [f"{size / risk.p:.2%} {kind} ({_some(names[kind], kind)})" for kind, size in sizes.most_common()]
    return f"Parameters by kind of block: {'; '.join(parts)}."


def _some(names: list[str], kind: str) -> str:
    """Names of all that is left out, as far as there is room; of other blocks, one."""
    shown = NAMED if kind in LEFT_OUT else 1
    return ", ".join([*names[:shown], *(["..."] if len(names) > shown else [])])


def _kind(block: Eigenblock, inside: bool) -> str:
    if not block.values.any():
        return LEFT_OUT[0 if block.right is None else 1]
    if block.right is None:
        return "diagonal"
    if block.slot.form[1] == 1:
        return "exact"
    return "Kronecker factors of their layer" if inside else "Kronecker factors of their own gradients"
