"""Sizes from the horizon of the training in the place of a damping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._curvature.base import AbstractCurvature
from .._curvature.gauss_newton import GaussNewton
from .._risk.base import AbstractRisk
from .._risk.moved import moved_to
from .._risk.risk import Risk
from .._solvers.base import AbstractInverse, AbstractSolver, Solution
from .._solvers.cost import Cost
from .._storage.archive import stored
from ..errors import SolveError, UnsupportedError
from .confident import REASON, confident
from .engines import Applied, DenseEngine, ProductsEngine, RootsEngine
from .moments import adam_scaling, guessed_moments
from .pilot import pilots
from .recorded_loss import other_loss
from .root_rows import root_rows, together
from .segments import Segment, SegmentedInverse, paced

GUESSED_RATE, GUESSED_BATCH = 0.05, 32  # the sum of Adam's learning rates, and a batch, where nothing is known
GUESSED = "nothing is known of the training, so the sum of its learning rates, and with it all sizes, is a guess"
FLAT = "directions of negative curvature were taken for flat ones, so that sizes can be off by a factor"
PER_TRAINED, ENOUGH = 16, 4  # roots for each direction with an exponent above 1: wanted, and at least
FEW = 4  # roots, fewer of which tell nothing
WRITTEN = 2  # roots for each sample or parameter, where X is written out
PLENTY = 8  # roots for each sample, at most
MOST = 2_048  # roots that are factorised
ROOM = 2**28  # numbers in them
DENSE = 2_048  # parameters up to which X is written out
EXACT_WORK = 5e9  # multiplications of all columns of all roots, up to which nothing is left to chance
PILOT, FEWEST = 320, 80  # samples for products; of less data half, but as many as the latter
STEPS, RTOL = 20, 0.02  # products for each question, and where they end
BASIS, FEWEST_STEPS = 2**30, 4  # numbers in the subspace of a question, which bounds its steps, but for so many
UNMOVED = (
    "The training, as far as its record tells, moved no parameter: Adam's division takes back every lasting change, or "
    "no gradient was ever there. Use another record, or CG(Relative(1), curvature=GaussNewton())."
)


@dataclass(frozen=True)
class Horizon(AbstractSolver):
    r"""Training's own horizon for a damping: $u = A^{1/2}\varphi(X)A^{1/2}\nabla m$, $\varphi(x) = (1-e^{-x})/x$.

    Networks are stopped before their minimum; how far a lasting change of the gradient moved each parameter until then
    is $A$, of the risk's `TrainingRecord`, and $X = A^{1/2} F A^{1/2} + D$ says how much of it the curvature took back:
    F is the Gauss-Newton matrix of the mean loss with its l2 term, all layers together, D the weight decay
    outside of the loss. Directions that training hardly reached keep $\varphi = 1$, so nothing blows up and nothing is
    to be chosen. Gradients and F are those at the end.

    F is known by **roots**, one random gradient of the outputs for each sample, factorised once for all questions; or,
    where training bent more directions than roots can show, by **products** on a pilot of random samples, in block
    Lanczos for the questions of a chunk together, whose cost does not grow with n. With few parameters X is
    written out. The report says which, and how well two halves of the roots or samples agree.

    Without a record the sum of learning rates is a guess (0.05, Adam): the order depends little on it, sizes are then
    in an unknown unit, and the verdict says "order".

    Attributes:
        roots: How many; default: 16 for each direction with an exponent above 1, at least one and at most eight for
            each sample, at most 2,048.
        pilot: Samples for products; if given, products are taken. Default: 320 where they are, or half of less data.
        segments: Parts of the training, each with the gradients, the curvature and the optimizer's state of its own
            end, from a record that keeps them (`recipe.record(segments=3)`). Each takes the work of a whole training.
            Default: one, the whole training as its end was.
        steps: Products for each question, at most; fewer, where p is so large that 4 GiB hold no more of them.
        seed: Of signs and samples.
        curvature: F in products. Default: `GaussNewton`. `Hessian()` is for losses of which no outputs can be found;
            directions of negative curvature then count as if it were zero there.

    Example:
        >>> Horizon(pilot=100)
        Horizon(roots=None, pilot=100, segments=None, steps=20, seed=0, curvature=None)

    References:
        For SGD: Bae, Lin, Lorraine and Grosse, "Training data attribution via approximate unrolled differentiation",
        NeurIPS 2024. AdamW followed step by step: Deng et al., 2026, arXiv 2605.18814. Adam's preconditioner on
        gradients alone: Xia et al., "LESS", ICML 2024. From a finished model and its settings, with curvature that
        couples the layers: docs/tasks/sizes.md.
    """

    roots: int | None = None
    pilot: int | None = None
    segments: int | None = None
    steps: int = STEPS
    seed: int = 0
    curvature: AbstractCurvature | None = None

    saveable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("roots", "pilot", "segments", "steps"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= (2 if name == "pilot" else 1)):
                raise ValueError(f"Got {name}={value!r}; needed a whole number of at least 1, or None to choose it.")
        if self.roots is not None and self.pilot is not None:
            raise ValueError(
                f"Got roots={self.roots} and pilot={self.pilot}; needed one of them: they are two engines."
            )

    def cost(self, risk: AbstractRisk) -> Cost:
        """Up to eight passes of single gradients, or some products on a pilot for each question."""
        known, times = self._risk(risk), self.segments or 1
        if self.pilot is not None or self.curvature is not None:
            pilot = self.pilot or (_pilot(known) if known.kind.per_sample else risk.n)
            return Cost(steps=self.steps * times, data_fraction=min(1.0, pilot / risk.n), vectors_per_step=1)
        count = self.roots or min(PLENTY * risk.n, MOST)
        size = known.weights.element_size()
        return Cost(
            data_passes=times * -(-count // risk.n) + 2, inverse_bytes=times * (size * count * risk.p + 8 * count**2)
        )

    def _risk(self, risk: AbstractRisk) -> Risk:
        if not isinstance(risk, Risk):
            raise UnsupportedError(
                f"Horizon needs a Risk, whose loss is a function of a model's outputs; a {type(risk).__name__} has a "
                f"structure of its own. Use Auto(), which takes the solver that was made for it."
            )
        if self.curvature is None:
            risk.on_outputs("Horizon", "type Horizon(curvature=Hessian()), or replay(recipe, objective)")
        elif not risk.symmetric:
            raise UnsupportedError(
                f"Horizon needs a symmetric curvature; a {type(risk.kind).__name__} trains along a field that is no "
                f"gradient. Use GMRES(damping), or replay(recipe, objective)."
            )
        return risk

    def _invert(self, risk: AbstractRisk) -> HorizonInverse | SegmentedInverse:
        known = self._risk(risk)
        if (self.segments or 1) > 1:
            return self._segmented(known)
        pace, decay, notes = _scaled(known)
        engine, told = self._engine(known, pace, decay)
        return HorizonInverse(
            repr(self), risk.signature, pace, engine, notes=(*notes, told), guessed=known.record is None,
            confident=confident(known), other=other_loss(known),
        )  # fmt: skip

    def _segmented(self, risk: Risk) -> SegmentedInverse:
        if risk.record is None or self.segments is None:
            raise UnsupportedError(
                f"{self} needs a record of the training that keeps its segments, Risk(..., record=recipe.record("
                f"segments={self.segments})) or that of a Recorder(optimizer, segments={self.segments}, steps=...)."
            )
        found, told = [], []
        for theta, scaling, decay in risk.record.earlier(risk.theta, self.segments):
            flat = [risk.layout.flatten(each).to(risk.weights) for each in (scaling, decay)]
            if not bool(flat[0].any()):
                continue  # a schedule stood still
            pace, at = paced(flat[0]), moved_to(risk, theta)
            engine, one = self._engine(at, pace, flat[1])
            found.append(Segment(risk.layout.flatten(theta), pace, engine))
            told.append(one)
        if not found:
            raise SolveError(UNMOVED)
        several = f"{len(found)} segments, from the last to the first: {' '.join(told)}"
        return SegmentedInverse(
            repr(self),
            risk.signature,
            tuple(found),
            notes=(*risk.record.notes, several),
            approximation=other_loss(risk),
        )

    def _engine(
        self, risk: Risk, pace: Tensor, outside: Tensor
    ) -> tuple[RootsEngine | DenseEngine | ProductsEngine, str]:
        whole = outside + pace.square() * risk.decay
        if self.curvature is not None and not risk.kind.per_sample:
            return self._products(risk, pace, outside, risk.n)
        if self.pilot is not None or self.curvature is not None:
            return self._products(risk, pace, outside, self.pilot or _pilot(risk))
        if self.roots is None and risk.p <= DENSE and risk.n * _columns(risk) * risk.p**2 <= EXACT_WORK:
            dense = DenseEngine.of(
                root_rows(risk, pace, None, self.seed, risk.part), whole, chance=False, ranks=risk.ranks
            )
            return dense, f"X was written out, from all columns of all roots; {_bent(dense)}."
        if risk.p <= DENSE:
            count = self.roots or WRITTEN * max(risk.n, risk.p)
            dense = DenseEngine.of(self._rows(risk, pace, count, self.seed), whole, chance=True, ranks=risk.ranks)
            return dense, f"X was written out, from {count} roots; {_bent(dense)}."
        return self._from_roots(risk, pace, outside, whole)

    def _from_roots(
        self, risk: Risk, pace: Tensor, outside: Tensor, whole: Tensor
    ) -> tuple[RootsEngine | ProductsEngine, str]:
        """Roots, if they are enough; else products."""
        most = self.roots or min(MOST, PLENTY * risk.n, ROOM // risk.p)
        if most < FEW:
            return self._products(risk, pace, outside, _pilot(risk))
        rows = self._drawn(risk, pace, self.roots or min(risk.n, most), self.seed)
        engine = RootsEngine.of(rows, whole, self.seed)
        wanted = min(PER_TRAINED * engine.trained, most)
        bent = int((engine.values > most / len(rows)).sum())  # still above 1 where the same is spread over most roots
        hopeless = not self.roots and ENOUGH * bent > len(rows)
        if not self.roots and not hopeless and wanted > 1.5 * len(rows):
            more = self._drawn(risk, pace, wanted - len(rows), self.seed + 1)
            engine = RootsEngine.of(together(rows, more), whole, self.seed)
        told = f"X has {len(engine.roots)} roots; {_bent(engine)}."
        if not hopeless and (self.roots or ENOUGH * engine.trained <= len(engine.roots)):
            return engine, told
        found, instead = self._products(risk, pace, outside, _pilot(risk))
        return found, f"{told} That is too many for roots. {instead}"

    def _drawn(self, risk: Risk, pace: Tensor, count: int, seed: int) -> Shaped[Tensor, "k p"]:
        """Rows that ranks have drawn, each from its part of the data."""
        found = risk.ranks.gathered("drawing roots", lambda: list(self._rows(risk, pace, count, seed)), risk.p)
        return found.to(risk.weights)

    def _products(self, risk: Risk, pace: Tensor, outside: Tensor, pilot: int) -> tuple[ProductsEngine, str]:
        parts = pilots(risk, pilot, self.seed, 2) if risk.kind.per_sample else (risk,)
        count = sum(part.n for part in parts)
        share = float(risk.weights.sum()) / risk.n
        steps = min(self.steps, max(FEWEST_STEPS, BASIS // risk.p))
        told = f"Products with {count} of {risk.n} samples, at most {steps} for each question."
        share = share if risk.kind.per_sample else 1.0  # a part keeps no sample of weight 0, the whole has them
        curvature = self.curvature or GaussNewton()
        return ProductsEngine(parts, share, pace, outside, steps, RTOL, curvature), told

    def _rows(self, risk: Risk, pace: Tensor, count: int, seed: int) -> Iterator[Shaped[Tensor, "b p"]]:
        draws = -(-count // risk.n)
        (part,) = pilots(risk, count, seed) if count < risk.n else (risk,)
        share = float(risk.weights.sum() / risk.n) if part is not risk else 1.0
        return root_rows(part, pace * share**0.5, draws, seed, part.part)


@stored("HorizonInverse")
@dataclass(frozen=True, eq=False)
class HorizonInverse(AbstractInverse):
    r"""$A^{1/2}\varphi(X)A^{1/2}$: symmetric, and no inverse of any matrix that training would reach in the end.

    Attributes:
        pace: $A^{1/2}$, shape `(p,)`.
        engine: Applies $\varphi(X)$.
        guessed: Whether there was no record of the training.
        confident: Whether the training of a classifier left hardly any loss.
        other: That the record is of a training with another loss, as a clause; empty if it may be of this one.
    """

    solver: str
    signature: str
    pace: Shaped[Tensor, " p"]
    engine: RootsEngine | DenseEngine | ProductsEngine = field(repr=False)
    damping: float = 0.0
    smallest_eigenvalue: float | None = None
    notes: tuple[str, ...] = ()
    guessed: bool = False
    confident: bool = False
    other: str = ""
    at_minimum = False

    @property
    def approximation(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sizes need a record, no negative curvature, and a training that stopped before nothing was left to learn."""
        if self.guessed:
            return GUESSED
        if isinstance(self.engine, ProductsEngine) and not isinstance(self.engine.curvature, GaussNewton):
            return FLAT
        return self.other or (REASON if self.confident else "")

    def _solve(self, vectors: Shaped[Tensor, "m p"], transposed: bool) -> Solution:
        """Symmetric."""
        asked = vectors * self.pace
        applied = self.engine.apply(asked)
        steps = (applied.steps,) * len(vectors) if applied.steps else ()
        notes = (_resolved(asked, applied), *_agreed(applied))
        return Solution(applied.vectors * self.pace, steps, notes=notes, agreements=applied.agreements)


