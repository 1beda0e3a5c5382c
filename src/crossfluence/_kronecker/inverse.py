"""The inverse of a block-diagonal curvature, and the fit that makes it: small eigenproblems, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.params import Layout
from .._curvature.base import Relative, Trained, absolute, refuse_damping
from .._curvature.fisher import AbstractFisher, EmpiricalFisher, Fisher
from .._losses import OnOutputs
from .._require import require
from .._risk.base import AbstractRisk
from .._risk.objectives import EachOf
from .._risk.risk import Risk
from .._solvers.base import AbstractInverse, AbstractSolver, Solution
from .._solvers.cost import Cost, DryRun, Timing
from .._storage.archive import stored
from .._storage.partial import NO_CHECKPOINT, Checkpoint
from .._types import Objective, Params
from ..errors import NonFiniteError, ParameterError, SolveError, UnsupportedError
from .block_inverses import BlockInverse
from .coupled import CoupledRows
from .factors import Eigenblock, KroneckerFit, apply_eigenfunction, layers_of_risk
from .gradients import ParameterBlock
from .layers import Layers
from .pace import Pace
from .pairwise import PairwiseScores, pairwise_scores
from .pilot import PilotFit, pilot_fit
from .shares import shares


class AbstractBlockSolver(AbstractSolver):
    r"""Block-diagonal solvers over one fit: `EKFAC`, `KFAC`, `BlockDiagonal`, `Diagonal`.

    Attributes:
        damping: Added to the eigenvalues of each block; `Relative(x)` is x times the block's own mean.
        curvature: Default: `Fisher()` for an `OnOutputs` loss, and `EmpiricalFisher()` for other per-sample losses.
        tolerance: Share of the scores, in root mean square, that may be missed when hundreds of questions
            (`each_of`) are answered together; 0 for none.
        name: Of the method, in reports.
        string: That stood for it in `EKFAC(blocks=...)`, also in files.
        by_factors: Whether it takes a pass for the Kronecker factors.
        by_squares: Whether it takes a pass for the eigenvalues.
        in_full: Whether small layers have the second moments of their whole gradients.
        pilot: How many samples are fitted; `None` for all, "auto" for as many as it takes.
        layers: Globs over names: which layers are fitted.
    """

    saveable: ClassVar[bool] = True
    name: ClassVar[str]
    string: ClassVar[str]
    by_factors: ClassVar[bool] = True
    by_squares: ClassVar[bool] = True
    in_full: ClassVar[bool] = False
    pilot: ClassVar[int | str | None] = None
    layers: ClassVar[str | Sequence[str]] = "*"
    damping: float | Relative | Trained
    curvature: AbstractFisher | None
    tolerance: float

    def _names(self) -> tuple[str, ...]:
        settings = f"damping={self.damping!r}, curvature={self.curvature!r}, tolerance={self.tolerance!r}"
        return repr(self), f"EKFAC({settings}, blocks={self.string!r})"

    def _check(self) -> None:
        name = type(self).__name__
        if not isinstance(self.damping, Trained):
            refuse_damping(self.damping)
        if self.curvature is not None:
            require(
                self.curvature, AbstractFisher, name, "a Fisher matrix, made of gradients of single samples",
                f"{name}(curvature=crossfluence.EmpiricalFisher())",
                GaussNewton=f"{name}(curvature=crossfluence.Fisher()), whose expectation is GaussNewton()",
            )  # fmt: skip

    def cost(self, risk: AbstractRisk) -> Cost:
        """One or two passes over the data, and eigenproblems that do not grow with it."""
        self._curvature(risk)
        return Cost(data_passes=self.by_factors + self.by_squares, dry_run=self._rehearse)

    def _fit(self, risk: Risk) -> KroneckerFit:
        pace = Pace.of(risk, repr(self)) if isinstance(self.damping, Trained) else None
        fit = KroneckerFit.of(
            risk, self._curvature(risk), by_factors=self.by_factors, by_squares=self.by_squares, in_full=self.in_full
        )
        fit = replace(fit, pace=pace)
        if self.layers != "*" and isinstance(fit.layers, CoupledRows):
            raise UnsupportedError("layers= needs a gradient for each sample alone. Choose with Risk(params=...).")
        if isinstance(fit.layers, CoupledRows) or self.layers == "*":
            return fit
        return replace(fit, layers=fit.layers.only(self._wanted(fit.layers)))

    def _wanted(self, layers: Layers) -> set[ParameterBlock]:
        """Blocks of layers that a glob names."""
        globs = [self.layers] if isinstance(self.layers, str) else list(self.layers)
        patterns = [pattern for glob in globs for pattern in (glob, f"{glob}.*")]
        named = {slot for slot in layers.slots if any(fnmatchcase(n, p) for n in slot.names for p in patterns)}
        if not named:
            some = ", ".join(slot.names[0] for slot in layers.slots[:3])
            raise ParameterError(
                f"Got layers={self.layers!r}, which names none of the layers' parameters ({some}, ...)."
            )
        return named

    def _rehearse(self, part: Risk, m: int) -> DryRun:
        def start() -> KroneckerFit:
            part.remembered.pop("layers", None)  # looks at them anew
            return self._fit(part)

        fit, stages = start(), [Timing(start)]
        if (pilot := self._piloted(fit)) is not None:
            inverse = self._inverse(fit, pilot.blocks)
            return DryRun(inverse.size, (*stages, Timing(lambda: self._piloted(fit)), *inverse.dry_run(part, m)))
        moments = fit.moments() if fit.by_factors else {}
        bases = fit.bases(moments)
        if fit.by_factors:
            stages += [Timing(fit.moments, grows=True), Timing(lambda: fit.bases(moments))]
        if fit.by_squares:
            stages += [Timing(lambda: fit.along(bases), grows=True)]
        inverse = self._inverse(fit, fit.along(bases) if fit.by_squares else fit.products(moments))
        return DryRun(inverse.size, (*stages, *inverse.dry_run(part, m)))

    def _invert(self, risk: AbstractRisk) -> EKFACInverse:
        """Fits the blocks.

        Args:
            risk: The trained model.

        Returns:
            An inverse that solves with a few small matrix products.

        Raises:
            UnsupportedError: If the loss couples samples, stops gradients or has a structure of its own.
        """
        return self._resumed(risk, NO_CHECKPOINT)

    def _resumed(self, risk: AbstractRisk, kept: Checkpoint) -> EKFACInverse:
        self._curvature(risk)
        assert isinstance(risk, Risk)
        fit = self._fit(risk)
        pilot = self._piloted(fit)
        if pilot is None:
            return self._inverse(fit, fit.blocks(kept))
        made = self._inverse(fit, pilot.blocks)
        return replace(made, notes=(*made.notes[:1], pilot.note, *made.notes[1:]))

    def _piloted(self, fit: KroneckerFit) -> PilotFit | None:
        """A fit of some samples, if that was asked for and there are enough."""
        if self.pilot is None:
            return None
        return pilot_fit(fit, self.pilot, lambda blocks: self._inverse(fit, blocks).block_inverses())

    def _curvature(self, risk: AbstractRisk) -> AbstractFisher:
        if not isinstance(risk, Risk):
            raise UnsupportedError(
                f"{type(self).__name__} needs a Risk, whose model has layers that it can look at; a "
                f"{type(risk).__name__} has a structure of its own. Use Auto(), which takes the solver that was "
                f"made for it."
            )
        if not risk.symmetric:
            raise UnsupportedError(
                f"{type(self).__name__} needs a gradient for each sample alone; a {type(risk.kind).__name__} has none. "
                f"Use GMRES(damping) for a FieldLoss, or Auto()."
            )
        if not risk.kind.per_sample and (isinstance(self.curvature, Fisher) or self.pilot is not None):
            raise UnsupportedError(
                f"A {type(risk.kind).__name__} couples samples: its blocks are made of samples' rows, each taken "
                f"through its whole batch, and have no {'pilot' if self.pilot else 'Fisher matrix of outputs'}. Type "
                f"{type(self).__name__}()."
            )
        sized = isinstance(self.damping, Trained) and risk.kind.per_sample
        by_outputs = isinstance(risk.split if sized else risk.kind, OnOutputs)
        return self.curvature or (Fisher() if by_outputs else EmpiricalFisher())

    def _inverse(self, fit: KroneckerFit, blocks: Sequence[Eigenblock]) -> EKFACInverse:
        risk, by_name = fit.risk, fit.risk.decays
        decay = [by_name[block.slot.names[0]] for block in blocks]
        if isinstance(self.damping, Trained):
            return self._trained(fit, blocks, decay)
        means = [float(block.values.mean()) + own for block, own in zip(blocks, decay, strict=True)]
        if isinstance(self.damping, Relative) and not any(means):
            raise SolveError(
                f"The {fit.curvature} is zero at every parameter, so {self.damping} is no damping at all: the loss is "
                f"flat in the outputs (as a hinge loss is), or every sample is fitted exactly. Give an absolute "
                f"damping, such as {type(self).__name__}(damping=1e-3), or the l2 that training had."
            )
        damped = [absolute(self.damping, mean) if mean else _absolute_only(self.damping) for mean in means]
        shifts = zip(blocks, decay, damped, strict=True)
        responses = tuple(_inverse_eigenvalues(block, own + by) for block, own, by in shifts)
        size = sum(block.slot.size for block in blocks)
        notes = self._notes(fit, blocks)
        mean = sum(by * block.slot.size for by, block in zip(damped, blocks, strict=True)) / size
        smallest = min(float(block.values.min()) + own for block, own in zip(blocks, decay, strict=True))
        return EKFACInverse(
            repr(self), risk.signature, risk.layout, tuple(blocks), responses, self.tolerance, mean, smallest, notes
        )

    def _trained(self, fit: KroneckerFit, blocks: Sequence[Eigenblock], l2: Sequence[float]) -> EKFACInverse:
        risk, pace = fit.risk, fit.pace
        assert risk.record is not None
        assert pace is not None
        responses = tuple(
            pace.response(block.slot, block.left, block.right, block.values, own)
            for block, own in zip(blocks, l2, strict=True)
        )
        return EKFACInverse(
            repr(self), risk.signature, risk.layout, tuple(blocks), responses, self.tolerance, 0.0, None,
            (*self._notes(fit, blocks)[:1], *risk.record.notes, *self._notes(fit, blocks)[1:]), trained=True,
        )  # fmt: skip

    def _notes(self, fit: KroneckerFit, blocks: Sequence[Eigenblock]) -> tuple[str, ...]:
        """Sentences about the fit."""
        risk, size = fit.risk, sum(block.slot.size for block in blocks)
        notes = (f"{self.name} of {fit.curvature}.", shares(risk, fit.layers, blocks))
        if self.layers == "*":
            return notes
        left = f"Only layers={self.layers!r}, {size / risk.p:.2%} of the parameters; the others count as fixed."
        return notes[0], left, notes[1]


stored("Layout")(Layout)  # its own room lies below that of files


@stored("EKFACInverse")
@dataclass(frozen=True, eq=False)
class EKFACInverse(AbstractInverse):
    """Eigenblocks, and their inverse eigenvalues: one over eigenvalue, l2 and damping; or of the training's horizon."""

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
    trained: bool = False

    @property
    def at_minimum(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Not if the training's horizon stands for a damping."""
        return not self.trained

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        found = [side for block in self.blocks for side in (block.left, block.right, block.values)]
        return sum(tensor.nbytes for tensor in (*found, *self.responses) if tensor is not None)

    def dry_run(self, part: Risk, m: int) -> tuple[Timing, ...]:
        """All pairs of the samples of a part, as samples and as up to 256 questions; nothing if there is one question.

        Args:
            part: What this inverse was fitted to.
            m: How many questions there will be.

        Returns:
            The work of `pairwise`; empty where there is none.
        """

        def start() -> PairwiseScores | None:
            inverses = self.block_inverses()
            _ = [each.terms for each in inverses]  # worked out with the first question
            queries = EachOf(part.data, part.kind.losses)
            return pairwise_scores(part, queries, inverses, self._step_of)

        pairs = start() if m > 1 and part.kind.per_sample else None
        return () if pairs is None else (Timing(start), *pairs.dry_run(m))

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Block by block; the matrix is symmetric."""
        return Solution(apply_eigenfunction(self.blocks, self.responses, self.layout, vectors))

    def pairwise(self, risk: AbstractRisk, objective: Objective) -> PairwiseScores | None:
        """All pairs, layer by layer, if there is a query for each test sample and hooks explain all layers.

        Args:
            risk: The trained model.
            objective: The queries.

        Returns:
            PairwiseScores of samples and queries; `None` where gradients have to be written out.
        """
        if not (isinstance(objective, EachOf) and isinstance(risk, Risk)):
            return None
        return pairwise_scores(risk, objective, self.block_inverses(), self._step_of)

    def _step_of(self, vector: Shaped[Tensor, " p"]) -> Params:
        return self.layout.split(self.solve(vector.unsqueeze(0)).vectors[0])

    def self_influence(self, risk: AbstractRisk) -> Iterator[Shaped[Tensor, " b"]] | None:
        """Weighted squared norms in the eigenbases, where the hooks cover the inverse's own blocks.

        Args:
            risk: The trained model.

        Returns:
            Scores, batch by batch; `None` where gradients have to be written out.
        """
        assert isinstance(risk, Risk)
        if not risk.kind.per_sample:
            return None
        layers = layers_of_risk(risk).only({block.slot for block in self.blocks})
        inverses = {block.slot: (block, values) for block, values in zip(self.blocks, self.responses, strict=True)}
        if set(layers.slots) != set(inverses):
            return None
        return iter(risk.in_rows("scoring samples", lambda: self._squares(risk, layers, inverses), 1).unbind(1))

    def _squares(
        self, risk: Risk, layers: Layers, inverses: dict[ParameterBlock, tuple[Eigenblock, Tensor]]
    ) -> Iterator[tuple[int, Shaped[Tensor, "b 1"]]]:
        for index, batch, weights in risk.passes(risk.part):
            total = torch.zeros_like(weights)
            for slot, gradients in layers.gradients(risk.kind.losses, batch).items():
                block, values = inverses[slot]
                total -= gradients.rotated(block.left, block.right).weighted_squared_norms(values) / risk.n
            if not total.isfinite().all():
                raise NonFiniteError(risk.nan_message(index, batch))
            yield index, total.unsqueeze(1)

    def block_inverses(self) -> list[BlockInverse]:
        """Each block, between gradients of samples and of questions."""
        return [BlockInverse(*each, self.tolerance) for each in zip(self.blocks, self.responses, strict=True)]


def _absolute_only(damping: float | Relative) -> float:
    """A multiple of a mean that is zero is zero."""
    return 0.0 if isinstance(damping, Relative) else absolute(damping, 0.0)


def _inverse_eigenvalues(block: Eigenblock, shift: float) -> Tensor:
    """One over the damped eigenvalues; zero where there is no curvature and no damping."""
    damped = block.values + shift
    known = damped > torch.finfo(damped.dtype).eps * damped.max()
    return torch.where(known, 1 / damped, 0)
