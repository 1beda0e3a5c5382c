"""One damping for every solver, and solves that say how far they came in the unit of the question."""

import math

import grid
import pytest
import torch
from grid import badly_scaled, normal, seeded
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence._solvers.energy import Energy
from crossfluence.words.skipgram.blocks import WordBlocks

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # of training, not solving

SOLVERS = [
    cf.Auto, cf.Exact, cf.CG, cf.GMRES, cf.LiSSA, cf.EKFAC, cf.Jacobi, lambda d: cf.LowRank(3, d),
    lambda d: cf.Nystrom(3, d), WordBlocks,
]  # fmt: skip


@pytest.mark.parametrize("damping", [-1e-3, math.nan, math.inf, "0.1", None, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_damping_that_is_none_is_refused_where_it_is_given(solver, damping):
    if solver is cf.Auto and damping is None:
        return  # its own default: wherever training ended
    with pytest.raises(errors.DampingError, match=r"Got damping=.*needed zero or more"):
        solver(damping)


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf, "1"])
def test_a_relative_damping_that_is_none_is_refused_where_it_is_given(factor):
    with pytest.raises(errors.DampingError, match=r"Got Relative\(.*needed zero or more"):
        cf.Relative(factor)


@pytest.mark.parametrize("p", [201, 700])
def test_a_relative_damping_is_one_number_for_every_solver_of_a_larger_model(p):
    x = normal(30, p - 1, seed=0) * torch.logspace(0, -3, p - 1, dtype=torch.float64)
    model = seeded(nn.Linear(p - 1, 1))
    found = []
    for solver in (cf.Exact, cf.CG, cf.GMRES, lambda d: cf.LowRank(5, d), lambda d: cf.Nystrom(5, d), cf.Jacobi):
        risk = cf.Risk(model, lambda m, b: m(b[0])[:, 0].square(), cf.batches(x, x[:, 0]))
        found.append(solver(cf.Relative(0.5)).invert(risk).damping)
    assert found == pytest.approx([found[0]] * len(found), rel=1e-12)
    if p <= 512:
        trace = 2 * (x.square().sum(1).mean() + 1)
        assert found[0] == pytest.approx(0.5 * float(trace) / p, rel=1e-9)


@pytest.mark.parametrize("solver", [cf.Auto(0.0), cf.Exact()], ids=str)
def test_no_curvature_at_all_is_one_sentence(solver):
    at = nn.ParameterList([torch.ones(3, dtype=torch.float64)])
    risk = cf.Risk(at, lambda m, b: (b @ m[0]).abs(), cf.batches(normal(20, 3, seed=1)))
    with pytest.raises(errors.SingularCurvatureError, match=r"depends on directions that training does not determine"):
        cf.influence(risk, lambda m: m[0].sum(), solver)


def test_a_direction_without_curvature_refuses_whoever_depends_on_it_and_nobody_else():
    x = normal(40, 4, seed=2) * torch.tensor([1e4, 1.0, 0.0, 1e-4])
    for dtype in (torch.float64, torch.float32):
        model = seeded(nn.Linear(4, 1)).to(dtype)
        columns = x.to(dtype)
        risk = cf.Risk(model, lambda m, b: m(b)[:, 0].square(), cf.batches(columns))
        inverse = cf.Exact().invert(risk)
        for held in (0, 1, 3):
            assert cf.influence(risk, lambda m, k=held: m.weight[0, k], inverse).values.isfinite().all()
        with pytest.raises(errors.SingularCurvatureError, match="does not determine"):
            cf.influence(risk, lambda m: m.weight[0, 2] + m.weight[0, 0], inverse)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_conjugate_gradients_know_their_error_from_their_own_coefficients(steps):
    B = torch.diag(torch.logspace(0, 4, 30, dtype=torch.float64))
    wanted = normal(2, 30, seed=3)
    x, r, p = torch.zeros_like(wanted), wanted.clone(), wanted.clone()
    rho = r.square().sum(1)
    energy, share = Energy.start(rho), torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        length = rho / (p * (p @ B)).sum(1)
        x, r = x + length[:, None] * p, r - length[:, None] * (p @ B)
        energy = energy.after(rho, length, share)
        share = r.square().sum(1) / rho
        rho, p = r.square().sum(1), r + share[:, None] * p
        energy = energy.turned(rho, share)
    exact = wanted / B.diagonal()
    true = ((x - exact).square() @ B.diagonal() / (exact.square() @ B.diagonal())).sqrt()
    assert ((energy.error(rho) / true).log().abs() < math.log(3.0)).all()


