"""The gradient that a training left, beside those of its samples: a minimum, or a training that was stopped."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._curvature.scale import signed_gradient, squared_gradients
from .._risk.double import DENSE_PARAMETERS
from .._risk.risk import Risk
from .._solvers.base import AbstractInverse
from ..errors import NotConvergedWarning, SolveError

QUESTIONS = 4  # sums of losses with random signs, which stand for any question
SIGNS = 8  # draws of signs where there are few parameters


def gradient_left(risk: Risk) -> float:
    r"""The gradient that training left, times n, over the root mean square of its samples' gradients.

    $n\lVert g_T\rVert / \sqrt{\overline{\lVert g_{i,T}\rVert^2}}$, in root mean square over the parameter tensors T. In
    a curvature that is the same in all directions, this is how far one more step of training moves a question beside
    what a sample does to it: at a minimum it is near zero, and a training that was stopped has $\sqrt n$ and more.
    Passes over the data: one for the samples, by random signs, and that of the gradient.

    Args:
        risk: Of any loss.

    Returns:
        A share, from 0; infinity where no sample has a gradient and training has.
    """
    if "gradient left" not in risk.remembered:
        squares = squared_gradients(risk, SIGNS if risk.p <= DENSE_PARAMETERS else 1)
        own = risk.layout.split(risk.gradient.double())
        shares = [
            float(own[name].square().sum()) / float(part.sum())
            for name, part in risk.layout.split(squares).items()
            if bool(part.any())
        ]
        nothing = float("inf") if bool(risk.gradient.any()) else 0.0
        risk.remembered["gradient left"] = risk.n * (sum(shares) / len(shares)) ** 0.5 if shares else nothing
        risk.remembered["sample gradients"] = float(squares.sum())
    return risk.remembered["gradient left"]


def sample_scale(risk: Risk) -> float:
    """The mean eigenvalue of the second moment of the samples' gradients: a damping that costs nothing more.

    Args:
        risk: Of any loss.

    Returns:
        The mean squared length of a sample's gradient, over p.
    """
    gradient_left(risk)
    return risk.remembered["sample gradients"] / risk.p


def drift_left(risk: Risk, inverse: AbstractInverse) -> float:
    """The move of a question by one more Newton step, over its largest score, for typical questions.

    These are sums of the samples' losses with random signs. It is the share that a verdict goes by, before anything
    was asked.

    Args:
        risk: In the precision that the inverse works in.
        inverse: Of the curvature there.

    Returns:
        A share, from 0; infinity where the inverse refuses such a question.
    """
    asked = _typical_questions(risk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        try:
            u = inverse.solve(asked).vectors
        except SolveError:
            return float("inf")
    moved, strongest = (u @ risk.gradient).abs(), risk.derivatives_along(u).abs().amax(0)
    return float(moved.sum() / strongest.sum()) if bool(strongest.any()) else float("inf") if moved.any() else 0.0


def _typical_questions(risk: Risk) -> Shaped[Tensor, "m p"]:
    generator = torch.Generator().manual_seed(0)
    total = risk.layout.flatten(risk.theta).new_zeros(QUESTIONS, risk.p)
    for _, batch, weights in risk.passes():
        for row in range(QUESTIONS):
            signs = (torch.randint(2, (len(weights),), generator=generator) * 2 - 1).to(weights)
            total[row] += risk.layout.flatten(signed_gradient(risk, batch, weights, signs * weights))
    return total / risk.n
