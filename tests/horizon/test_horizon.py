"""Horizon: phi of the dense matrix, by every engine; and replay, as the learning rate falls."""

from dataclasses import dataclass, replace

import grid
import pytest
import torch
from grid import normal
from quadratics import Shared, tilts
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._horizon.block_lanczos import block_lanczos, function_within
from crossfluence._horizon.engines import DenseEngine, RootsEngine
from crossfluence._horizon.pilot import pilots
from crossfluence._horizon.root_rows import root_rows
from crossfluence._solvers.phi import phi
from crossfluence._training.optimizer_rule import ParameterRecord, Rule, digest_of
from crossfluence._training.optimizers import AbstractOptimizer
from crossfluence._training.record import TrainingRecord

PROBLEM = grid.SOFTMAX_ON_OUTPUTS
ADAM = Rule("AdamW", eps=1e-8)
UNRELIABLE = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")


def record_of(risk, *, rate=3.0, decay=0.0, sgd=False):
    """Any numbers, of the right shapes."""
    parts = []
    for seed, part in enumerate(risk.theta.values()):
        square = normal(*part.shape, seed=seed).square() + 0.1
        mean = 0.3 * normal(*part.shape, seed=50 + seed)
        more = decay * (1 + seed)
        parts.append(ParameterRecord(digest_of(part), rate) if sgd else
                     ParameterRecord(digest_of(part), rate, square, mean, more))  # fmt: skip
    return TrainingRecord(Rule("SGD", momentum=0.5) if sgd else ADAM, tuple(parts), 10, "made up")


def scaling_of(risk):
    """The formula again, parameter by parameter."""
    record, found = risk.record, []
    for part in record.parts:
        if part.square is None:
            found.append(torch.full((1,), part.rate / (1 - record.rule.momentum)).double())
            continue
        inverse = 1 / (part.square.sqrt() + record.rule.eps)
        found.append((part.rate * inverse * (1 - part.mean**2 * inverse**2).clamp_min(0)).flatten())
    shapes = risk.layout.shapes
    return torch.cat([part.expand(shape.numel()) for part, shape in zip(found, shapes, strict=True)])


def exponents(risk):
    """A, and X written out from a dense Gauss-Newton matrix, l2 and weight decay."""
    scaling = scaling_of(risk)
    curvature = cf.GaussNewton().product(risk, torch.eye(risk.p).double())
    decay = risk.layout.flatten(risk.record.decay(risk.theta))
    return scaling, scaling.sqrt()[:, None] * curvature * scaling.sqrt() + torch.diag(decay)


def reference(risk, gradients):
    """Scores with everything written out, by a matrix exponential and no eigenvectors: the mean over time."""
    scaling, x = exponents(risk)
    values, vectors = torch.linalg.eigh(x)
    middle = vectors @ torch.diag(-torch.expm1(-values) / values) @ vectors.T
    solved = gradients * scaling.sqrt() @ middle * scaling.sqrt()
    return -torch.cat(list(risk.sample_gradients())) @ solved.T


def gradient(risk, ask):
    live = {name: part.clone().requires_grad_() for name, part in risk.theta.items()}
    values = torch.func.functional_call(Asked(risk.model, ask), {f"model.{k}": v for k, v in live.items()}, ())
    rows = [torch.autograd.grad(value, list(live.values()), retain_graph=True) for value in values]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


class Asked(nn.Module):
    def __init__(self, model, ask):
        super().__init__()
        self.model, self.ask = model, (ask,)

    def forward(self):
        return torch.stack(list(self.ask[0](self.model).values()))


def questions(model):
    z = model(normal(2, 3, seed=6))
    return {"one": z[0, 0], "other": z[1, 2] - z[1, 0]}


def risk(record=None, size=11, **options):
    made = PROBLEM.risk(size=size)
    return PROBLEM.risk(size=size, record=record_of(made, **options))


ENGINES = {
    "written out": cf.Horizon(),
    "products": cf.Horizon(pilot=1_000, steps=200),
}
RECORDS = {"adam": {}, "short": {"rate": 1e-3}, "decay": {"decay": 0.3}, "sgd": {"sgd": True}}


