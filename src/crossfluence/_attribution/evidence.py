"""Numbers measured beside scores, for a verdict on them; the costly ones only where something is wrong."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import bind, evaluated
from .._autodiff.ways import moved
from .._curvature.hessian import Hessian
from .._data.samples import cut
from .._results.scores import SolveReport
from .._results.verdict import Evidence, suspicious
from .._risk.base import AbstractRisk
from .._risk.risk import Risk
from .._solvers.base import AbstractInverse, QueryScores, Solution
from .._types import Batch, Params
from ..errors import CrossfluenceError, NotConvergedWarning

ROUNDED = 64  # rounding errors of a loss that a jump may hold
LOOKED_AT = 64, 1024  # samples whose losses are searched for kinks: five times each, at least and at most
COMPARED = 256  # samples, at least, whose losses are taken twice
SHARE = 50  # one for so many
FACTORS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # places along a line, where a kink would show
BASIS = "the sizes are those of the training's own record, wherever it ended"
SMALLER = 0.03  # share by which weights are made smaller, to see whether a model is too sure of its samples
CHANCE = 4.0  # standard errors of a mean, below which its sign is chance
MEASURED = "GaussNewton(", "Fisher("  # curvatures that stand for another one: what they leave out is measured


def gathered(
    risk: AbstractRisk, inverse: AbstractInverse, chunks: Sequence[QueryScores], report: SolveReport
) -> Evidence:
    """Evidence for and against the answers to queries.

    Args:
        risk: The trained model.
        inverse: What they were solved with.
        chunks: Scores of the queries, chunk by chunk.
        report: On the solve.

    Returns:
        Numbers for `of_influence`. If training had not ended, or the inverse does not ask for it, the losses of some
        samples were searched for kinks, and for signs that the model was trained on others.
    """
    solved = [part.solution for part in chunks if part.solution is not None]
    evidence = Evidence(
        drift=report.drift,
        strongest=_listed(part.derivatives.abs().amax(0) for part in chunks),
        errors=report.errors,
        damped=_damped(inverse, chunks),
        bend=_bend(risk, inverse, chunks),
        lowest=_lowest(risk, inverse, solved),
        approximation=inverse.approximation,
        notes=_limits(risk),
        basis="" if inverse.at_minimum else BASIS,
        agreements=tuple(pair for solution in solved for pair in solution.agreements),
    )
    if not isinstance(risk, Risk) or (inverse.at_minimum and not suspicious(evidence)):
        return evidence
    return replace(evidence, kinks=kinks(risk), stranger=stranger(risk), worse=worse(risk))


def own_share(risk: AbstractRisk, inverse: AbstractInverse, own: Shaped[Tensor, "n 1"]) -> Evidence:
    r"""Evidence for and against samples' scores for their own losses.

    Their sum is a trace, $\sum_i g_i^\top J^{-1} g_i$; what is left of training is the same with the sum of all $g_i$.

    Args:
        risk: The trained model.
        inverse: What they were solved with.
        own: The scores.

    Returns:
        Numbers for `of_influence`.
    """
    step = _step(risk, inverse) if inverse.at_minimum else None
    left = 0.0 if step is None else abs(float(step @ risk.gradient)) ** 0.5
    whole = float(own.abs().sum() / risk.n) ** 0.5
    return Evidence(
        drift=(left,), strongest=(whole,), lowest=_lowest(risk, inverse, []),
        approximation=inverse.approximation, notes=_limits(risk), basis="" if inverse.at_minimum else BASIS,
        stranger=stranger(risk) if isinstance(risk, Risk) else 0.0,
        worse=worse(risk) if isinstance(risk, Risk) else 0.0,
    )  # fmt: skip


def stranger(risk: Risk) -> float:
    """The share by which the samples' mean loss falls when all weights are made 3 % smaller, where that is no chance.

    Training makes a model as sure of its samples as pays, so that smaller weights only cost. With other labels, other
    columns or in another unit, or on samples that an overfitted model has not seen, it is too sure. Weights are tensors
    of two dimensions or more: biases hold the level of the outputs, which is right for permuted labels too.

    Args:
        risk: With losses of single samples; for others, and for one with the record of its training, the share is zero.

    Returns:
        A share of the mean size of the losses, from 0.
    """
    return _with_less_weight(risk)[0]


def worse(risk: Risk) -> float:
    """The share by which the samples' mean loss falls when all weights are zero: what training learnt harms them.

    Args:
        risk: As for `stranger`.

    Returns:
        A share of the mean size of the losses, from 0; of few samples too.
    """
    return _with_less_weight(risk)[1]


def _with_less_weight(risk: Risk) -> tuple[float, float]:
    if not risk.kind.per_sample or risk.record is not None:
        return 0.0, 0.0
    if "stranger" not in risk.remembered:
        risk.remembered["stranger"] = _stranger(risk)
    return risk.remembered["stranger"]


def _stranger(risk: Risk) -> tuple[float, float]:
    along = {name: part if part.dim() > 1 else torch.zeros_like(part) for name, part in risk.theta.items()}
    if not any(part.any() for part in along.values()):
        return 0.0, 0.0
    pairs = _losses_along(risk, along, (0.0, -SMALLER, -1.0), max(COMPARED, _enough(risk)))
    losses, smaller, without = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    fall, size = losses - smaller, float(losses.abs().mean())
    error = float(fall.std()) / len(fall) ** 0.5 if len(fall) > 1 else float("inf")
    sure = float(fall.mean()) if float(fall.mean()) > CHANCE * error else 0.0
    learnt = float((losses - without).mean().nan_to_num(0.0, 0.0, 0.0))
    return (sure / size, max(0.0, learnt / size)) if size else (0.0, 0.0)


def kinks(risk: Risk) -> float:
    r"""Jumps of the samples' slopes at the trained parameters, as a share of the slopes themselves.

    Along a random direction $v$ the second difference $d_i(h) = \ell_i(h) - 2\ell_i(0) + \ell_i(-h)$ of a smooth loss
    is a multiple of $h^2$, at a kink of $h$: $(4\,d_i(h/2) - d_i(h)) / h$ is the jump of the slope alone.

    Args:
        risk: With losses of single samples; for others the share is zero.

    Returns:
        About one where every sample is at a kink; zero where none is.
    """
    if not risk.kind.per_sample:
        return 0.0
    if "kinks" not in risk.remembered:  # of the loss, whatever is asked
        risk.remembered["kinks"] = _kinks(risk)
    return risk.remembered["kinks"]


def _kinks(risk: Risk) -> float:
    along = {name: risk.precision ** (1 / 3) * part for name, part in _direction(risk.theta).items()}
    jumps = slopes = rounding = 0.0
    for below, half_below, at, half_above, above in _losses_along(risk, along, FACTORS, _enough(risk)):
        whole, half = (above - 2 * at + below).abs().sum(), (half_above - 2 * at + half_below).abs().sum()
        jumps += float(4 * half - whole)
        rounding += ROUNDED * risk.precision * float(at.abs().sum())  # of five losses, four times in the halves
        slopes += float(torch.maximum((half_above - at).abs(), (at - half_below).abs()).sum()) * 2
    return jumps / slopes if slopes and jumps > rounding else 0.0


def _losses_along(
    risk: Risk, along: Params, factors: Sequence[float], enough: int
) -> Iterator[tuple[Shaped[Tensor, " b"], ...]]:
    """Losses of so many samples, batch by batch, at some places along a line through the trained parameters.

    Args:
        risk: With losses of single samples.
        along: The direction.
        factors: Of the places.
        enough: Samples.

    Yields:
        One tensor for each place.
    """
    bound = bind(risk.kind.losses, risk.model)

    def losses(factor: float, batch: Batch) -> Tensor:
        return evaluated(lambda: bound(moved(risk.theta, along, factor), batch)).double()

    for _, batch, weights in risk.passes():
        batch, count = _part(batch, len(weights), enough, lambda part: losses(0.0, part))
        yield tuple(losses(factor, batch) for factor in factors)
        enough -= count
        if enough <= 0:
            return


def _enough(risk: Risk) -> int:
    """Samples whose losses are looked at."""
    return min(max(LOOKED_AT[0], risk.n // SHARE), LOOKED_AT[1])


def _part(batch: Batch, b: int, count: int, losses: Callable[[Batch], Tensor]) -> tuple[Batch, int]:
    """The first few samples of a batch and how many these are; all, where the loss cannot read a part."""
    if count * 5 < b * 4:  # or reading it once more costs as much as it saves
        with contextlib.suppress(Exception):  # whatever the user's code says of a batch that it cannot read
            part = cut(batch, b, lambda part: part[:count])
            if part is not None and len(losses(part)) == count:
                return part, count
    return batch, b


def _direction(theta: Params) -> Params:
    """Random, and for each tensor of its own size, so that no unit decides; one, where all of it is zero."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(part.shape, generator=generator).to(part) for name, part in theta.items()}
    return {name: drawn[name] * (float(part.square().mean()) ** 0.5 or 1.0) for name, part in theta.items()}


