"""A long training in a few segments, each as if one gradient and one curvature had held throughout it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import isolated
from .._autodiff.params import fingerprint
from .._curvature.base import AbstractCurvature
from .._curvature.fisher import AbstractFisher, Fisher
from .._curvature.gauss_newton import GaussNewton
from .._curvature.hessian import Hessian
from .._evaluation.trials import final_gradient, tried
from .._horizon.segments import paced
from .._kronecker.factors import KroneckerFit, apply_eigenfunction
from .._losses import as_loss
from .._require import require, require_question, require_recipe
from .._results.scores import Scores, SolveReport
from .._results.verdict import announce
from .._risk.objectives import questions
from .._risk.risk import Risk
from .._risk.sharper import sharper
from .._solvers.krylov import lanczos_functions
from .._training.optimizers import SGD
from .._training.recipe import Recipe
from .._types import Id, Objective
from ..errors import NotConvergedWarning, UnsupportedError
from .tracin import waypoints

MAX_STEPS = 200  # products that stand for a segment, at most
GROWTH = 1.0  # exponent by which a direction that curves downwards grows at most: training leaves it sooner


def source(
    recipe: Recipe,
    objective: Objective,
    *,
    segments: int = 6,
    curvature: AbstractCurvature | None = None,
    rtol: float = 1e-2,
    ids: Sequence[Id] | None = None,
    groups: int = 3,
) -> Scores:
    r"""Influence of each training sample on each objective, the training divided into segments: `replay` for long runs.

    Within a segment the curvature H and each sample's gradient are those of its middle, so what its steps did has a
    closed form. With T the sum of its learning rates, each times the factor by which its gradient was clipped (over
    1 - momentum; over the root mean squares for Adam and AdamW), and D that of AdamW's weight decay,

    $$\text{scores}_i = -\sum_s \nabla m^\top \Big[\prod_{r>s} e^{-T_r H_r - D_r}\Big]
    \frac{1 - e^{-T_s H_s - D_s}}{T_s H_s + D_s}\,T_s\frac{\partial g_s}{\partial w_i}$$

    Early samples are forgotten, short trainings do not reach a minimum, and no damping is needed. One long segment at a
    minimum is `influence`; a segment for each step tends to `replay` as the learning rate falls.
    It costs one training, and for each segment some ten to fifty products with the curvature and one pass for each
    question, however long the training was.

    Args:
        recipe: The training; it is run once. A recipe whose loss is `random` counts as the loss of its trained models.
        objective: The question, or several.
        segments: Of equal length. Each holds a copy of the parameters.
        curvature: Default: `Hessian()`. `GaussNewton()` never curves downwards. A Fisher matrix is approximated layer
            by layer, as in `EKFAC`, in two passes for all questions together: for hundreds of them, and rougher.
        rtol: How closely the products with other curvatures follow the exponentials; errors are some times smaller.
        ids: n labels, default 0 to n-1.
        groups: As in `replay`: left out in trainings that run together, to test the answer; 0 for none.

    Returns:
        One score for each sample and objective, with the sign and unit of `influence`.

    Raises:
        UnsupportedError: If the loss stops gradients, or couples the samples of mini-batches, which mix them anew each
            time; if the optimiser is not SGD with a Fisher matrix; if the curvature is not that of the loss; if it is
            not a recipe, or no question.
        ObjectiveError: If the objective does not depend on the trained parameters.
        DataError: If the ids are not n.
        ValueError: If there are no segments.

    Warns:
        NotConvergedWarning: If 200 products in a segment were not enough.
        UnreliableWarning: If the trainings without a group disagree with the answer.

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
    require_recipe(recipe, Recipe, "source")
    require_question(objective, "source")
    if curvature is not None:
        require(curvature, AbstractCurvature, "source", "a curvature", "curvature=crossfluence.Hessian()")
    if segments < 1:
        raise ValueError(f"Got segments={segments}; needed at least 1.")
    labels, curvature = recipe.labels(ids), curvature or Hessian()
    _refuse(recipe, curvature)
    with isolated():
        points, end = waypoints(recipe, segments, preconditioned=True)
        model = recipe.holding(end)
        asked = list(questions(sharper(objective, model, end), model, end))
        vectors = torch.cat([chunk.gradients for chunk in asked])
        parts, lowest = [], []
        for point in reversed(points):
            if not point.scaling.any():
                continue  # a schedule stood still
            risk, pace = recipe.risk(recipe.holding(point.theta)), paced(point.scaling)
            (gathered, faded), least = _filtered(curvature, risk, pace, point.decay, vectors * pace, rtol)
            parts.append(-risk.derivatives_along(gathered * pace))
            vectors = vectors + faded / pace
            lowest.append(least)
    method = f"source(segments={len(points)}, curvature={curvature})"
    scores = torch.stack(parts).sum(0)
    values = tuple(value for chunk in asked for value in chunk.values.tolist())
    verdict = tried(recipe, objective, scores, values, groups)
    report = SolveReport(
        solver=method,
        values=values,
        gradient_norm=final_gradient(recipe, model),
        coverage=recipe.coverage,
        seconds=time.perf_counter() - started,
        fingerprint=fingerprint(model),
        notes=_limited(lowest),
        verdict=str(verdict),
    )
    names = tuple(name for chunk in asked for name in chunk.names)
    return Scores(scores, labels, names, method, report, verdict=announce(verdict))


