"""The cost of an answer, estimated from a small part of the data."""

from __future__ import annotations

import itertools
import math
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._autodiff.functional import VECTORS_AT_ONCE, gradient_of, isolated
from .._curvature.base import AbstractCurvature
from .._curvature.operator import natural_curvature
from .._data.ranks import ALONE
from .._data.samples import SAMPLES
from .._default.auto import Auto
from .._kronecker.pilot import part_of
from .._require import require, require_risk
from .._risk.base import AbstractRisk
from .._risk.objectives import QUERY_CHUNK, queries_at_once
from .._risk.risk import Risk
from .._solvers.base import AbstractSolver
from .._solvers.cost import Cost
from .._solvers.gmres import GMRES
from ..errors import NegativeCurvatureError, NotConvergedWarning, UnsupportedError

PART = 512  # samples that are looked at; whole batches, at least one
CLOCK = time.perf_counter
LONG = 0.1  # seconds after which a run is not timed again
DEAR = 0.5  # seconds of an epoch from which on a plan takes two epochs at most: a sixteenth of the data is timed,
SIXTEENTH, FEW, SOME = 16, 150, 4  # one sample in 150 says how many steps a solve takes, four vectors what 32 take
BUDGET = 0.6  # of an epoch, for such a solve
DENSE = 500  # order of the matrix that is factorised to see how fast that goes


@dataclass(frozen=True)
class Plan:
    """The cost of a run; print it.

    Attributes:
        solver: The solver that will do the work.
        samples: n.
        questions: m.
        products: Products with the curvature, for all questions together.
        passes: Readings of the data; up to 32 products share one.
        seconds: Of the clock, on this machine as busy as it is now. The gradients of the questions come on top.
        memory: Bytes of tensors at the peak, beside the model and the data set.
        disk: Bytes that `inverse.save` will write; 0 where nothing can be saved.
        notes: Sentences for a person.
    """

    solver: str
    samples: int
    questions: int
    products: int
    passes: int
    seconds: float
    memory: int
    disk: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        saved = f", {self.disk / 1e6:,.3g} MB when saved" if self.disk else ""
        head = f"{self.solver} for {self.questions:,} question(s) about {self.samples:,} samples: "
        takes = f"about {self.seconds:,.2g} s and {self.memory / 1e6:,.3g} MB of memory{saved}; "
        cost = f"{self.products:,} products with the curvature in {self.passes:,} passes over the data."
        return "\n".join([head + takes + cost, *self.notes])


