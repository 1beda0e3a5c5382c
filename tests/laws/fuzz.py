"""Random small problems: every answer is right, warned of, or refused in a sentence of the library's own.

Run: python tests/laws/fuzz.py                  (10,000 cases over two processes; some twenty minutes)
     python tests/laws/fuzz.py --cases 500 --seed 1
     python tests/laws/fuzz.py --simplest       (hypothesis draws, and reduces the first failure to its simplest form)

Models, losses, shapes, precisions, scales of features, batchings, orders, questions and solvers are drawn at random;
every failure is printed as a `Case` that can be run by itself. The reference is dense, in double precision, and scaled.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded_by
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import crossfluence as cf
from crossfluence.errors import NonFiniteError, UnreliableWarning

CLOSE = {torch.float64: 1e-3, torch.float32: 2e-2}  # share of the largest score
torch.set_num_threads(1)


class Bag(nn.Module):
    """Words without order, some of them padding."""

    def __init__(self, outputs: int, padding: int | None):
        super().__init__()
        self.words, self.head = nn.Embedding(6, 3, padding_idx=padding), nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1).tanh())


class Tied(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.a, self.head = nn.Linear(inputs, inputs, bias=False), nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.a(x).tanh()).tanh())


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear,
    "without bias": lambda d, k: nn.Linear(d, k, bias=False),
    "tanh": lambda d, k: chain(nn.Linear(d, 3), nn.Tanh(), nn.Linear(3, k)),
    "softplus": lambda d, k: chain(nn.Linear(d, 2), nn.Softplus(), nn.Linear(2, k)),
    "ReLU": lambda d, k: chain(nn.Linear(d, 4), nn.ReLU(), nn.Linear(4, k)),
    "LayerNorm": lambda d, k: chain(nn.Linear(d, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, k)),
    "BatchNorm": lambda d, k: chain(nn.Linear(d, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, k)),
    "convolution": lambda d, k: chain(
        nn.Unflatten(1, (1, d)), nn.Conv1d(1, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(2 * d, k)
    ),
    "tied": Tied,
    "bag": lambda d, k: Bag(k, None),
    "padded bag": lambda d, k: Bag(k, 0),
}  # fmt: skip


def per_output(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: function(z, y.to(z), reduction="none").flatten(1).sum(1)


LOSSES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "squared": ("real", per_output(F.mse_loss)),
    "huber": ("real", per_output(F.huber_loss)),
    "absolute": ("real", per_output(F.l1_loss)),
    "logistic": ("binary", per_output(F.binary_cross_entropy_with_logits)),
    "counts": ("count", per_output(F.poisson_nll_loss)),
    "softmax": ("class", lambda z, y: F.cross_entropy(z, y, reduction="none")),
}

SOLVERS: dict[str, Callable[[int, float], Any]] = {
    "Auto": lambda p, by: cf.Auto(by),
    "Exact": lambda p, by: cf.Exact(by),
    "CG": lambda p, by: cf.CG(by, rtol=1e-9, max_steps=2000),
    "GMRES": lambda p, by: cf.GMRES(by, rtol=1e-9),
    "LowRank": lambda p, by: cf.LowRank(p, by),
    "CG with Nystrom": lambda p, by: cf.CG(by, rtol=1e-9, preconditioner=cf.Nystrom(max(1, p // 2), by)),
    "CG with Jacobi": lambda p, by: cf.CG(by, rtol=1e-9, preconditioner=cf.Jacobi(by), max_steps=2000),
    "GMRES with LowRank": lambda p, by: cf.GMRES(by, rtol=1e-9, preconditioner=cf.LowRank(p, max(by, 1e-3))),
    "EKFAC": lambda p, by: cf.EKFAC(by),
    "Identity": lambda p, by: cf.Identity(),
}
UNMEASURED = {"EKFAC", "Identity"}  # other numbers by definition: they must be finite


@dataclass(frozen=True)
class Case:
    model: str
    loss: str
    solver: str
    question: str
    n: int
    inputs: int
    outputs: int
    size: int
    form: str
    dtype: torch.dtype
    scales: tuple[float, ...]
    l2: float
    damping: float
    trained: int
    duplicates: bool
    nan: bool
    seed: int


COUNTS = {"n": (2, 12), "inputs": (1, 3), "outputs": (1, 3), "size": (1, 12), "seed": (0, 10**6)}
CHOICES: dict[str, list[Any]] = {
    "model": sorted(MODELS),
    "loss": sorted(LOSSES),
    "solver": sorted(SOLVERS),
    "question": ["output", "named", "loss of each", "mean loss", "norm"],
    "form": ["batches", "list", "mapping"],
    "dtype": [torch.float32, torch.float64],
    "l2": [0.0, 1e-3, 0.1],
    "damping": [0.0, 0.0, 0.1, 1.0],
    "trained": [0, 30],
    "duplicates": [False, True],
    "nan": [False] * 19 + [True],
}
SCALES = [1.0, 1.0, 1.0, 1e-4, 1e-2, 1e2, 1e4]

CASES = st.builds(
    Case,
    scales=st.tuples(*[st.sampled_from(SCALES)] * 3),
    **{name: st.integers(*ends) for name, ends in COUNTS.items()},
    **{name: st.sampled_from(values) for name, values in CHOICES.items()},
)


def drawn(seed: int, number: int) -> Case:
    """One case of a run: the same whatever is drawn beside it."""
    generator = random.Random(f"{seed}, {number}")
    fields: dict[str, Any] = {name: generator.randint(*ends) for name, ends in COUNTS.items()}
    fields |= {name: generator.choice(values) for name, values in CHOICES.items()}
    return Case(**fields, scales=tuple(generator.choice(SCALES) for _ in range(3)))


def data_of(case: Case) -> tuple[Tensor, Tensor]:
    """Inputs and targets in double precision."""
    generator = torch.Generator().manual_seed(case.seed)
    n = case.n
    x: Tensor = torch.randn(n, case.inputs, generator=generator, dtype=torch.float64) * torch.tensor(
        case.scales[: case.inputs], dtype=torch.float64
    )
    x = x.float().double()  # the same numbers in both precisions
    if "bag" in case.model:
        x = torch.randint(6, (n, 3), generator=generator)
    kind = LOSSES[case.loss][0]
    y = torch.randn(n, case.outputs, generator=generator, dtype=torch.float64).float().double()
    y = {"real": y, "binary": (y > 0).double(), "count": y.abs().round(), "class": (y[:, 0] > 0).long() % case.outputs}[
        kind
    ]
    if case.duplicates:
        x[-1], y[-1] = x[0], y[0]
    return x, y


def model_of(case: Case, x: Tensor, y: Tensor) -> nn.Module:
    """Trained a little, in single precision's numbers."""
    model = MODELS[case.model](case.inputs, case.outputs).double()
    generator = torch.Generator().manual_seed(case.seed + 1)
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(0.5 * torch.randn(part.shape, generator=generator, dtype=torch.float64))
    first = next((module for module in model.modules() if isinstance(module, nn.Linear)), None)
    if first is not None and first.in_features == case.inputs and "bag" not in case.model:  # as trained on raw columns
        first.weight.data /= torch.tensor(case.scales[: case.inputs], dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx] = 0
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(case.trained):
        optimizer.zero_grad()
        LOSSES[case.loss][1](model(x), y).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.float().double()


