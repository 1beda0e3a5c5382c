"""Jacobi and Nystrom: what they are by themselves, and how many steps they save."""

import grid
import pytest
import torch
from grid import badly_scaled, normal
from reference import Dense
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence._curvature.base import diagonal
from crossfluence._solvers.exact import dense as written_out

PROBLEMS = [pytest.param(problem, id=problem.name) for problem in grid.PROBLEMS if problem.converges]
GN = cf.GaussNewton()  # never negative, as Nystrom needs
POSITIVE = [(grid.LOGISTIC, cf.Hessian()), (grid.SOFTMAX_ON_OUTPUTS, GN), (grid.COX, cf.Hessian())]


def dense_of(problem):
    return Dense(problem.model, problem.loss, problem.tensors, problem.l2)


def steps(risk, **options):
    inverse = cf.CG(rtol=1e-4, max_steps=3000, **options).invert(risk)
    return inverse.solve(normal(1, risk.p, seed=3)).steps[0]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_diagonal_is_that_of_the_dense_matrix(problem):
    J = dense_of(problem).J
    found = diagonal(cf.FieldJacobian(), problem.risk())
    share = 1e-9 if len(J) <= 64 else 0.5
    assert float((found - J.diagonal()).norm() / J.diagonal().norm()) < share


def test_jacobi_divides_by_the_damped_diagonal():
    problem = grid.SOFTMAX_ON_OUTPUTS
    questions = normal(2, 31, seed=0)
    found = cf.Jacobi(0.1).invert(problem.risk()).solve(questions).vectors
    assert torch.allclose(found, questions / (dense_of(problem).J.diagonal() + 0.1), rtol=1e-9)


def test_jacobi_stays_positive_where_the_diagonal_is_not():
    inverse = cf.Jacobi(0.1).invert(grid.LANGUAGE.risk())
    assert float(inverse.diagonal.min()) >= grid.LANGUAGE.l2 + 0.1


@pytest.mark.parametrize(("problem", "curvature"), POSITIVE, ids=str)
def test_a_sketch_of_p_directions_is_exact(problem, curvature):
    risk = problem.risk()
    questions = normal(3, risk.p, seed=0)
    found = cf.Nystrom(1000, 0.1, curvature=curvature).invert(risk).solve(questions).vectors
    assert torch.allclose(found, cf.Exact(0.1, curvature).invert(risk).solve(questions).vectors, rtol=1e-6)


def test_a_sketch_is_the_formula_written_out():
    problem, rank, damping = grid.SOFTMAX_ON_OUTPUTS, 6, 0.05
    risk = problem.risk()
    inverse = cf.Nystrom(rank, damping, curvature=GN).invert(risk)
    A = written_out(GN, risk) - problem.l2 * torch.eye(31)
    drawn = torch.randn(31, rank, generator=torch.Generator().manual_seed(0)).double()
    sketch = A @ drawn @ torch.linalg.solve(drawn.T @ A @ drawn, (A @ drawn).T)
    values, vectors = torch.linalg.eigh(sketch)
    values, vectors = values[-rank:], vectors[:, -rank:]
    questions, least = normal(3, 31, seed=0), problem.l2 + damping
    inside = questions @ vectors
    wanted = inside / (values + least) @ vectors.T + (questions - inside @ vectors.T) / (float(values[0]) + least)
    assert torch.allclose(inverse.solve(questions).vectors, wanted, rtol=1e-4)  # the sketch's own conditioning


def test_parameters_that_differ_in_scale_cost_no_steps():
    for features in (40, 100):  # the diagonal itself, and the gradients' second moments
        even, uneven = badly_scaled(features, spread=0.0), badly_scaled(features, spread=4.0)
        assert steps(uneven) < 1.5 * steps(even)
        assert steps(uneven, preconditioner=cf.Jacobi()) < 1.5 * steps(even)


def test_nystrom_saves_steps_where_jacobi_cannot():
    risk = badly_scaled(turned=True)
    plain, scaled = steps(risk), steps(risk, preconditioner=cf.Jacobi())
    counts = [steps(risk, preconditioner=cf.Nystrom(rank)) for rank in (10, 20, 35)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] * 3 < min(plain, scaled)


@pytest.mark.parametrize(
    "preconditioner", [cf.Jacobi(0.01), cf.Nystrom(5, 0.01), cf.LowRank(5, 0.01)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("solver", [cf.CG, cf.GMRES], ids=["CG", "GMRES"])
def test_a_preconditioner_changes_the_steps_and_not_the_answer(solver, preconditioner):
    problem = grid.SOFTMAX_ON_OUTPUTS
    found = cf.influence(problem.risk(), problem.objective, solver(0.01, rtol=1e-10, preconditioner=preconditioner))
    exact = cf.influence(problem.risk(), problem.objective, cf.Exact(0.01))
    assert torch.allclose(found.values, exact.values, rtol=1e-7)


@pytest.mark.parametrize("preconditioner", [cf.Jacobi(0.1), cf.LowRank(10, 0.1)], ids=lambda p: type(p).__name__)
def test_fields_have_preconditioners_too(preconditioner):
    problem = grid.DEC_MOVING
    found = cf.influence(problem.risk(), problem.objective, cf.GMRES(0.1, rtol=1e-10, preconditioner=preconditioner))
    exact = cf.influence(problem.risk(), problem.objective, cf.Exact(0.1))
    assert torch.allclose(found.values, exact.values, rtol=1e-6, atol=1e-10)


def test_nystrom_refuses_what_it_cannot_sketch():
    with pytest.raises(errors.UnsupportedError, match=r"Nystrom needs a symmetric curvature.*LowRank"):
        cf.Nystrom(3).invert(grid.DEC_MOVING.risk())
    with pytest.raises(errors.NegativeCurvatureError, match=r"Nystrom met negative curvature.*Raise damping above"):
        cf.Nystrom(1000).invert(grid.LANGUAGE.risk())
    risk = grid.LANGUAGE.risk()
    assert cf.Nystrom(1000, 5.0).invert(risk).solve(normal(1, risk.p, seed=0)).vectors.isfinite().all()


def test_single_precision_is_enough_for_a_preconditioner():
    risk = badly_scaled(40, spread=1.5, turned=True)
    x, y = (tensor.float() for tensor in risk.data.source)
    single = cf.Risk(nn.Linear(40, 1, bias=False), risk.loss, cf.batches(x, y), l2=1e-3)
    inverse = cf.CG(rtol=1e-4, preconditioner=cf.Nystrom(20)).invert(single)
    plain = cf.CG(rtol=1e-4).invert(single)
    questions = normal(2, 40, seed=0).float()
    assert max(inverse.solve(questions).steps) < max(plain.solve(questions).steps)