def plan(risk: AbstractRisk, solver: AbstractSolver = Auto(), m: int = 1) -> Plan:
    """Estimates the cost of `influence` before it runs, from some 500 samples.

    Times products and scores there, and solves for the gradient of one sample's loss to see how many steps a question
    takes: on all samples for `GMRES`, and where the few have negative curvature. `EKFAC` is fitted there, and answers
    there: several questions are taken for an `each_of`. Meant to be right within a factor of two;
    `benchmarks/solvers/plan.py` sets it beside real runs.

    Args:
        risk: The trained model.
        solver: What will be used.
        m: How many questions.

    Returns:
        Products, passes, seconds, memory and disk.

    Raises:
        UnsupportedError: If the risk has a structure of its own, or the solver does not say what it does.
        ValueError: If m is not positive.

    Example:
        >>> from crossfluence import LowRank, batches
        >>> net, x = torch.nn.Linear(3, 1), torch.ones(2000, 3)
        >>> risk = Risk(net, lambda model, batch: model(batch).square().sum(1), batches(x), l2=0.1)
        >>> found = plan(risk, LowRank(2), m=10)
        >>> found.products, found.passes
        (4, 5)
    """
    require_risk(risk, AbstractRisk, "plan")
    require(solver, AbstractSolver, "plan", "a solver", "plan(risk, crossfluence.Auto())")
    require(m, Integral, "plan(m=)", "the number of questions", "plan(risk, solver, m=1)")
    if m < 1:
        raise ValueError(f"Got m={m}; needed at least one question.")
    if not isinstance(risk, Risk):
        raise UnsupportedError(f"plan needs a Risk; got a {type(risk).__name__}, which has its own ways.")
    risk = risk if risk.ranks.count == 1 else risk._changed(ranks=ALONE)  # times differ from rank to rank
    chosen = solver.choose(risk)[0] if isinstance(solver, Auto) else solver
    cost = chosen.cost(risk)
    with isolated():
        risk.check()
        dear = _epoch(risk) > DEAR
        part = _part(risk, min(PART, risk.n // SIXTEENTH) if dear else PART)
        tried = _dry_run(cost, part, m, risk.n)
        if tried.answers:
            memory = max(tried.peak, tried.held + _scores_held(risk, m))
            passes = cost.data_passes + -(-m // QUERY_CHUNK)
            return Plan(repr(chosen), risk.n, m, 0, passes, tried.seconds + tried.answers, memory, tried.held)
        curvature = natural_curvature(getattr(chosen, "curvature", None), risk)
        look = _few_steps if dear else _steps
        steps, notes = look(chosen, risk, part) if cost.steps else (0, ())
        together = SOME if dear else VECTORS_AT_ONCE
        product = _seconds_per_product(lambda v: curvature.product(part, v), part, risk.n / part.n, together)
        scores = _seconds_per_product(part.derivatives_along, part, risk.n / part.n, together)
        seconds = (
            tried.seconds
            + cost.sequential_products * product(1)
            + product(cost.batched_products)
            + _factorising(cost.matrix_order)
        )
        at_once = min(m, queries_at_once(risk.p))
        peak = _peak(curvature, part, min(max(at_once, cost.batched_products), VECTORS_AT_ONCE), together)
    each = steps + 1 if steps else 0  # one more for the residual
    products, passes = (
        cost.sequential_products + cost.batched_products,
        cost.data_passes + cost.sequential_products + _passes(cost.batched_products),
    )
    for start in range(0, m, at_once):
        size = min(at_once, m - start)
        seconds += cost.data_fraction * each * product(size) + scores(size)
        products += each * size
        passes += round(cost.data_fraction * each) * _passes(size) + _passes(size)
    solving = (cost.vectors + cost.vectors_per_step * steps) * at_once * risk.p * risk.weights.element_size()
    held = cost.inverse_bytes + tried.held
    memory = max(tried.peak, held + max(max(cost.temporary_bytes, solving) + peak, _scores_held(risk, m)))
    return Plan(repr(chosen), risk.n, m, products, passes, seconds, memory, held if chosen.saveable else 0, notes)


@dataclass(frozen=True)
class _Tried:
    """Seconds for all samples before the first question, and for answers; bytes of the inverse, and at the peak."""

    seconds: float = 0.0
    answers: float = 0.0
    held: int = 0
    peak: int = 0


def _dry_run(cost: Cost, part: Risk, m: int, n: int) -> _Tried:
    """Runs the work of a solver that is no product, once for its memory, then timed piece by piece."""
    if cost.dry_run is None:
        return _Tried()
    with PeakMemory() as tally:
        found = cost.dry_run(part, 1 if cost.steps else m)
    before = answers = 0.0
    for stage in found.stages:
        seconds = _seconds(stage.run) * (n / part.n if stage.grows else 1)
        before += 0 if stage.questions else seconds
        answers += seconds * m / stage.questions if stage.questions else 0
    return _Tried(before, answers, found.held, tally.peak)


def _scores_held(risk: Risk, m: int) -> int:
    """Bytes of all scores, which are copied twice at the end."""
    return 3 * risk.n * m * risk.weights.element_size()


def _epoch(risk: Risk) -> float:
    """Seconds of the gradient of all samples, from the first batch."""
    batch, size = next(iter(risk.data)), risk.reading.sizes[0]
    weights = risk.weights[:size]

    def run() -> object:
        return gradient_of(lambda theta: risk.total(theta, risk.theta, batch, weights), risk.theta)

    return _seconds(run) * risk.n / size


def _part(risk: Risk, most: int = PART) -> Risk:
    """A risk of the first batches alone."""
    sizes = list(itertools.accumulate(risk.reading.sizes))
    count = next((number for number, total in enumerate(sizes, start=1) if total >= most), len(sizes))
    part = list(itertools.islice(risk.data, count))
    return replace(risk, data=part, ids=None, n=risk.reading.sizes[:count], shared=False)


def _steps(solver: AbstractSolver, risk: Risk, part: Risk) -> tuple[int, tuple[str, ...]]:
    """Number of steps for one query: on the part, or on all samples where a part may be indefinite."""
    refused = ""
    for look in (risk,) if isinstance(solver, GMRES) else (part, risk):
        question = look.gradient if not look.symmetric else next(look.sample_gradients())[0]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotConvergedWarning)
                steps = max(solver.invert(look).solve(question.unsqueeze(0)).steps)
        except NegativeCurvatureError as error:
            refused = str(error)
        else:
            return steps, (f"A question takes about {steps} steps, as one did on {look.n:,} samples.",)
    return solver.cost(part).steps, (f"The number of steps is its limit: {refused}",)


def _few_steps(solver: AbstractSolver, risk: Risk, part: Risk) -> tuple[int, tuple[str, ...]]:
    """Number of steps for one query, from as many as the budget allows on a few samples."""
    try:
        look = part_of(part, torch.arange(min(max(SAMPLES, risk.n // FEW), part.n)))
    except UnsupportedError:  # samples are coupled, or batches cannot be taken apart
        look = part
    limit = solver.cost(risk).steps
    allowed = max(3, min(limit, int(BUDGET * risk.n / (3 * look.n))))
    short: Any = replace(solver, max_steps=allowed)  # pyright: ignore[reportArgumentType,reportCallIssue]
    question = look.gradient if not look.symmetric else next(look.sample_gradients())[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)
            found = short.invert(look).solve(question.unsqueeze(0))
    except NegativeCurvatureError as error:
        return limit, (f"The number of steps is its limit: {error}",)
    steps, left = max(found.steps), max(found.residuals, default=0.0)
    if steps >= allowed and short.rtol < left < 1:
        steps = min(limit, round(steps * math.log(short.rtol) / math.log(left)))
    return steps, (f"A question takes about {steps} steps, as {allowed} or fewer on {look.n} samples suggest.",)


def _seconds_per_product(
    function: Callable[[Tensor], Tensor], part: Risk, scale: float, together: int
) -> Callable[[int], float]:
    """Seconds over the whole data for any number of vectors, from those for one and for several on a part."""
    like = part.layout.flatten(part.theta)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(together, part.p, generator=generator).to(like)

    @cache
    def taken(count: int) -> float:
        return scale * _seconds(lambda: function(vectors[:count]))

    def seconds(count: int) -> float:
        whole, rest = divmod(count, VECTORS_AT_ONCE)
        passes = [VECTORS_AT_ONCE] * whole + ([rest] if rest else [])
        more = (taken(together) - taken(1)) / (together - 1) if any(size > 1 for size in passes) else 0.0
        return sum(taken(1) + more * (size - 1) for size in passes)

    return seconds


def _seconds(function: Callable[[], Any]) -> float:
    """The faster of two runs, as the first may wait for memory and caches; one run if it takes long."""
    taken = []
    while len(taken) < 2 and sum(taken) < LONG:
        start = CLOCK()
        function()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        taken.append(CLOCK() - start)
    return min(taken)


def _factorising(order: int) -> float:
    """Seconds for the factors and the eigenvalues of a dense matrix, from a smaller one."""
    if not order:
        return 0.0
    size = min(order, DENSE)
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T
    taken = _seconds(lambda: (torch.linalg.lu_factor(matrix), torch.linalg.eigvalsh(matrix)))
    return taken * (order / size) ** 3


def _passes(count: int) -> int:
    return -(-count // VECTORS_AT_ONCE)


def _peak(curvature: AbstractCurvature, part: Risk, count: int, most: int) -> int:
    """Bytes of the tensors that live together in one pass, from a pass of at most so many vectors."""

    def bytes_of(vectors: int) -> int:
        with PeakMemory() as tally:
            curvature.product(part, torch.zeros(vectors, part.p).to(part.layout.flatten(part.theta)))
        return tally.peak

    if count <= most:
        return bytes_of(count)
    one, several = bytes_of(1), bytes_of(most)
    return one + (several - one) * (count - 1) // (most - 1)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it, and the most that lived at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