def asked(case: Case, x: Tensor, y: Tensor) -> Any:
    """The question, and the same written out for the reference."""
    losses = LOSSES[case.loss][1]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return losses(model(batch[0]), batch[1])

    if case.question == "output":
        return (lambda model: model(x[:1])[0, 0]), None
    if case.question == "named":
        return (lambda model: {"first": model(x[:1])[0, 0], "second": model(x[1:2]).square().sum()}), None
    if case.question == "norm":
        return (lambda model: sum(part.square().sum() for part in model.parameters())), None
    maker = cf.each_of if case.question == "loss of each" else cf.mean_over
    written = (
        (lambda model: loss(model, (x[:3], y[:3])))
        if maker is cf.each_of
        else lambda model: loss(model, (x[:3], y[:3])).mean()
    )
    return maker(cf.batches(x[:3], y[:3], size=2), loss), written


def reference(
    case: Case,
    model: nn.Module,
    question: Callable[[nn.Module], Any],
    x: Tensor,
    y: Tensor,
    *,
    tilt: float = 0.0,
) -> tuple[Tensor, float]:
    """Dense scores, slopes by the outputs off by `tilt`, and the condition number of the scaled curvature."""
    names, shapes = zip(*[(name, part.shape) for name, part in model.named_parameters()], strict=True)
    flat = torch.cat([part.detach().reshape(-1) for part in model.parameters()])
    free = torch.ones(len(flat), dtype=torch.bool)
    if case.model == "padded bag":
        free[:3] = False  # the padding row stands first

    def call(theta: Tensor, function: Callable[[nn.Module], Any]) -> Any:
        parts = theta.split([shape.numel() for shape in shapes])
        named = {f"held.{name}": part.view(shape) for name, shape, part in zip(names, shapes, parts, strict=True)}
        return functional_call(_Held(model, function), named, ())

    def losses(theta: Tensor) -> Tensor:
        return call(theta, lambda m: _tilted(LOSSES[case.loss][1], m(x), y, tilt))

    def answer(theta: Tensor) -> Tensor:
        found = call(theta, question)
        return torch.stack(list(found.values())) if isinstance(found, dict) else found.reshape(-1)

    H = _hessian(lambda theta: losses(theta).mean(), flat) + (case.l2 + case.damping) * torch.eye(
        len(flat), dtype=flat.dtype
    )
    K, a = _jacobian(losses, flat), _jacobian(answer, flat)
    H, K, a = H[free][:, free], K[:, free], a[:, free]
    if not (H.isfinite().all() and K.isfinite().all() and a.isfinite().all()):
        return torch.full((len(x), len(a)), float("nan"), dtype=flat.dtype), 1.0
    scale = _equilibrated(H)
    values, vectors = torch.linalg.eigh(scale[:, None] * H * scale)
    known = values.abs() > 1e-11 * values.abs().max()
    inside = vectors[:, known]
    outside = (a * scale) @ vectors[:, ~known]
    share = float((outside.norm(dim=1) / (a * scale).norm(dim=1).clamp_min(1e-300)).max())
    scores = -(K * scale) @ inside @ ((inside.T @ (a * scale).T) / values[known][:, None]) / len(x)
    condition = float(values.abs().max() / values[known].abs().min()) if known.any() else 1.0
    return scores, float("inf") if share > 1e-6 else condition