@pytest.mark.parametrize("solver", [cf.CG, cf.GMRES, cf.LiSSA])
def test_errors_are_in_the_unit_of_the_question_and_bound_what_is_wrong(solver):
    risk = badly_scaled(40, spread=1.0, turned=True)
    ask = lambda m: {"one": m.weight.sum(), "thousand": 1000 * m.weight.sum()}  # noqa: E731
    with pytest.warns(errors.NotConvergedWarning):
        rough = cf.influence(risk, ask, solver(max_steps=12))
    exact = cf.influence(risk, ask, cf.Exact())
    one, thousand = rough.report.errors
    assert thousand == pytest.approx(1000 * one)
    off = (rough.values - exact.values).abs().amax(0)
    assert float(off[0]) < 3 * one
    assert exact.report.errors == (0.0, 0.0)


def test_a_solve_that_went_nowhere_does_not_advise_to_accept_it():
    risk = badly_scaled(40, spread=2.0, turned=True)
    with pytest.warns(errors.NotConvergedWarning, match=r"These scores cannot be used.*damping") as caught:
        cf.influence(risk, lambda m: m.weight.sum(), cf.CG(max_steps=2))
    assert "accept it" not in str(caught[0].message)


@pytest.mark.parametrize("curvature", [cf.Fisher(), cf.Fisher(samples=2, seed=3), cf.EmpiricalFisher()], ids=str)
def test_a_fisher_product_of_some_batches_reads_only_these_and_their_sum_is_the_whole(curvature):
    problem, seen = grid.SOFTMAX_ON_OUTPUTS, []
    loss = cf.OnOutputs(lambda m, b: (seen.append(len(b[0])), problem.loss.outputs(m, b))[1], problem.loss.criterion)
    risk = cf.Risk(problem.model, loss, cf.batches(*problem.tensors, size=10))
    v = normal(2, risk.p, seed=0)
    whole = curvature.product(risk, v)
    seen.clear()
    parts = [curvature.product(risk.only(risk.labels_of(k)), v) for k in range(4)]
    assert len(seen) <= 4 * 3  # forward passes over the one batch, not over all
    assert torch.allclose(sum(parts), whole, rtol=1e-9, atol=1e-12)


def test_a_fisher_product_names_what_is_not_finite():
    x = normal(30, 4, seed=5)
    loss = cf.OnOutputs(lambda m, b: m(b).square().sum(1, keepdim=True).sqrt(), lambda z, b: z[:, 0].square() / 2)
    model = seeded(nn.Linear(4, 3, bias=False))
    x[17] = 0
    risk = cf.Risk(model, loss, cf.batches(x, size=10))
    with pytest.raises(errors.NonFiniteError, match="in batch 1"):
        cf.Fisher().product(risk, normal(1, risk.p, seed=0))


def test_single_precision_is_computed_in_double_where_the_loss_allows_it():
    x, y = normal(60, 5, seed=6).float(), normal(60, seed=7).float()
    model = seeded(nn.Linear(5, 1)).float()
    free = cf.Risk(model, lambda m, b: (m(b[0])[:, 0] - b[1]).square(), cf.batches(x, y), l2=0.1)
    refers = cf.Risk(model, lambda m, b: (b[0] @ x[:5] @ m.weight[0] + m.bias).square(), cf.batches(x, y), l2=0.1)

    def narrow(m, b):
        if b[0].dtype != torch.float32:
            raise TypeError("single precision only")
        return (m(b[0])[:, 0] - b[1]).square()

    bound = cf.Risk(model, narrow, cf.batches(x, y), l2=0.1)
    for risk in (free, refers):
        assert risk.fine.weights.dtype == torch.float64
        assert risk.fine.precision < 1e-15
    assert bound.fine is bound
    for risk in (free, refers, bound):
        found = cf.influence(risk, lambda m: m.bias.sum(), cf.Exact())
        assert found.values.dtype == torch.float32
        assert found.values.isfinite().all()
    assert all(p.dtype == torch.float32 for p in model.parameters())
