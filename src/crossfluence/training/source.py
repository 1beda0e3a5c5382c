"""A long training in a few segments, each as if one gradient and one curvature had held throughout it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._errors import UnsupportedError
from .._functional import undisturbed
from .._losses import OnOutputs, as_loss
from .._objective import questions
from .._params import Layout, fingerprint, trained_parameters
from .._risk import Risk
from .._scores import Scores, SolveReport
from .._types import Id, Objective
from ..curvature.base import AbstractCurvature
from ..curvature.blocks import Slot
from ..curvature.eigenbasis import Eigenblock, eigenblocks, filtered
from ..curvature.fisher import AbstractFisher, Fisher
from ..curvature.gauss_newton import GaussNewton
from ..curvature.hessian import Hessian
from ..solvers.exact import dense, symmetrised
from .checkpoints import Waypoint, waypoints
from .optimizers import SGD, AdamW
from .recipe import Recipe

WRITTEN_OUT = 1_000  # parameters up to which each segment has its whole Hessian
GROWTH = 1.0  # exponent by which a direction that curves downwards grows at most: training leaves it sooner


def source(
    recipe: Recipe,
    objective: Objective,
    *,
    segments: int = 6,
    curvature: AbstractCurvature | None = None,
    ids: Sequence[Id] | None = None,
) -> Scores:
    r"""What each training sample did to each objective, with the training in a few segments: `replay` for long runs.

    Within a segment the curvature H and each sample's gradient are those of its middle, so what its steps did has a
    closed form: with T the sum of its learning rates,

    $$\text{scores}_i = -\sum_s \nabla m^\top \Big[\prod_{r>s} e^{-T_r H_r}\Big]
    \frac{1 - e^{-T_s H_s}}{H_s}\,\frac{\partial g_s}{\partial w_i}$$

    Early samples are forgotten, short trainings do not reach a minimum, and no damping is needed. One long segment at a
    minimum is `influence`; a segment for each step is `replay`, but for terms of second order in the learning rate.
    It costs one training, and for each segment a curvature and a pass for each question.

    Args:
        recipe: The training; it is run once. A recipe whose loss is `random` counts as the loss of its trained models.
        objective: The question, or several.
        segments: Of equal length. Each holds a copy of the parameters.
        curvature: A Fisher matrix is approximated layer by layer, as in `EKFAC`; any other is written out, with p²
            numbers. Default: `Hessian()` for at most 1,000 parameters, else `Fisher()`.
        ids: n labels, default 0 to n-1.

    Returns:
        One score for each sample and objective, with the sign and unit of `influence`.

    Raises:
        UnsupportedError: If the loss stops gradients, or couples the samples of mini-batches, which mix them anew each
            time; if the optimiser is AdamW, or with a Fisher matrix not SGD; if the curvature is not that of the loss.
        ObjectiveError: If the objective does not depend on the trained parameters.
        DataError: If the ids are not n.
        TypeError: If it is not a recipe.
        ValueError: If there are no segments.

    Example:
        >>> from crossfluence import SGD, compare, replay
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> loss = lambda model, batch: (model(batch) - batch.sum(1, keepdim=True).sin()).square().sum(1)
        >>> start = torch.nn.Linear(3, 1, dtype=torch.float64)
        >>> _ = torch.nn.init.zeros_(start.weight), torch.nn.init.zeros_(start.bias)
        >>> recipe = Recipe(start, loss, x, optimizer=SGD(0.01), epochs=10, batch_size=10)
        >>> ask = lambda model: model.weight.sum()
        >>> agreement = compare(source(recipe, ask), replay(recipe, ask))
        >>> agreement.pearson > 0.99, 0.9 < agreement.slope < 1.1
        (True, True)

    References:
        Bae, Lin, Lorraine and Grosse, "Training data attribution via approximate unrolled differentiation", NeurIPS
        2024. There a segment has the means over several of its points; here more segments have one point each.
    """
    started = time.perf_counter()
    if not isinstance(recipe, Recipe):
        raise TypeError(f"Got {type(recipe).__name__}; source needs a crossfluence.Recipe, whose every step it knows.")
    if segments < 1:
        raise ValueError(f"Got segments={segments}; needed at least 1.")
    labels, curvature = recipe.labels(ids), curvature or _natural(recipe)
    _refuse(recipe, curvature)
    with undisturbed():
        points, end = waypoints(recipe, segments, preconditioned=True)
        model = recipe.holding(end)
        asked = list(questions(objective, model, end))
        vectors = torch.cat([chunk.gradients for chunk in asked])
        parts, lowest = [], []
        for point in reversed(points):
            if not point.scaling.any():
                continue  # a schedule stood still
            segment = _segment(recipe, point, curvature)
            parts.append(segment.scores(vectors))
            lowest.append(segment.lowest)
            vectors = segment.carried(vectors)
    method = f"source(segments={len(points)}, curvature={curvature})"
    report = SolveReport(
        solver=method,
        values=tuple(value for chunk in asked for value in chunk.values.tolist()),
        coverage=recipe.coverage,
        seconds=time.perf_counter() - started,
        fingerprint=fingerprint(model),
        notes=_limited(lowest),
    )
    return Scores(torch.stack(parts).sum(0), labels, tuple(name for c in asked for name in c.names), method, report)


def _natural(recipe: Recipe) -> AbstractCurvature:
    return Hessian() if Layout.of(trained_parameters(recipe.init)).size <= WRITTEN_OUT else Fisher()


def _refuse(recipe: Recipe, curvature: AbstractCurvature) -> None:
    """Before training, what the approximation does not cover."""
    kind, rule = as_loss(recipe.loss), recipe.optimizer
    if not kind.symmetric or (not kind.per_sample and not recipe.whole_steps):
        raise UnsupportedError(
            f"Got a {type(kind).__name__}, with batch_size={recipe.batch_size}; source needs a loss of each sample "
            f"alone, or a WeightedLoss in steps of all samples. Type: replay(recipe, objective)."
        )
    if isinstance(rule, AdamW):
        raise UnsupportedError("AdamW's decay is no part of what is minimised. Use Adam with l2, or replay.")
    written_out = "Type curvature=Hessian() to write out p x p numbers for each segment, or replay(recipe, objective)."
    if isinstance(curvature, (Fisher, GaussNewton)) and not isinstance(kind, OnOutputs):
        raise UnsupportedError(
            f"{curvature} needs to know where the outputs are; this recipe has a {type(kind).__name__}. Write the loss "
            f"as OnOutputs(outputs, criterion). {written_out}"
        )
    if isinstance(curvature, AbstractFisher) and not (kind.per_sample and isinstance(rule, SGD)):
        raise UnsupportedError(
            f"{curvature}, layer by layer, needs gradients of single samples, and steps as SGD's, of one size for all "
            f"parameters; got a {type(kind).__name__} and {type(rule).__name__}. {written_out}"
        )


@dataclass(frozen=True, eq=False)
class _Segment:
    """A stretch of training, in the eigenbasis of its curvature.

    Attributes:
        risk: In its middle.
        pace: Square roots of what multiplies a lasting gradient in all its steps, shape `(p,)`.
        blocks: Of the curvature between two paces: eigenvalues are exponents of what is left of a direction at the end.
    """

    risk: Risk
    pace: Shaped[Tensor, " p"]
    blocks: Sequence[Eigenblock]

    @property
    def lowest(self) -> float:
        """The smallest eigenvalue."""
        return min(float(block.values.min()) for block in self.blocks)

    def scores(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "n m"]:
        """What the samples did in this segment to questions whose gradients by its end are given."""
        return -self.risk.sensitivity(self._filtered(vectors, _gathered) * self.pace)

    def carried(self, vectors: Shaped[Tensor, "m p"]) -> Shaped[Tensor, "m p"]:
        """Gradients by the parameters at the segment's beginning from those at its end."""
        return self._filtered(vectors, lambda exponents: (-exponents).exp()) / self.pace

    def _filtered(self, vectors: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
        responses = [response(block.values.clamp_min(-GROWTH)) for block in self.blocks]
        return filtered(self.blocks, responses, self.risk.layout, vectors * self.pace)


def _gathered(exponents: Tensor) -> Tensor:
    r"""$(1 - e^{-x}) / x$: the mean over a segment of what is left of a step at its end."""
    return torch.where(exponents == 0, 1, -torch.expm1(-exponents) / exponents)


def _segment(recipe: Recipe, point: Waypoint, curvature: AbstractCurvature) -> _Segment:
    risk, pace = recipe.risk(recipe.holding(point.theta)), point.scaling.sqrt()
    if not isinstance(curvature, AbstractFisher):
        return _Segment(risk, pace, [_written_out(curvature, risk, pace)])
    _, blocks = eigenblocks(risk, curvature)
    return _Segment(
        risk, pace, [replace(block, values=point.scaling[0] * (block.values + risk.l2)) for block in blocks]
    )


def _written_out(curvature: AbstractCurvature, risk: Risk, pace: Shaped[Tensor, " p"]) -> Eigenblock:
    """The whole matrix as one block with one row."""
    matrix = symmetrised(dense(curvature, risk), torch.finfo(risk.weights.dtype).eps)
    values, basis = torch.linalg.eigh(pace.unsqueeze(1) * matrix * pace)
    slot = Slot.of(risk.theta, Layout.of(risk.theta).names, 1, 1)
    return Eigenblock(slot, None, basis.unsqueeze(0).to(pace), values.reshape(1, 1, -1).to(pace))


def _limited(lowest: Sequence[float]) -> tuple[str, ...]:
    held = sum(value < -GROWTH for value in lowest)
    note = (
        f"In {held} of {len(lowest)} segments the risk curves downwards so much that a direction would grow more than "
        f"e-fold; its growth was held there. More segments follow it better."
    )
    return (note,) if held else ()
