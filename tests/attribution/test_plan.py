"""Forecasts, beside what the run then does."""

import itertools

import grid
import pytest
import torch
from grid import normal
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence._attribution import plan as _plan

X = normal(700, 12, seed=0)
MODEL = grid.seeded(nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1)))
POINTS = normal(40, 12, seed=1)
EACH = cf.each_of(cf.batches(POINTS), lambda m, x: m(x)[:, 0])


def risk(model=MODEL):
    return cf.Risk(model, lambda m, b: (m(b)[:, 0] - b[:, 0]).square(), cf.batches(X, size=100), l2=4.0)


@pytest.fixture
def products(monkeypatch):
    """Numbers of vectors in each product of the run that follows."""
    counted, product = [], cf.Risk.jacobian_product

    def counting(self, vectors):
        counted.append(len(vectors))
        return product(self, vectors)

    monkeypatch.setattr(cf.Risk, "jacobian_product", counting)
    return counted


DIRECT = [cf.Exact(), cf.LowRank(10), cf.Nystrom(20, 1.0), cf.Jacobi(), cf.Identity(), cf.LowRank(5, cf.Relative(0.1))]


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights
@pytest.mark.parametrize("solver", DIRECT, ids=str)
def test_direct_solvers_take_the_products_that_were_foreseen(solver, products):
    made = risk()
    found = cf.plan(made, solver, m=40)
    products.clear()
    cf.influence(made, EACH, solver)
    whole = [min(32, count - start) for count in products for start in range(0, count, 32)]
    assert sum(products) == found.products
    readings = solver.cost(made).data_passes
    assert len(whole) == found.passes - readings - 2  # and two passes for the scores of 40 questions


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights
@pytest.mark.parametrize(
    "solver",
    [cf.CG(rtol=1e-4), cf.GMRES(rtol=1e-4), cf.CG(preconditioner=cf.Jacobi()), cf.LiSSA(max_steps=5000),
     cf.Auto(0.0)],
    ids=str,
)  # fmt: skip
def test_iterative_solvers_take_about_the_products_that_were_foreseen(solver, products):
    made = risk()
    found = cf.plan(made, solver, m=40)
    products.clear()
    cf.influence(made, EACH, solver)
    assert 0.5 < found.products / sum(products) < 2


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights
@pytest.mark.parametrize(
    "solver", [cf.CG(), cf.GMRES(), cf.LowRank(30), cf.Exact(), cf.Nystrom(40), cf.EKFAC()], ids=str
)
def test_memory_is_about_that_of_the_run(solver):
    made = risk()
    found = cf.plan(made, solver, m=40)
    with _plan.PeakMemory() as tally:
        cf.influence(made, EACH, solver)
    assert 0.4 < found.memory / tally.peak < 2.5


@pytest.mark.parametrize("solver", [cf.Exact(), cf.LowRank(10), cf.Nystrom(20, 1.0), cf.Jacobi(), cf.EKFAC()], ids=str)
def test_disk_is_what_a_saved_inverse_takes(solver, tmp_path):
    solver.invert(risk()).save(tmp_path / "inverse")
    size = (tmp_path / "inverse").stat().st_size
    assert abs(size - cf.plan(risk(), solver).disk) < 0.05 * size + 4_000


@pytest.mark.parametrize("m", [1, 40])
def test_a_fit_by_layers_is_taken_apart_by_what_grows_with_the_samples(m, monkeypatch):
    made, read, passes, clock = risk(), [], cf.Risk.passes, itertools.count()
    monkeypatch.setattr(cf.Risk, "passes", lambda self, *some: read.append(self.n) or passes(self, *some))
    monkeypatch.setattr(_plan, "CLOCK", lambda: float(next(clock)))  # everything takes one second
    monkeypatch.setattr(_plan, "DEAR", 1e9)
    found = cf.plan(made, cf.EKFAC(), m=m)
    pairs = m > 1
    growing, once = 3, 2 + (1 + m / 300 if pairs else 0)  # factors, eigenvalues, scores; the rest; 300 asked at a time
    assert (found.products, found.passes) == (0, 3)
    assert found.seconds == pytest.approx(growing * 700 / 600 + once)
    assert (read[0], set(read[1:])) == (
        700,
        {600},
    )  # one look at the loss; the part alone