def _scaled(risk: Risk) -> tuple[Shaped[Tensor, " p"], Shaped[Tensor, " p"], tuple[str, ...]]:
    """The root of A, weight decay outside of the loss, and sentences for the report."""
    if risk.record is not None:
        scaling = risk.layout.flatten(risk.record.scaling(risk.theta)).to(risk.weights)
        decay = risk.layout.flatten(risk.record.decay(risk.theta)).to(risk.weights)
        notes = risk.record.notes
    else:
        mean, square = guessed_moments(risk, GUESSED_BATCH)
        scaling, decay = GUESSED_RATE * adam_scaling(square, mean), torch.zeros_like(risk.weights[:1]).expand(risk.p)
        notes = (
            f"The risk has no record of its training: guessed Adam with learning rates that add up to {GUESSED_RATE:g} "
            f"and batches of {GUESSED_BATCH}. Say what it was: Risk(..., record=TrainingRecord.from_settings(...)).",
        )
    _check_moved(scaling)
    return scaling.sqrt(), decay, notes


def _check_moved(scaling: Shaped[Tensor, " p"]) -> None:
    if not bool(scaling.isfinite().all()) or not bool(scaling.any()):
        raise SolveError(UNMOVED)


def _columns(risk: Risk) -> int:
    """Numbers in the outputs of one sample."""
    _, batch, _ = next(risk.passes())
    return risk.on_outputs("Horizon", "").outputs(risk.model, batch)[0].numel()


def _pilot(risk: Risk) -> int:
    return min(PILOT, max(FEWEST, risk.n // 2))


def _bent(engine: RootsEngine | DenseEngine) -> str:
    return f"{engine.trained} directions have an exponent above 1, up to {float(engine.values.max()):.3g}"


def _resolved(asked: Tensor, applied: Applied) -> str:
    """A sentence about the share of the queries that the curvature resolves."""
    left = (asked * applied.vectors).sum(1) / asked.square().sum(1).clamp_min(torch.finfo(asked.dtype).tiny)
    shares = (1 - left).clamp(0, 1)
    return f"The curvature takes back {float(shares.min()):.0%} to {float(shares.max()):.0%} of the questions' reach."


def _agreed(applied: Applied) -> tuple[str, ...]:
    if not applied.agreements:
        return ()
    r, slope = (min(pair[place] for pair in applied.agreements) for place in (0, 1))
    return (
        f"By two halves of the roots or samples, more of them would agree with r of at least {r:.2f} and a slope of at "
        f"least {slope:.2f}.",
    )