def with_small_rtol(monkeypatch):
    monkeypatch.setattr("crossfluence._horizon.horizon.RTOL", 0.0)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_phi_of_the_dense_matrix(engine, record, monkeypatch):
    with_small_rtol(monkeypatch)
    made = risk(**RECORDS[record])
    found = cf.influence(made, questions, ENGINES[engine]).values
    wanted = reference(made, gradient(made, questions))
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("record", RECORDS)
def test_roots_that_are_exact_give_phi_of_the_dense_matrix(record):
    made = risk(**RECORDS[record])
    scaling, x = exponents(made)
    outside = made.layout.flatten(made.record.decay(made.theta)) + scaling * made.decay
    rows = torch.cat(list(root_rows(made, scaling.sqrt(), None, 0)))
    assert torch.allclose(rows.T @ rows + torch.diag(outside), x, atol=1e-12 * float(x.abs().max()))
    values, vectors = torch.linalg.eigh(x)
    b = normal(3, made.p, seed=9)
    wanted = b @ (vectors * phi(values)) @ vectors.T
    found = RootsEngine.of(rows, outside, 0).apply(b).vectors
    assert torch.allclose(found, wanted, rtol=0, atol=1e-8 * float(wanted.abs().max()))
    again = DenseEngine.of([rows[:7], rows[7:]], outside, chance=True)
    assert torch.allclose(again.apply(b).vectors, wanted, rtol=0, atol=1e-8 * float(wanted.abs().max()))


def test_random_roots_tend_to_the_exact_ones():
    made = risk()
    scaling, x = exponents(made)
    inner = x - torch.diag(scaling * made.decay)
    gaps = []
    for draws in (4, 36, 324):
        rows = torch.cat(list(root_rows(made, scaling.sqrt(), draws, 1)))
        gaps.append(float((rows.T @ rows - inner).norm() / inner.norm()))
    assert gaps[0] < 0.7
    assert gaps[2] < gaps[1] / 2 < gaps[0] / 4  # as one over the square root


@pytest.mark.parametrize("m", [1, 3, 40])
def test_block_lanczos_is_exact_in_all_dimensions_and_leaves_out_what_depends(m):
    half = [normal(9, 9, seed=seed) for seed in (1, 2)]
    one, other = (each @ each.T for each in half)
    b = normal(m, 9, seed=3)
    b[-1] = b[0] if m > 1 else b[-1]
    found = block_lanczos(lambda v: (v @ one, v @ other), b, phi, rtol=0.0, steps=50)
    assert len(found.basis) <= 9
    assert torch.allclose(found.basis @ found.basis.T, torch.eye(len(found.basis)).double(), atol=1e-12)
    values, vectors = torch.linalg.eigh((one + other) / 2)
    wanted = b @ (vectors * phi(values)) @ vectors.T
    assert torch.allclose(function_within(found.whole, phi, found.inside) @ found.basis, wanted, atol=1e-10)
    assert torch.allclose(found.halves[0], found.basis @ one @ found.basis.T, atol=1e-9)


def test_phi_has_no_gap_at_zero():
    x = torch.tensor([0.0, 1e-12, 1e-8, 1e-7, 1e-3, 1.0, 50.0, 1e6]).double()
    series = 1 - x / 2 + x**2 / 6 - x**3 / 24
    assert torch.allclose(phi(x)[:5], series[:5], rtol=1e-12)
    assert phi(x)[-1] == pytest.approx(1e-6)
    assert phi(x)[5] == pytest.approx(1 - torch.e**-1)


# Beside replay.


@dataclass(frozen=True)
class Preconditioned(AbstractOptimizer):
    """Gradient descent with a rate of its own for each parameter."""

    lr: float

    def start(self, theta):
        return {}

    def step(self, theta, gradient, state, count, scale):
        return {
            k: theta[k] - self.lr * scale * self.preconditioner(theta, state, count)[k] * gradient[k] for k in theta
        }, state

    def preconditioner(self, theta, state, count):
        return {name: torch.tensor([0.3, 1.0, 2.0, 0.7]).to(part) for name, part in theta.items()}


