"""Global importance of samples along a training: what each step took from them, as far as the end still holds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .._autodiff.functional import bind
from .._losses import OnOutputs
from .._risk.risk import Risk
from .._training.optimizers import SGD
from .._training.recipe import Recipe
from ..errors import DataError, StaleError, UnsupportedError


def path_importance(
    recipe: Recipe, risk: Risk, split: OnOutputs
) -> tuple[Float[Tensor, "n k"], float, Shaped[Tensor, " p"]]:
    """Importance of each sample for each output, added up over all steps.

    Args:
        recipe: The training.
        risk: At the model that it gives.
        split: The loss at the outputs.

    Returns:
        Importance; the share of the start that l2 has left; the start.

    Raises:
        UnsupportedError: If its steps are no fixed combinations of gradients.
        DataError: If it is about other samples.
        StaleError: If the model is not where the recipe ends.
    """
    _refuse(recipe, risk)
    course = recipe.course()
    effects, left = _effects(recipe)
    point, found = course.start(course.theta), torch.zeros(0)
    for step in range(len(course)):
        batch, weights = course.part(step, recipe.ones)
        with torch.enable_grad():
            z = bind(split.outputs, recipe.init)(point.theta, batch).detach().requires_grad_()
            (slope,) = torch.autograd.grad((split.criterion(z, batch) * weights).sum(), [z])
        slope = slope.reshape(len(slope), -1)
        found = slope.new_zeros(recipe.n, slope.shape[1]) if not len(found) else found
        rows = course.rows[step]
        rows = torch.arange(recipe.n) if rows is None else rows
        found.index_add_(0, rows.to(found.device), slope, alpha=effects[step] / len(slope))
        point = course.advance(point, step, batch, weights)
    _refuse_other_model(risk, risk.layout.flatten({name: point.theta[name] for name in risk.layout.names}))
    return found, left, risk.layout.flatten({name: course.theta[name] for name in risk.layout.names})


def _effects(recipe: Recipe) -> tuple[list[float], float]:
    """The effect of each step's gradient, and of the start, on the parameters at the end, through momentum and l2."""
    assert isinstance(recipe.optimizer, SGD)
    decay = float(next(iter(recipe.course().decays.values())))
    on_theta, on_velocity, effects = 1.0, 0.0, list[float]()
    rates = [recipe.optimizer.lr * rate for rate in recipe.course().rates]
    for rate in reversed(rates):
        of_velocity = on_velocity - rate * on_theta
        effects.append(of_velocity)
        on_velocity = recipe.optimizer.momentum * of_velocity
        on_theta += decay * of_velocity
    return effects[::-1], on_theta


def _refuse(recipe: Recipe, risk: Risk) -> None:
    same = not isinstance(recipe.l2, Mapping)
    if not isinstance(recipe.optimizer, SGD) or recipe.clipping is not None or not same or recipe.random:
        raise UnsupportedError(
            "importance='path' adds up steps that are fixed combinations of gradients: it needs optimizer=SGD(...), "
            "no clipping, nothing random and one l2 coefficient. Type importance='derivative', or replay(recipe, ...)."
        )
    if recipe.n != risk.n:
        raise DataError(f"The recipe has {recipe.n} samples, the risk has {risk.n}; needed the same.")


def _refuse_other_model(risk: Risk, end: Tensor) -> None:
    here = risk.layout.flatten(risk.theta)
    if not torch.allclose(here, end.to(here), rtol=1e-4, atol=1e-6):
        raise StaleError("The model of the risk is not where the recipe ends. Type risk = recipe.risk(recipe.train()).")
