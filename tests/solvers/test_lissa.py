"""The series that finds its own scale: against dense solves, and where it must refuse."""

import grid
import pytest
import torch
from grid import normal
from reference import Dense
from torch.utils.data import DataLoader, TensorDataset

import crossfluence as cf
from crossfluence import errors
from crossfluence._solvers import lissa

ONE = grid.LOGISTIC


def solved(problem, solver, size=10_000, count=3):
    risk = problem.risk(size=size)
    questions = normal(count, risk.p, seed=0)
    return solver.invert(risk).solve(questions), cf.Exact(solver.damping).invert(risk).solve(questions)


@pytest.mark.parametrize("problem", [grid.LOGISTIC, grid.SOFTMAX_ON_OUTPUTS, grid.COX], ids=lambda p: p.name)
def test_all_samples_in_every_step_converge_to_the_exact_solution(problem):
    found, exact = solved(problem, cf.LiSSA(0.1, rtol=1e-10))
    assert torch.allclose(found.vectors, exact.vectors, rtol=1e-7, atol=1e-8)
    assert max(found.residuals) < 1e-9


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("problem", [grid.LOGISTIC, grid.SOFTMAX_ON_OUTPUTS], ids=lambda p: p.name)
def test_drawn_batches_converge_as_far_as_is_asked(problem, batches):
    found, exact = solved(problem, cf.LiSSA(0.1, rtol=1e-5, max_steps=3000, batches=batches), size=8, count=1)
    assert torch.allclose(found.vectors, exact.vectors, atol=1e-3)
    assert max(found.residuals) < 2e-5


def test_batches_of_a_coupled_loss_are_drawn_whole():
    found, exact = solved(grid.CONTRASTIVE, cf.LiSSA(1.0, rtol=1e-3, batches=2), size=10, count=1)
    assert torch.allclose(found.vectors, exact.vectors, atol=2e-3)


def test_a_step_on_drawn_batches_costs_only_these(monkeypatch):
    seen = []
    risk = ONE.risk(size=10)
    loss = cf.Risk(ONE.model, lambda m, b: (seen.append(len(b[0])), ONE.loss(m, b))[1], risk.data, l2=ONE.l2)
    seen.clear()
    cf.Hessian().product(loss.only(loss.labels_of(2)), normal(1, loss.p, seed=0))
    assert seen == [10]


def test_drawn_products_are_right_on_average():
    problem = grid.SOFTMAX_ON_OUTPUTS
    risk, v = problem.risk(size=10), normal(2, 31, seed=0)
    inverse = cf.LiSSA(0.1, batches=1).invert(risk)
    mean = torch.stack([inverse._product(v, [number]) for number in range(4)]).mean(0)
    assert torch.allclose(mean, inverse._product(v), rtol=1e-9)


def test_the_seed_decides_the_batches():
    first, again, other = (
        solved(ONE, cf.LiSSA(0.1, rtol=1e-2, batches=1, seed=seed), size=5)[0].vectors for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_finds_its_scale():
    damped = Dense(ONE.model, ONE.loss, ONE.tensors, ONE.l2).J + 0.2 * torch.eye(4)
    unit = damped.diagonal().rsqrt()
    largest = float(torch.linalg.eigvalsh(damped * unit * unit[:, None])[-1])
    inverse = cf.LiSSA(0.2).invert(ONE.risk())
    assert largest < inverse.scale < 1.2 * largest
    assert f"to {largest:.3g} where the diagonal" in inverse.notes[0]


def test_a_scale_that_is_too_small_is_doubled_until_the_series_converges(monkeypatch):
    monkeypatch.setattr(lissa, "MARGIN", 0.05)
    for batches in (None, 1):
        found, exact = solved(ONE, cf.LiSSA(0.1, rtol=1e-4, batches=batches), size=10, count=1)
        assert torch.allclose(found.vectors, exact.vectors, atol=1e-2)


def test_the_unit_of_the_loss_does_not_matter():
    for unit in (1e-9, 1e9):
        risk = cf.Risk(ONE.model, lambda m, b, u=unit: u * ONE.loss(m, b), cf.batches(*ONE.tensors), l2=unit * ONE.l2)
        scores = cf.influence(risk, ONE.objective, cf.LiSSA(rtol=1e-8)).values
        assert torch.allclose(scores, cf.influence(ONE.risk(), ONE.objective, cf.Exact()).values, rtol=1e-5)


def test_negative_curvature_is_refused_with_the_damping_that_suffices():
    problem = grid.LANGUAGE
    smallest = float(torch.linalg.eigvalsh(Dense(problem.model, problem.loss, problem.tensors, problem.l2).J)[0])
    with pytest.raises(errors.NegativeCurvatureError, match=r"series diverges.*Raise damping above.*GMRES") as caught:
        cf.influence(problem.risk(), problem.objective, cf.LiSSA(0.1))
    enough = float(str(caught.value).partition("damping above ")[2].partition(",")[0])
    assert enough <= -smallest * 1.01
    assert enough > 0.1


def test_negative_curvature_that_the_first_look_missed_is_refused_too(monkeypatch):
    monkeypatch.setattr(lissa, "extreme_eigenvalues", lambda *a, **k: (1.0, 5.0))
    hill = cf.Risk(ONE.model, lambda m, b: -ONE.loss(m, b), cf.batches(*ONE.tensors))
    with pytest.raises(errors.NegativeCurvatureError, match="series diverges"):
        cf.influence(hill, ONE.objective, cf.LiSSA(0.0))


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # stopped early
def test_a_singular_curvature_gives_numbers_and_says_how_far_it_came():
    x, y = ONE.tensors
    flat = cf.Risk(ONE.model, ONE.loss, cf.batches(x * torch.tensor([1.0, 1.0, 0.0]), y))
    with pytest.warns(errors.NotConvergedWarning, match="LiSSA stopped after 50 steps with a residual of"):
        scores = cf.influence(flat, lambda m: m.weight.sum(), cf.LiSSA(max_steps=50))
    assert scores.values.isfinite().all()
    assert scores.report.residuals[0] > 0.1
    assert scores.report.steps == (50,)


def test_a_question_of_zero_has_the_answer_zero():
    vectors = normal(3, 4, seed=2)
    vectors[1] = 0
    found = cf.LiSSA(0.1).invert(ONE.risk()).solve(vectors)
    assert torch.equal(found.vectors[1], torch.zeros_like(vectors[1]))
    assert found.steps[1] == 0


def test_a_field_is_refused():
    with pytest.raises(errors.UnsupportedError, match=r"LiSSA needs a symmetric curvature.*GMRES"):
        cf.influence(grid.DEC_MOVING.risk(), grid.DEC_MOVING.objective, cf.LiSSA(1.0))


@pytest.mark.parametrize("batches", [0, -1])
def test_batches_are_counted_from_one(batches):
    with pytest.raises(ValueError, match=rf"Got batches={batches}; needed at least 1"):
        cf.LiSSA(batches=batches)


def test_any_data_that_comes_in_batches_will_do():
    loader = DataLoader(TensorDataset(*ONE.tensors), batch_size=8)
    risk = cf.Risk(ONE.model, ONE.loss, loader, l2=ONE.l2)
    found = cf.influence(risk, ONE.objective, cf.LiSSA(rtol=1e-8, max_steps=5000, batches=2)).values
    assert torch.allclose(found, cf.influence(risk, ONE.objective, cf.Exact()).values, rtol=1e-5)