def _equilibrated(matrix: Tensor) -> Tensor:
    """Ruiz' scaling: every row and column of the scaled matrix has a largest entry of one."""
    scale = torch.ones(len(matrix), dtype=matrix.dtype)
    for _ in range(30):
        largest = (scale[:, None] * matrix * scale).abs().amax(1)
        scale = scale * torch.where(largest > 0, largest.rsqrt(), 1.0)
    return scale


def _jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Row by row, by plain autograd."""
    at = at.clone().requires_grad_()
    rows = [torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)[0] for value in function(at)]
    return torch.stack([torch.zeros_like(at) if row is None else row for row in rows]).detach()


def _tilted(losses: Callable[[Tensor, Tensor], Tensor], z: Tensor, y: Tensor, tilt: float) -> Tensor:
    signs = torch.randint(2, z.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return losses(z, y) + tilt * (signs * z).sum(1)


def _hessian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(at), at, create_graph=True)
    if not slope.requires_grad:
        return torch.zeros(len(at), len(at), dtype=at.dtype)
    return torch.stack([torch.autograd.grad(part, at, retain_graph=True)[0] for part in slope]).detach()


class _Held(nn.Module):
    def __init__(self, model: nn.Module, function: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.held, self.functions = model, (function,)

    def forward(self) -> Any:
        return self.functions[0](self.held)


def formed(case: Case, x: Tensor, y: Tensor) -> Any:
    if case.form == "batches":
        return cf.batches(x, y, size=case.size)
    parts = list(zip(x.split(case.size), y.split(case.size), strict=True))
    return parts if case.form == "list" else [{0: one, 1: two} for one, two in parts]


def outcome(case: Case) -> str:
    """How a case came out; an assertion fails if it is silently wrong or refused in words that are not ours."""
    x, y = data_of(case)
    model = model_of(case, x, y)
    written = asked(case, x, y)[1] or asked(case, x, y)[0]
    right, condition = reference(case, model, written, x, y)
    own = copy.deepcopy(model).to(case.dtype)
    xs, ys = (part.to(case.dtype) if part.is_floating_point() else part.clone() for part in (x, y))
    if case.nan and xs.is_floating_point():
        xs[case.n // 2, 0] = float("nan")
    question, _ = asked(case, *((xs[:3].nan_to_num(), ys[:3]) if case.nan else (xs, ys)))
    p = sum(part.numel() for part in own.parameters())
    solver = SOLVERS[case.solver](p, case.damping)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            losses = LOSSES[case.loss][1]
            risk = cf.Risk(own, lambda m, b: losses(m(b[0]), b[1]), formed(case, xs, ys), l2=case.l2)
            scores = cf.influence(risk, question, solver)
        except cf.CrossfluenceError as error:
            assert len(str(error)) > 30, f"wordless: {error!r}"
            sound = bool(right.isfinite().all() and losses(own(xs.nan_to_num()), ys).isfinite().all())
            if sound and case.nan and xs.is_floating_point() and isinstance(error, NonFiniteError):
                assert str(case.n // 2) in str(error), f"the NaN is not named: {error}"
                return "NaN named"
            return f"refused: {type(error).__name__}"
    if not right.isfinite().all():
        assert case.solver in UNMEASURED, "something infinite went through"
        return "not compared"
    assert not (case.nan and xs.is_floating_point()), "a NaN went through"
    found = scores.values.double()
    assert found.isfinite().all(), "scores that are not finite"
    if case.solver in UNMEASURED:
        return "not compared"
    gap = float((found - right).abs().max() / right.abs().max().clamp_min(1e-300))
    ours = [
        str(one.message)
        for one in caught
        if "crossfluence" in type(one.message).__module__ and not isinstance(one.message, UnreliableWarning)
    ]  # that nothing has ended at random weights excuses no arithmetic
    if gap <= CLOSE[case.dtype]:
        return "right"
    if ours:
        return "warned"
    if condition > 1e10 or gap <= 10 * condition * torch.finfo(case.dtype).eps:
        return "undetermined"  # rounding the question's gradient moves it as far
    if float(right.abs().max()) < 1e-10:
        return "no effect"
    if case.loss in ("softmax", "logistic"):  # their slopes are p - 1, of which rounding may be all that is left
        other, _ = reference(case, model, written, x, y, tilt=torch.finfo(case.dtype).eps)
        if gap <= 2 * float((other - right).abs().max() / right.abs().max()):
            return "undetermined"
    raise AssertionError(
        f"off by {gap:.2g} of the largest score, condition {condition:.1e}, notes {scores.report.notes}"
    )


def result(case: Case) -> tuple[str, str]:
    """How a case came out, and the failure in words; an error of any other kind is a failure too."""
    try:
        return outcome(case), ""
    except Exception as error:
        return "FAILED", f"{type(error).__name__}: {error}\n    {case}"


def numbered(seed: int, number: int) -> tuple[str, str]:
    return result(drawn(seed, number))


def at_random(cases: int, seed: int, processes: int) -> Counter[str]:
    """Draws and runs every case, printing failures as they come."""
    counts = Counter[str]()
    with ProcessPoolExecutor(processes) as pool:
        for number, (name, failure) in enumerate(pool.map(partial(numbered, seed), range(cases), chunksize=20)):
            counts[name] += 1
            if failure:
                print(f"case {number}: {failure}", flush=True)
    return counts


def simplest(cases: int, seed: int) -> Counter[str]:
    """Draws by hypothesis, which raises the simplest failure that it finds."""
    counts = Counter[str]()

    @seeded_by(seed)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    @given(CASES)
    def every(case: Case) -> None:
        counts[outcome(case)] += 1

    every()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--simplest", action="store_true", help="reduce the first failure to its simplest form")
    chosen = parser.parse_args()
    run = simplest if chosen.simplest else partial(at_random, processes=chosen.processes)
    counts = run(chosen.cases, chosen.seed)
    for name, count in counts.most_common():
        print(f"{count:7d}  {name}")
    sys.exit(bool(counts["FAILED"]))


if __name__ == "__main__":
    main()