def _refuse(recipe: Recipe, curvature: AbstractCurvature) -> None:
    """Before training, what the approximation does not cover."""
    kind, rule = as_loss(recipe.loss), recipe.optimizer
    if not kind.symmetric or (not kind.per_sample and not recipe.whole_steps):
        raise UnsupportedError(
            f"Got a {type(kind).__name__}, with batch_size={recipe.batch_size}; source needs a loss of each sample "
            f"alone, or a WeightedLoss in steps of all samples. Type: replay(recipe, objective)."
        )
    if isinstance(curvature, (Fisher, GaussNewton)):
        recipe._start.on_outputs(str(curvature), "type curvature=Hessian()")
    if isinstance(curvature, AbstractFisher) and not (kind.per_sample and isinstance(rule, SGD)):
        raise UnsupportedError(
            f"{curvature}, layer by layer, needs gradients of single samples, and steps as SGD's, of one size for all "
            f"parameters; got a {type(kind).__name__} and {type(rule).__name__}. Or type curvature=Hessian()."
        )


def _filtered(
    curvature: AbstractCurvature,
    risk: Risk,
    pace: Shaped[Tensor, " p"],
    decay: Shaped[Tensor, " p"],
    vectors: Shaped[Tensor, "m p"],
    rtol: float,
) -> tuple[list[Shaped[Tensor, "m p"]], float]:
    """`_gathered` and `_faded` of the curvature between two paces, times vectors; and its smallest eigenvalue."""
    if not isinstance(curvature, AbstractFisher):
        found, lowest, share = lanczos_functions(
            lambda v: pace * curvature.product(risk, pace * v) + decay * v,
            vectors, (_gathered, _faded), rtol=rtol, max_steps=MAX_STEPS,
        )  # fmt: skip
        if share > 10 * rtol:
            warnings.warn(
                f"source stopped after {MAX_STEPS} products in a segment with a share of {share:.2g} in the last ones; "
                f"asked for rtol={rtol:g}. Take more segments: shorter ones need fewer products. Or accept it.",
                NotConvergedWarning,
                stacklevel=3,
            )
        return found, lowest
    blocks = KroneckerFit.of(risk, curvature).blocks()
    exponents = [
        pace[0].square() * (block.values + risk.decays[block.slot.names[0]]) for block in blocks
    ]  # one pace for all parameters
    functions = ([each(x) for x in exponents] for each in (_gathered, _faded))
    found = [apply_eigenfunction(blocks, values, risk.layout, vectors) for values in functions]
    return found, min(float(x.min()) for x in exponents)


def _faded(exponents: Tensor) -> Tensor:
    """The change of a direction until the end of a segment, as a part of it."""
    return torch.expm1(-exponents.clamp_min(-GROWTH))


def _gathered(exponents: Tensor) -> Tensor:
    r"""$(1 - e^{-x}) / x$: what is left at the end of a segment of all steps in it, in the mean."""
    held = exponents.clamp_min(-GROWTH)
    return torch.where(held == 0, 1, -torch.expm1(-held) / held)


def _limited(lowest: Sequence[float]) -> tuple[str, ...]:
    held = sum(value < -GROWTH for value in lowest)
    note = (
        f"In {held} of {len(lowest)} segments the risk curves downwards so much that a direction would grow more than "
        f"e-fold; its growth was held there. More segments follow it better."
    )
    return (note,) if held else ()