def _step(risk: AbstractRisk, inverse: AbstractInverse) -> Shaped[Tensor, " p"] | None:
    """The Newton step from the trained parameters; nothing where the solve is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)  # of the questions it was said already
        try:
            return inverse.solve(risk.gradient.unsqueeze(0), transposed=False).vectors[0]
        except CrossfluenceError:
            return None


def _lowest(risk: AbstractRisk, inverse: AbstractInverse, solved: Sequence[Solution]) -> float | None:
    """A negative eigenvalue that the damping does not outweigh; zero where one is known to be there."""
    smallest = inverse.smallest_eigenvalue
    if smallest is not None and smallest + inverse.damping < -risk.precision:
        return smallest
    return 0.0 if any(solution.solver for solution in solved) else None


def _damped(inverse: AbstractInverse, chunks: Sequence[QueryScores]) -> tuple[float, ...]:
    r"""Share of the damping in $u^\top (J + \lambda) u = u^\top a$, for each question."""
    shares = [
        inverse.damping * part.solution.vectors.square().sum(1) / part.energy.abs()
        for part in chunks
        if part.solution is not None and part.energy is not None and inverse.damping
    ]
    return _listed(share.nan_to_num(1.0, 1.0).clamp(max=1.0) for share in shares)


def _bend(risk: AbstractRisk, inverse: AbstractInverse, chunks: Sequence[QueryScores]) -> float:
    """Curvature of the loss along the first solution over that which was solved with, where these may differ."""
    first = chunks[0]
    stands_in = any(name in inverse.solver for name in MEASURED) and not inverse.approximation
    if not stands_in or first.solution is None or first.energy is None:
        return 1.0
    u, energy = first.solution.vectors[:1], float(first.energy[0])
    try:
        own = float((Hessian().product(risk, u) * u).sum()) + inverse.damping * float(u.square().sum())
    except CrossfluenceError:  # the loss has no second derivative
        return float("nan")
    return own / energy if energy else 1.0


def _limits(risk: AbstractRisk) -> tuple[str, ...]:
    """The notes of a risk that say that sizes may be off; others say how derivatives were taken."""
    return tuple(note for note in risk.notes if "sizes" in note)


def _listed(parts: Iterable[Tensor]) -> tuple[float, ...]:
    return tuple(value for part in parts for value in part.detach().cpu().double().tolist())