@pytest.mark.parametrize("engine", ["written out", "roots", "products"])
def test_a_fixed_preconditioner_tends_to_replay_as_the_rate_falls_by_every_engine(engine, monkeypatch):
    with_small_rtol(monkeypatch)
    if engine == "roots":
        monkeypatch.setattr("crossfluence._horizon.horizon.DENSE", 0)

        def drawn(self, risk, pace, count, seed):  # nothing left to chance
            return torch.cat(list(root_rows(risk, pace, None, seed)))

        monkeypatch.setattr(cf.Horizon, "_drawn", drawn)
    solver = {"roots": cf.Horizon(roots=100), "products": cf.Horizon(pilot=100)}.get(engine, cf.Horizon())
    data, gaps = (normal(9, 4, seed=2), (torch.arange(9) == 8).double()), []
    ask = lambda model: {"first": model.at[0], "last": model.at[3]}  # noqa: E731
    for steps in (25, 50, 100):
        recipe = cf.Recipe(Shared(), tilts, data, optimizer=Preconditioned(4 / steps), epochs=steps, l2=0.1)
        model = recipe.train()
        square = Preconditioned(1.0).preconditioner({"at": model.at.detach()}, {}, 1)["at"] ** -2
        part = ParameterRecord(digest_of(model.at), 4.0, square, 0 * square)
        record = TrainingRecord(Rule("Adam", eps=0.0), (part,), steps, "made up")
        found = cf.influence(recipe.risk(model, record=record), ask, solver)
        wanted = cf.replay(recipe, ask, groups=0).values[:8]
        gaps.append(float((found.values[:8] - wanted).norm() / wanted.norm()))
    assert gaps[1] == pytest.approx(gaps[0] / 2, rel=0.25)
    assert gaps[2] == pytest.approx(gaps[1] / 2, rel=0.25)
    assert gaps[2] < 0.1


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_it_tends_to_replay_as_the_rate_falls(l2, momentum):
    data, gaps = (normal(9, 4, seed=2), (torch.arange(9) == 8).double()), []
    ask = lambda model: {"first": model.at[0], "last": model.at[3]}  # noqa: E731
    for steps in (25, 50, 100):
        rate = 4 / steps * (1 - momentum)
        recipe = cf.Recipe(Shared(), tilts, data, optimizer=cf.SGD(rate, momentum), epochs=steps, l2=l2)
        found = cf.influence(recipe.risk(recipe.train(), record=recipe.record()), ask, cf.Horizon())
        wanted = cf.replay(recipe, ask, groups=0).values[:8]
        gaps.append(float((found.values[:8] - wanted).norm() / wanted.norm()))
    assert gaps[1] == pytest.approx(gaps[0] / 2, rel=0.2)
    assert gaps[2] == pytest.approx(gaps[1] / 2, rel=0.2)
    assert gaps[2] < 0.1


# What the report and the verdict say.


@UNRELIABLE
def test_without_a_record_sizes_are_a_guess_and_the_verdict_says_order():
    scores = cf.influence(PROBLEM.risk(), questions, cf.Horizon())
    assert scores.verdict.level == "order"
    assert any("guessed Adam" in note for note in scores.report.notes)
    known = cf.influence(risk(), questions, cf.Horizon())
    assert known.verdict.level == "sizes"
    assert known.report.drift == (0.0, 0.0)
    assert "of the training's own record" in str(known.verdict)
    assert any("made up" in note for note in known.report.notes)


def network(seed=0):
    return grid.seeded(nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 3)), seed)


X, Y = normal(30, 40, seed=11), grid.integers(3, 30, seed=12)


def large(record=True, **options):
    made = cf.Risk(network(), PROBLEM.loss, cf.batches(X, Y, size=7))
    return made.with_record(record_of(made, **options)) if record else made


@UNRELIABLE
def test_few_roots_and_small_pilots_are_said_by_their_halves():
    ask = lambda model: model(X[:2]).square().sum()  # noqa: E731
    much = cf.influence(large(rate=0.03), ask, cf.Horizon(roots=600))
    few = cf.influence(large(rate=100.0), ask, cf.Horizon(roots=20))
    small = cf.influence(large(rate=100.0), ask, cf.Horizon(pilot=4))
    assert much.verdict.level == "sizes"
    assert few.verdict.level != "sizes"
    assert "two halves" in str(few.verdict)
    assert "two halves" in str(small.verdict)
    assert any("4 of 30 samples" in note for note in small.report.notes)
    assert any("roots; 0 directions" in note for note in much.report.notes)


def test_roots_are_many_enough_for_sizes():
    net = grid.seeded(nn.Sequential(nn.Linear(30, 50), nn.Tanh(), nn.Linear(50, 20)), 0)
    x, y = normal(60, 30, seed=11), grid.integers(20, 60, seed=12)
    made = cf.Risk(net, PROBLEM.loss, cf.batches(x, y, size=20))
    made = made.with_record(record_of(made, rate=1.0))
    ask = lambda model: {str(k): model(x[k] + 0.5 * normal(30, seed=k))[k] for k in range(6)}  # noqa: E731
    found = cf.Horizon().invert(made)
    pace = scaling_of(made).sqrt()
    every = RootsEngine.of(torch.cat(list(root_rows(made, pace, None, 0))), made.decay * pace.square(), 0)
    wanted = cf.influence(made, ask, replace(found, engine=every)).values
    got = cf.influence(made, ask, found).values
    assert len(found.engine.roots) >= 16 * found.engine.trained
    assert (got - wanted).norm() < 0.1 * wanted.norm()  # .14 with four roots for each trained direction


