"""Limited-memory BFGS that starts from the curvature of each word: to a minimum in about a hundred gradients."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

MEMORY = 20  # pairs of steps and changes of the gradient
SHRINK, ENOUGH = 0.1, 1e-4  # smallest cut of a step that was too long; share of the promised decrease that will do


@dataclass(frozen=True, eq=False)
class Minimum:
    """The end of a minimisation.

    Attributes:
        point: Shape `(p,)`.
        value: Of the function.
        gradient_norm: In the metric of the preconditioner: about the square root of twice the decrease that is left.
        steps: Iterations.
        evaluations: Values with gradients.
    """

    point: Float[Tensor, " p"]
    value: float
    gradient_norm: float
    steps: int
    evaluations: int


def minimise_lbfgs(
    function: Callable[[Tensor], tuple[float, Tensor]],
    start: Float[Tensor, " p"],
    preconditioner: Callable[[Tensor], Callable[[Tensor], Tensor]],
    *,
    tolerance: float,
    steps: range,
    refresh: Callable[[int], bool],
    description: str,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Minimum:
    r"""A local minimum of a smooth function.

    Stops when $\sqrt{g^\top B^{-1} g}$ is at most the tolerance, B being the preconditioning curvature: half its square
    is about the decrease that is left, in units of the function.

    Args:
        function: Value and gradient at a point.
        start: Where to begin.
        preconditioner: At a point, what multiplies by the inverse of an approximate curvature.
        tolerance: See above.
        steps: Numbers of the steps, at the most; a run that goes on from a checkpoint does not begin at 0.
        refresh: Whether the preconditioner is made anew before a step, by the number of the step.
        description: Of the progress bar.
        on_step: Is told each step and its point.

    Returns:
        The last point, also if the tolerance was not reached.

    References:
        Nocedal, "Updating quasi-Newton matrices with limited storage", Mathematics of Computation 35, 1980.
    """
    value, gradient = function(start)
    point, evaluations, history = start, 1, deque[tuple[Tensor, Tensor]](maxlen=MEMORY)
    precondition = preconditioner(start)
    solved = precondition(gradient)
    # How long the preconditioner's steps should have been, by the last one; at first half, since blocks overlap.
    scale, norm = 0.5, float("inf")
    with tqdm(desc=description, unit="step", initial=steps.start, disable=None, leave=False) as bar:
        for step in steps:
            if step > steps.start and refresh(step):
                del precondition  # before another takes as much room
                precondition = preconditioner(point)
                solved = precondition(gradient)
                if history:
                    moved, change = history[-1]
                    scale = float(moved @ change) / float(change @ precondition(change))
            norm = float(gradient @ solved) ** 0.5
            bar.set_postfix_str(f"loss {value:.6f}, {norm:.1e} of {tolerance:.0e}", refresh=False)
            bar.update()
            if on_step is not None:
                on_step(step, point)
            if norm <= tolerance:
                return Minimum(point, value, norm, step, evaluations)
            direction = -_two_loops(gradient, history, precondition, scale)
            found = _backtrack(function, point, value, direction, float(gradient @ direction))
            if found is None:  # rounding: the value no longer falls
                return Minimum(point, value, norm, step, evaluations)
            new, new_value, new_gradient, tried = found
            moved, change, new_solved = new - point, new_gradient - gradient, precondition(new_gradient)
            bent = float(change @ (new_solved - solved))  # the solve of a difference is the difference of solves
            if bent > 0 and float(moved @ change) > 1e-10 * float(moved.norm() * change.norm()):
                history.append((moved, change))
                scale = float(moved @ change) / bent
            point, value, gradient, solved = new, new_value, new_gradient, new_solved
            evaluations += tried
    return Minimum(point, value, norm, steps.stop, evaluations)


def _two_loops(
    gradient: Tensor, history: deque[tuple[Tensor, Tensor]], precondition: Callable[[Tensor], Tensor], scale: float
) -> Tensor:
    """The gradient times the approximate inverse Hessian, which starts as `scale` times the preconditioner."""
    rest, shares = gradient.clone(), []
    for moved, change in reversed(history):
        share = float(moved @ rest) / float(change @ moved)
        rest -= share * change
        shares.append(share)
    found = scale * precondition(rest)
    for (moved, change), share in zip(history, reversed(shares), strict=True):
        found += (share - float(change @ found) / float(change @ moved)) * moved
    return found


def _backtrack(
    function: Callable[[Tensor], tuple[float, Tensor]], point: Tensor, value: float, direction: Tensor, slope: float
) -> tuple[Tensor, float, Tensor, int] | None:
    """The first of ever shorter steps that decreases the function enough, its value and gradient, and how many."""
    length, noise = 1.0, 4 * torch.finfo(point.dtype).eps * abs(value)
    for tried in range(1, 12):
        new = point + length * direction
        new_value, gradient = function(new)
        if new_value <= value + ENOUGH * length * slope + noise:
            return new, new_value, gradient, tried
        parabola = -slope * length / (2 * (new_value - value - length * slope))
        length *= max(SHRINK, min(0.5, parabola))
    return None
