"""The verb: which training samples made the model answer as it does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._autodiff.functional import isolated
from .._data.batches import beside, probe
from .._data.dealt import Dealt
from .._data.ranks import ALONE
from .._default.auto import Auto
from .._kronecker.directions import derivatives_by_hooks, known_layers
from .._kronecker.inverse import AbstractBlockSolver, EKFACInverse
from .._require import require_question, require_risk
from .._results.scores import Scores, SolveReport
from .._results.verdict import announce, of_influence
from .._risk.base import AbstractRisk
from .._risk.objectives import EachOf, Queries
from .._risk.parameters import Parameters, fisher_of
from .._risk.products import AbstractBatchedRisk
from .._risk.sharper import sharper_questions
from .._risk.tokens import Unit, token_derivatives, token_ids
from .._solvers.base import AbstractInverse, AbstractSolver, QueryScores, Solution, inverse_of, risk_of
from .._types import Batch, Id, Objective
from ..errors import UnsupportedError
from .evidence import gathered, own_share

BY_LAYERS = "Samples were scored layer by layer, in one forward and one backward pass."
UNDETERMINED = 1e-3  # share of a question's gradient beyond rounding in single precision


def influence(
    risk: AbstractRisk,
    objective: Objective,
    solver: AbstractSolver | AbstractInverse = Auto(),
    *,
    candidates: Iterable[Batch] | None = None,
    unit: Unit = "sample",
) -> Scores:
    r"""Influence of each training sample on each objective.

    $$\text{scores}_i = -\nabla m^\top J^{-1}\,\partial g/\partial w_i \approx
    m(\text{trained on all}) - m(\text{trained without sample } i)$$

    Positive: having the sample in the training set raised the objective. The unit is that of the objective; n stays
    fixed when a sample is left out, and the l2 term is not reweighted.

    Args:
        risk: What training minimised, and where it ended.
        objective: `model -> scalar`, `(m,)` values or `{name: scalar}`; or from `mean_over`, `each_of`.
        solver: How to solve with the curvature, or an inverse computed earlier.
        candidates: Batches of samples that were not trained on; the scores are then the effect of adding each,
            with ids 0, 1, ... in order. Per-sample losses only.
        unit: "sample", or "token" for a loss that is a sum over tokens (`OnOutputs.by_token`, the losses of
            `crossfluence.language`): ids are then `(sample, position)`, and the scores of a sample's tokens add up to
            its own.

    Returns:
        One score for each sample (or token) and objective.

    Raises:
        StaleError: If the model changed since the risk was made.
        ObjectiveError: If the objective does not depend on the trained parameters.
        NonFiniteError: If a batch gives a NaN, with its number.
        SolveError: If the curvature cannot be inverted as asked.
        UnsupportedError: If it is given something else than a risk, a question and a solver, or the loss has no
            tokens.
        ValueError: If the unit is neither word.

    Warns:
        UnreliableWarning: If the scores cannot be believed; `scores.verdict` has the reasons.

    Example:
        >>> from crossfluence import Exact, Risk, batches
        >>> class Mean(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.at = torch.nn.Parameter(torch.tensor([2.0]))
        >>> x = torch.tensor([[0.0], [2.0], [4.0]])  # the minimiser of the squared distances is the mean
        >>> risk = Risk(Mean(), lambda model, batch: (batch[:, 0] - model.at) ** 2 / 2, batches(x))
        >>> influence(risk, lambda model: model.at, Exact()).values[:, 0]
        tensor([-0.6667,  0.0000,  0.6667])

    References:
        Koh and Liang, "Understanding black-box predictions via influence functions", ICML 2017; Silva, Chopra and
        Gombolay, "Cross-loss influence functions to explain deep network representations", AISTATS 2022.
    """
    require_risk(risk, AbstractRisk, "influence")
    require_question(objective, "influence")
    started = time.perf_counter()
    with isolated():
        risk.check()
        by_layers = isinstance(objective, EachOf) or isinstance(solver, (AbstractBlockSolver, EKFACInverse))
        if not by_layers or candidates is not None or unit == "token":  # else it may come with the scores
            _ = risk.gradient  # first of all: it finds a NaN and names its batch
        if candidates is not None:
            ranks = risk.ranks if isinstance(risk, AbstractBatchedRisk) else ALONE
            reading = probe(candidates, "candidates", ranks=ranks)
            candidates = Dealt(beside(candidates, risk.model), reading.sizes)
        ids = _ids(risk, candidates, unit)
        inverse = inverse_of(solver, risk)
        pairs = inverse.pairwise(risk, objective) if unit == "sample" else None
        chunks = []
        if pairs is not None:
            chunks.extend(pairs.scores(candidates))
        for query in sharper_questions(objective, risk, risk_of(inverse, risk)) if pairs is None else ():  # a = ∇m
            wanted = risk.project(query.gradients)
            solution, points = inverse.solve_along(risk, wanted)  # u = J⁻ᵀ a
            parts = [_derivatives(at, candidates, u, unit) for at, u in points]  # ∂/∂w [uᵀ g]: one pass
            derivatives = torch.stack(parts).sum(0)
            scored = _scored(risk, inverse, query, wanted, solution, derivatives)
            one_pass = candidates is None and unit == "sample" and known_layers(points[0][0]) is not None
            chunks.append(replace(scored, notes=(*scored.notes, BY_LAYERS)) if one_pass else scored)
        values = 0.0 - torch.cat([chunk.derivatives for chunk in chunks], dim=1)  # and no zero below zero
        if unit == "token":  # a verdict is about samples
            chunks = [replace(chunk, derivatives=_added(chunk.derivatives, ids)) for chunk in chunks]
        solved = [chunk.solution for chunk in chunks if chunk.solution]
        report = _report(risk, inverse, solved, chunks, values.abs().amax(0).tolist(), started)
        verdict = of_influence(gathered(risk, inverse, chunks, report))
        metric = fisher_of(objective, risk) if isinstance(objective, Parameters) else None
    ids = tuple(range(len(values))) if ids is None else ids
    names = tuple(name for chunk in chunks for name in chunk.names)
    report = replace(report, verdict=str(verdict))
    return Scores(values, ids, names, report.solver, report, verdict=announce(verdict), metric=metric)


def _ids(risk: AbstractRisk, candidates: Iterable[Batch] | None, unit: Unit) -> tuple[Id, ...] | None:
    """The ids of the rows; nothing for candidates, which are counted."""
    if unit == "token":
        return token_ids(risk, candidates)
    if unit != "sample":
        raise ValueError(f"Got unit={unit!r}; needed 'sample' or 'token'.")
    return risk.labels if candidates is None else None


def _added(rows: Shaped[Tensor, "tokens m"], ids: tuple[Id, ...] | None) -> Shaped[Tensor, "n m"]:
    """The sum over the tokens of each sample."""
    assert ids is not None
    samples: dict[Id, int] = {}
    places = [samples.setdefault(label[0], len(samples)) for label in ids if isinstance(label, tuple)]
    return rows.new_zeros(len(samples), rows.shape[1]).index_add(0, torch.tensor(places, device=rows.device), rows)


def _derivatives(
    risk: AbstractRisk, candidates: Iterable[Batch] | None, directions: Shaped[Tensor, "m p"], unit: Unit
) -> Shaped[Tensor, "n m"]:
    if unit == "token":
        return token_derivatives(risk, directions, candidates)
    if candidates is None:
        found = derivatives_by_hooks(risk, directions)
        return risk.derivatives_along(directions) if found is None else found
    return risk.derivatives_along_of(candidates, directions)


def _scored(
    risk: AbstractRisk,
    inverse: AbstractInverse,
    query: Queries,
    wanted: Tensor,
    solution: Solution,
    derivatives: Tensor,
) -> QueryScores:
    """One chunk of queries with all that the report says of them."""
    u = solution.vectors
    drift = -(u @ risk_of(inverse, risk).gradient) if inverse.at_minimum else u.new_zeros(len(u))
    energy = (u * query.gradients.to(u)).sum(1)
    return QueryScores(
        query.names, query.values, derivatives.to(risk.weights), drift.to(risk.weights), solution,
        _left_out(risk, query, wanted), energy,
    )  # fmt: skip


def _left_out(risk: AbstractRisk, query: Queries, wanted: Tensor) -> tuple[str, ...]:
    """A note if a part of a question lies along directions that training does not determine."""
    shares = (query.gradients - wanted).norm(dim=1) / query.gradients.norm(dim=1)
    share, place = max(zip(shares.nan_to_num().tolist(), query.names, strict=True))
    if share <= UNDETERMINED:
        return ()
    return (
        f"{share:.2g} of the gradient of {place!r} lies along directions that training leaves undetermined "
        f"({risk.symmetry}); it is left out, as if a retrained model were turned back to this one.",
    )


def self_influence(risk: AbstractRisk, solver: AbstractSolver | AbstractInverse = Auto()) -> Scores:
    r"""Influence of each training sample on its own loss: large for outliers and mislabelled samples.

    The objective of sample i is its own loss $\ell_i$ (for coupled losses $n\,\partial F/\partial w_i$), so scores are
    negative where a sample lowered its own loss, as samples do.

    Args:
        risk: What training minimised, and where it ended.
        solver: How to solve with the curvature, or an inverse computed earlier.

    Returns:
        Shape `(n, 1)`, in units of the loss.

    Raises:
        UnsupportedError: For stop-gradient losses, where a sample has no loss of its own; or if it is not a risk.

    Warns:
        UnreliableWarning: If the scores cannot be believed; `scores.verdict` has the reasons.

    Example:
        >>> from crossfluence import Exact, Risk, batches
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(net.weight, 1.0)
        >>> x, y = torch.ones(3, 1), torch.tensor([[1.0], [1.0], [1.0]])
        >>> risk = Risk(net, lambda model, batch: (model(batch[0]) - batch[1])[:, 0] ** 2, batches(x, y))
        >>> self_influence(risk, Exact()).values.abs().max().item()
        0.0
    """
    require_risk(risk, AbstractRisk, "self_influence")
    if not risk.symmetric:
        raise UnsupportedError(
            "self_influence needs every sample to have a loss of its own; a FieldLoss trains along a field that is no "
            "gradient. Ask influence(risk, objective) about a quantity of the sample instead."
        )
    started = time.perf_counter()
    with isolated():
        risk.check()
        _ = risk.gradient
        inverse = inverse_of(solver, risk)
        found, parts, solved = inverse.self_influence(risk), [], []
        for gradients in risk_of(inverse, risk).sample_gradients() if found is None else ():
            solved.append(inverse.solve(gradients))
            parts.append((-risk.n * (solved[-1].vectors * gradients).sum(1)).to(risk.weights))
        own = torch.cat([*(found or ()), *parts]).unsqueeze(1)
        report = _report(risk, inverse, solved, [], own[:, 0].abs().tolist(), started)
        verdict = of_influence(own_share(risk, inverse, own))
    report = replace(report, verdict=str(verdict))
    return Scores(own, risk.labels, ("own loss",), report.solver, report, verdict=announce(verdict))


def _report(
    risk: AbstractRisk,
    inverse: AbstractInverse,
    solved: list[Solution],
    chunks: list[QueryScores],
    sizes: list[float],
    started: float,
) -> SolveReport:
    notes = [note for part in [*solved, *chunks] for note in part.notes]
    shares = [share for solution in solved for share in solution.errors]
    return SolveReport(
        solver=_solvers(inverse, solved),
        damping=inverse.damping,
        steps=tuple(step for solution in solved for step in solution.steps),
        residuals=tuple(share for solution in solved for share in solution.residuals),
        errors=tuple(share * size for share, size in zip(shares, sizes, strict=bool(shares))),
        values=tuple(value for part in chunks for value in part.values.tolist()),
        drift=tuple(value if inverse.at_minimum else 0.0 for part in chunks for value in part.drift.tolist()),
        gradient_norm=_gradient_norm(risk, chunks),
        smallest_eigenvalue=inverse.smallest_eigenvalue,
        coverage=risk.coverage,
        seconds=time.perf_counter() - started,
        fingerprint=risk.fingerprint,
        notes=tuple(dict.fromkeys([*inverse.notes, *notes, *risk.notes])),
    )


def _gradient_norm(risk: AbstractRisk, chunks: list[QueryScores]) -> float:
    """As it came with the scores, or of the risk, which takes a pass over the data where it is not known."""
    came = [part.gradient_norm for part in chunks if part.gradient_norm is not None]
    return came[0] if came and "gradient" not in vars(risk) else float(risk.gradient.norm())


def _solvers(inverse: AbstractInverse, solved: list[Solution]) -> str:
    """Names of the solvers, with the number of solves of each if another took over some of them."""
    counts = Counter[str]()
    for solution in solved:
        counts[solution.solver or inverse.solver] += len(solution.vectors)
    if len(counts) < 2:
        return next(iter(counts), inverse.solver)
    return ", ".join(f"{solver} for {count} of {counts.total()} solves" for solver, count in counts.items())