@pytest.mark.parametrize("solver", [cf.KFAC(), cf.BlockDiagonal(), cf.Diagonal()], ids=str)
def test_simpler_blocks_take_one_pass_less(solver):
    passes = 2 + isinstance(solver, cf.BlockDiagonal)  # its scores: two at 32 a pass
    assert cf.plan(risk(), solver, m=40).passes == passes


def test_a_preconditioner_by_layers_is_fitted_once_and_answers_nothing():
    alone, helped = (cf.plan(risk(), cf.CG(preconditioner=by), m=40) for by in (None, cf.EKFAC()))
    assert helped.seconds > 0
    assert helped.disk == 0
    assert helped.passes - helped.products // 40 >= 2
    assert helped.memory > 0.5 * alone.memory


def test_a_tally_counts_what_lives_together_and_views_once():
    with _plan.PeakMemory() as tally:
        first = torch.ones(1000, dtype=torch.float64)
        second = (first + 1)[10:].reshape(-1, 2)
        del first
        third = second * 2
    assert tally.peak == 8 * 2000
    assert tally.now == 8 * 1990  # the view holds all thousand numbers
    assert third.shape == second.shape


def test_more_questions_cost_more_and_more_samples_too():
    few, many = (cf.plan(risk(), cf.CG(), m=count) for count in (1, 400))
    assert many.seconds > few.seconds
    assert many.memory > few.memory
    assert (few.questions, many.questions) == (1, 400)


def test_a_look_reads_whole_batches_and_only_some():
    assert _plan._part(risk()).n == 600
    assert _plan._part(grid.CONTRASTIVE.risk()).n == 50


def test_a_plan_reads_as_two_sentences():
    text = str(cf.plan(risk(), cf.LowRank(10), m=3))
    assert text.startswith("LowRank(rank=10, damping=0.0, seed=0, curvature=None) for 3 question(s) about 700 samples:")
    assert "20 products with the curvature in 21 passes over the data." in text
    assert "MB when saved" in text


def test_negative_curvature_is_said_with_the_limit_of_steps():
    problem = grid.LANGUAGE
    found = cf.plan(problem.risk(), cf.CG(0.1, max_steps=50))
    assert found.products == 50 + 1 + 1  # the last residual, and the units of the parameters
    assert "The number of steps is its limit: CG met negative curvature" in found.notes[0]


def test_fields_are_planned_too():
    problem = grid.DEC_MOVING
    found = cf.plan(problem.risk(), cf.GMRES(0.1), m=2)
    assert 0 < found.products <= 2 * 29


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match="Got m=0"):
        cf.plan(risk(), cf.CG(), m=0)

    class Own(type(cf.Identity()).__mro__[1]):
        def _invert(self, risk):
            raise NotImplementedError

    with pytest.raises(errors.UnsupportedError, match="Own does not say beforehand"):
        cf.plan(risk(), Own())


def test_relative_damping_costs_the_products_of_its_estimate():
    plain, relative = (cf.plan(risk(), cf.LowRank(5, damping)).products for damping in (0.1, cf.Relative(0.1)))
    assert relative - plain == risk().p  # an exact trace, up to 512 parameters


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights
@pytest.mark.parametrize("solver", [cf.CG(4.0, rtol=1e-4), cf.GMRES(rtol=1e-4)], ids=str)
def test_a_dear_model_is_looked_at_through_few_samples(solver, monkeypatch):
    monkeypatch.setattr(_plan, "DEAR", 0.0)
    made, read, product = risk(), [], cf.Risk.jacobian_product
    monkeypatch.setattr(cf.Risk, "jacobian_product", lambda self, v: read.append(self.n * len(v)) or product(self, v))
    found = cf.plan(made, solver)
    assert sum(read) <= made.n  # a product of all samples with one vector
    assert found.products >= 1
