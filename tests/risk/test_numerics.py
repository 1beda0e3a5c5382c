"""Precision, devices, and numbers that are not finite."""

import copy

import grid
import pytest
import torch
from grid import integers, normal, seeded
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._risk import products

# A NaN is named with its batch and where it was born.

X = normal(30, 4, seed=5)


class Root(nn.Module):
    def forward(self, x):
        return x + x.square().sum(1, keepdim=True).sqrt()  # finite at zero, but for its derivative


class Divided(nn.Module):
    def forward(self, x):
        return x / x.abs().sum(1, keepdim=True)


class Between(nn.Module):
    """Divides by zero between its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3, bias=False), nn.Linear(3, 2)

    def forward(self, x):
        return self.second((z := self.first(x)) / z.norm(dim=1, keepdim=True))


def squares(model, x):
    return model(x).square().sum(1)


BORN = {
    "forwards": (nn.Sequential(nn.Linear(4, 3, bias=False), Divided(), nn.Linear(3, 2)), squares, "Divided '1'"),
    "backwards": (nn.Sequential(nn.Linear(4, 3, bias=False), Root(), nn.Linear(3, 2)), squares, "Root '1'"),
    "inside": (nn.Sequential(nn.Sequential(nn.Linear(4, 3, bias=False), nn.LeakyReLU(0.1, True), Divided())),
               lambda m, x: m(x).prod(1), "Divided '0.2'"),
    "between": (Between(), squares, "Between"),
    "loss": (nn.Sequential(nn.Linear(4, 3, bias=False)), lambda m, x: m(x).norm(dim=1).sqrt(), "the loss"),
    "logarithm": (nn.Sequential(nn.Linear(4, 3, bias=False)), lambda m, x: m(x).square().sum(1).log(), "the loss"),
}  # fmt: skip


ASKED = {
    "influence": lambda risk: cf.influence(risk, lambda m: next(m.parameters()).sum(), cf.CG()),
    "fit": lambda risk: cf.EKFAC().invert(risk),
    "product": lambda risk: cf.Hessian().product(risk, torch.ones(1, risk.p, dtype=torch.float64)),
}


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize("name", BORN)
def test_what_is_not_finite_is_named_with_its_batch_and_its_module(name, ask):
    model, loss, place = BORN[name]
    x = X.clone()
    x[17] = 0
    risk = cf.Risk(seeded(model), loss, cf.batches(x, size=10))
    with pytest.raises(errors.NonFiniteError, match=rf"in batch 1 \(samples 10 to 19; .*; it begins in {place}\)"):
        ASKED[ask](risk)
    assert all(not module._forward_hooks for module in model.modules())


def test_a_coupled_loss_names_its_module_too():
    x = X.clone()
    x[17] = 0
    model = seeded(nn.Sequential(nn.Linear(4, 3, bias=False), Divided()))
    risk = cf.Risk(model, cf.WeightedLoss(lambda m, b, w: w @ squares(m, b)), cf.batches(x, size=10))
    with pytest.raises(errors.NonFiniteError, match=r"in batch 1 \(samples 10 to 19; it begins in Divided '1'\)"):
        cf.influence(risk, lambda m: m[0].weight.sum())


# Half precision.

LABELS = integers(3, 300, seed=6)
SPLIT = cf.OnOutputs(lambda m, b: m(b[0]), lambda z, b: F.cross_entropy(z, b[1], reduction="none"))


@pytest.fixture(scope="module")
def rough():
    """A risk of a model in bfloat16, and the same numbers in single precision; six batches."""
    x = normal(300, 8, seed=7).bfloat16()
    model = seeded(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))).bfloat16()
    return [
        (
            cf.Risk(copy.deepcopy(model).to(dtype), SPLIT, cf.batches(x.to(dtype), LABELS, size=50), l2=1e-2),
            x[:9].to(dtype),
        )
        for dtype in (torch.bfloat16, torch.float32)
    ]


ROUGH = [
    cf.Identity(), cf.CG(0.5, rtol=1e-2), cf.CG(0.1, rtol=1e-2, curvature=cf.GaussNewton()), cf.GMRES(0.5, rtol=1e-2),
    cf.LowRank(10, 0.5), cf.Nystrom(20, 0.5), cf.Jacobi(0.5), cf.Exact(0.5), cf.EKFAC(),
    cf.EKFAC(curvature=cf.EmpiricalFisher()), cf.BlockDiagonal(), cf.KFAC(),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights
@pytest.mark.parametrize("solver", ROUGH, ids=str)
def test_a_model_in_bfloat16_scores_as_in_single_precision(solver, rough):
    def scores(risk, x):
        return cf.influence(risk, cf.each_of(cf.batches(x, LABELS[:9]), SPLIT.losses), solver).values

    half, single = (scores(*side) for side in rough)
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    assert (half - single).norm() < 0.1 * single.norm()


def test_sums_over_many_batches_keep_what_each_adds(rough):
    half, single = (risk.gradient for risk, _ in rough)
    assert half.dtype == torch.float32
    assert (half - single).norm() < 0.02 * single.norm()


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights
def test_a_plain_question_about_a_model_in_bfloat16_is_answered_too(rough):
    half, single = (cf.influence(risk, lambda m, x=x: m(x[:1])[0, 0], cf.EKFAC()).values for risk, x in rough)
    assert (half - single).norm() < 0.1 * single.norm()


def test_layers_of_a_model_in_bfloat16_are_known_by_their_hooks(rough):
    inverse = cf.EKFAC().invert(rough[0][0])
    assert "100.00% Kronecker factors of their layer" in inverse.notes[1]


def test_an_overflow_of_float16_is_not_blamed_on_a_sample():
    x = (300 * normal(20, 4, seed=12)).half()
    model = nn.Linear(4, 1).half()
    model.weight.data.fill_(300)
    risk = cf.Risk(model, lambda m, x: m(x)[:, 0].square(), cf.batches(x), l2=0.1)
    with pytest.raises(errors.NonFiniteError, match=r"float16, which overflows at 65,504.*bfloat16"):
        cf.EKFAC().invert(risk)
    x[3] = torch.nan
    wrong = cf.Risk(model, lambda m, x: m(x)[:, 0].square(), cf.batches(x), l2=0.1)
    with pytest.raises(errors.NonFiniteError, match=r"Clean or drop the sample"):
        cf.EKFAC().invert(wrong)


# Another device.


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("problem", [grid.SOFTMAX_ON_OUTPUTS, grid.AUTOENCODER, grid.CONTRASTIVE], ids=lambda p: p.name)
def test_every_solver_scores_on_a_gpu_as_on_the_cpu(problem):
    from test_laws import solvers

    found = solvers(problem) + ([cf.EKFAC(0.1), cf.BlockDiagonal(0.1)] if problem.per_sample else [])
    model = copy.deepcopy(problem.model).cuda()
    data = cf.batches(*(tensor.cuda() for tensor in problem.tensors), size=10_000)
    ask = lambda m: sum(parameter.square().sum() for parameter in m.parameters())  # noqa: E731
    for solver in found:
        here = cf.influence(problem.risk(), ask, solver).values
        there = cf.influence(cf.Risk(model, problem.loss, data, l2=problem.l2), ask, solver).values
        assert there.is_cuda
        assert torch.allclose(there.cpu(), here, rtol=1e-5, atol=1e-8 * float(here.abs().max())), str(solver)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_fit_on_a_gpu_goes_on_from_its_checkpoint(tmp_path):
    problem = grid.SOFTMAX_ON_OUTPUTS
    model = copy.deepcopy(problem.model).cuda()
    data = cf.batches(*(tensor.cuda() for tensor in problem.tensors), size=7)
    risk = cf.Risk(model, problem.loss, data, l2=problem.l2)
    made = cf.EKFAC(0.1).invert(risk, checkpoint=tmp_path / "fit")
    again = cf.EKFAC(0.1).invert(risk, checkpoint=tmp_path / "fit")
    vectors = torch.ones(1, risk.p, dtype=torch.float64, device="cuda")
    assert torch.equal(made.solve(vectors).vectors, again.solve(vectors).vectors)


@pytest.mark.parametrize("problem", [grid.DEC_MOVING, grid.DEC_FIXED], ids=["coupled", "per sample"])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_vectors_of_a_large_batch_are_multiplied_a_few_at_a_time(problem, at_once, monkeypatch):
    risk = problem.risk()
    vectors = normal(7, risk.p, seed=8)
    together = cf.FieldJacobian().product(risk, vectors)
    monkeypatch.setattr(products, "SAMPLES_BY_VECTORS", at_once * risk.n)
    torch.testing.assert_close(cf.FieldJacobian().product(risk, vectors), together, rtol=1e-12, atol=1e-14)