@UNRELIABLE
def test_many_trained_directions_are_answered_with_products(monkeypatch):
    monkeypatch.setattr("crossfluence._horizon.horizon.MOST", 60)
    ask = lambda model: model(X[:2]).square().sum()  # noqa: E731
    few = cf.Horizon().invert(large(rate=0.1))
    assert "roots" in few.notes[-1]
    many = cf.Horizon().invert(large(rate=1e4))
    assert "too many for roots. Products with 30 of 30" in many.notes[-1]
    assert cf.influence(large(rate=1e4), ask, many).values.isfinite().all()


@UNRELIABLE
@pytest.mark.parametrize("solver", [cf.Horizon(), cf.Horizon(roots=50)], ids=str)
@pytest.mark.parametrize("made", [risk, large], ids=["small", "large"])
def test_an_inverse_comes_back_as_it_was(solver, made, tmp_path):
    problem, ask = made(), lambda model: next(iter(model.parameters())).square().sum()
    inverse = solver.invert(problem)
    inverse.save(tmp_path / "inverse")
    again = cf.load_inverse(tmp_path / "inverse")
    found, wanted = (cf.influence(problem, ask, each) for each in (again, inverse))
    assert torch.allclose(found.values, wanted.values, rtol=1e-12)
    assert found.report.notes == wanted.report.notes
    assert found.verdict.level == wanted.verdict.level


def test_products_go_back_to_the_data_and_say_so(tmp_path):
    with pytest.raises(errors.UnsupportedError, match="no factors that a file could hold"):
        cf.Horizon(pilot=10).invert(large()).save(tmp_path / "inverse")


@pytest.mark.parametrize("solver", [cf.Horizon(), cf.Horizon(pilot=1_000, steps=200)], ids=str)
def test_samples_of_weight_zero_are_left_out(solver, monkeypatch):
    with_small_rtol(monkeypatch)
    made = risk().without([0, 5, 39])
    wanted = reference(made, gradient(made, questions))
    found = cf.influence(made, questions, solver).values
    assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_pilots_are_parts_of_the_data(parts):
    whole = large(record=False)
    for data in (whole.data, list(whole.data)):
        made = cf.Risk(whole.model, whole.loss, data)
        found = pilots(made, 14, 0, parts)
        assert sum(part.n for part in found) in ((14,) if data is whole.data else (14, 16, 9, 21, 23))
        labels = [label for part in found for label in part.labels]
        assert len(set(labels)) == len(labels)
        for part in found:
            losses = torch.cat([part.kind.losses(part.model, batch) for _, batch, _ in part.passes()])
            wanted = made.kind.losses(made.model, (X, Y))[list(part.labels)]
            assert torch.allclose(losses, wanted)


def test_bad_numbers_and_losses_without_outputs_are_refused():
    with pytest.raises(ValueError, match="roots=0"):
        cf.Horizon(roots=0)
    with pytest.raises(ValueError, match="roots=5 and pilot=5"):
        cf.Horizon(roots=5, pilot=5)
    with pytest.raises(errors.UnsupportedError, match=r"Horizon needs to know where the outputs are.*WeightedLoss"):
        cf.Horizon().invert(grid.COX.risk())
    made = PROBLEM.risk()
    still = [ParameterRecord(digest_of(part), 1.0, 0 * part, 0 * part) for part in made.theta.values()]
    made = made.with_record(TrainingRecord(ADAM, tuple(still), 1, "made up"))
    with pytest.raises(errors.SolveError, match="moved no parameter"):
        cf.Horizon().invert(made)


def test_a_plain_loss_is_enough():
    plain = cf.Risk(network(), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), cf.batches(X, Y, size=7))
    plain, ask = plain.with_record(record_of(plain)), lambda model: model(X[:2]).square().sum()
    found, wanted = (cf.influence(each, ask, cf.Horizon(roots=90)).values for each in (plain, large()))
    assert torch.allclose(found, wanted, rtol=1e-9)
