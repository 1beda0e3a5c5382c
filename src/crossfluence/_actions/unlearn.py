"""One Newton step to where training without some samples would have ended."""

from __future__ import annotations

from collections.abc import Iterable

from .._autodiff.copies import copied
from .._autodiff.functional import isolated
from .._autodiff.params import put
from .._default.auto import Auto
from .._require import listed, require_question, require_risk
from .._risk.base import AbstractRisk
from .._solvers.base import AbstractInverse, AbstractSolver, inverse_of
from .._types import Id, Objective
from ..errors import SolveError
from .outcome import Outcome, first_order, watched


def unlearn(
    risk: AbstractRisk,
    ids: Iterable[Id],
    solver: AbstractSolver | AbstractInverse = Auto(),
    *,
    watch: Objective | None = None,
) -> Outcome:
    r"""The parameters predicted without the samples: one Newton step on the risk that leaves them out.

    $\theta = \hat\theta - J_w^{-1}\,(g(\hat\theta, w) - g(\hat\theta, 1))$ with weight 0 for the samples. With a
    solver, $J_w$ is the curvature without them, which stays accurate for large groups; an inverse computed earlier
    is that of all samples, the plain influence step.

    Args:
        risk: What training minimised, and where it ended.
        ids: The samples to forget.
        solver: How to solve with the curvature, or an inverse computed earlier.
        watch: An objective to compare before and after.

    Returns:
        The new model; `predicted` is the first-order change of the watched objective, minus the sum of the scores
        when the inverse is that of all samples.

    Raises:
        IdError: If an id is unknown.
        ValueError: If there is nothing to forget.
        SolveError: If the step raises the loss without the samples, where that is known: it followed flat directions
            too far.

    Example:
        >>> import torch
        >>> from crossfluence import Exact, Risk, batches
        >>> class Mean(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.at = torch.nn.Parameter(torch.tensor([2.0]))
        >>> x = torch.tensor([[0.0], [2.0], [4.0]])
        >>> risk = Risk(Mean(), lambda model, batch: (batch[:, 0] - model.at) ** 2 / 2, batches(x))
        >>> unlearn(risk, [0], Exact()).model.at  # the mean of what is left
        Parameter containing:
        tensor([3.], requires_grad=True)
    """
    require_risk(risk, AbstractRisk, "unlearn")
    if watch is not None:
        require_question(watch, "watch=")
    chosen = listed(ids, "the samples of unlearn")
    if not chosen:
        raise ValueError("Got no samples to unlearn; needed at least one id.")
    model = copied(risk.model)
    with isolated():
        risk.check()
        rest = risk.without(chosen)
        inverse = inverse_of(solver, risk if isinstance(solver, AbstractInverse) else rest)
        change = (rest.gradient - risk.gradient).unsqueeze(0)
        moved = -inverse.solve(change, transposed=False).vectors[0]
        stepped = risk.layout.unflatten(risk.layout.flatten(risk.theta) + moved)
        _refuse_ascent(rest.value(risk.theta), rest.value(stepped), inverse.solver)
        put(stepped, model)
        names, before = watched(watch, risk.model)
        _, after = watched(watch, model)
        predicted = first_order(risk, watch, moved)
    return Outcome(model, names, before, after, predicted, None, f"unlearn({inverse.solver})")


def _refuse_ascent(before: float | None, after: float | None, solver: str) -> None:
    if before is not None and after is not None and not after <= before + abs(before) * 1e-6:
        raise SolveError(
            f"One Newton step by {solver} raises the loss without the samples from {before:.6g} to {after:.6g}: it "
            f"went too far along directions where the loss is nearly flat. Stop the solve earlier, with CG(rtol=0.1, "
            f"preconditioner=WordBlocks(), truncate=True), give a damping, or leave out rarer words."
        )
