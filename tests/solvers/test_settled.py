"""Scores that nearly cancel: what is solved for is large, and what the samples see of it is small."""

import warnings

import pytest
import torch
from grid import normal, seeded
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence._solvers.limits import error_allowed
from crossfluence._solvers.settled import SUMS, score_sums

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # of training, not solving

SOLVERS = [
    cf.CG(0.1), cf.CG(0.1, rtol=1e-9, max_steps=2000), cf.GMRES(0.1), cf.GMRES(0.1, rtol=1e-9),
    cf.LiSSA(0.1, max_steps=100), cf.CG(0.1, preconditioner=cf.Jacobi(0.1)),
]  # fmt: skip


def cancelling(d, seed):
    """A column that no sample feels and whose weight is huge, beside columns of which the samples span two or three."""
    n = 2 + seed % 2
    x = normal(n, d, seed=seed) * torch.where(torch.arange(d) == d // 2, 1e-4, 1e4)
    x[-1] = x[0]
    model = seeded(nn.Linear(d, 2, bias=False), seed)
    with torch.no_grad():
        model.weight.mul_(0.5 / x.abs().amax(0))
    y = 6e3 * normal(n, 2, seed=seed + 100)
    return model, x, y


def losses(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def dense(model, x, y, ridge):
    """Scores for the squared size of the weights, output by output."""
    w = model.weight.detach()
    H = 2 * x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    scale = H.diagonal().rsqrt()
    u = scale[:, None] * torch.linalg.solve(scale[:, None] * H * scale, scale[:, None] * 2 * w.T)  # (d, outputs)
    return -(2 * (x @ w.T - y) * (x @ u)).sum(1) / len(x)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize(("d", "seed"), [(3, 0), (3, 1), (5, 2), (40, 3), (40, 8), (40, 12), (40, 16)])
def test_scores_that_nearly_cancel_are_right_or_said_to_be_off(solver, d, seed):
    model, x, y = cancelling(d, seed)
    right = dense(model, x, y, 0.2)
    risk = cf.Risk(model, losses, cf.batches(x, y), l2=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", errors.NotConvergedWarning)
        found = cf.influence(risk, lambda m: m.weight.square().sum(), solver)
    gap = float((found.values[:, 0] - right).abs().max())
    unconverged = any(issubclass(one.category, errors.NotConvergedWarning) for one in caught)
    allowed = max(5e-3, error_allowed(solver.rtol)) * float(right.abs().max())
    assert gap <= max(allowed, 3 * found.report.errors[0])
    assert gap <= 10 * allowed or unconverged


def test_sums_of_gradients_have_the_size_of_the_scores_and_do_not_depend_on_batches():
    x, y = normal(200, 6, seed=0), normal(200, 2, seed=1)
    model = seeded(nn.Linear(6, 2))
    whole, parts = (score_sums(cf.Risk(model, losses, cf.batches(x, y, size=size))) for size in (200, 7))
    assert torch.allclose(whole, parts)
    rows = torch.cat(list(cf.Risk(model, losses, cf.batches(x, y)).sample_gradients())) * 200
    u = normal(50, rows.shape[1], seed=2)
    sizes = (u @ whole.T).square().sum(1) / SUMS / (u @ rows.T).square().sum(1)
    assert 0.3 < float(sizes.mean()) < 3


def test_few_samples_are_summed_by_themselves():
    x, y = normal(3, 4, seed=0), normal(3, 2, seed=1)
    risk = cf.Risk(seeded(nn.Linear(4, 2)), losses, cf.batches(x, y))
    assert torch.allclose(score_sums(risk), torch.cat(list(risk.sample_gradients())) * 3)


def test_ordinary_questions_take_no_step_more():
    x, y = normal(100, 8, seed=3), normal(100, 2, seed=4)
    model = seeded(nn.Linear(8, 2))
    risk = cf.Risk(model, losses, cf.batches(x, y), l2=0.1)
    ask = lambda m: m(x[:1])[0, 0]  # noqa: E731
    known = cf.influence(risk, ask, cf.CG()).report.steps
    risk.fine.remembered["score sums"] = score_sums(risk)[:0]  # as if nothing were known of the scores
    assert known == cf.influence(risk, ask, cf.CG()).report.steps


def test_a_restart_leaves_out_what_is_solved_exactly():
    rows = normal(5, 4, seed=7)
    risk = cf.Risk(seeded(nn.Linear(4, 1, bias=False)), lambda m, b: m(b)[:, 0].abs(), cf.batches(rows), l2=0.25)
    ask = lambda m: {"whole": 8 * m.weight[0, 0], "part": m(rows[:1])[0, 0]}  # noqa: E731
    found = cf.influence(risk, ask, cf.GMRES(rtol=1e-9))
    assert torch.allclose(found.values, cf.influence(risk, ask, cf.Exact()).values)


def test_a_full_low_rank_refuses_second_derivatives_that_are_rounding():
    x = 1e4 * normal(9, 2, seed=5)
    model = seeded(nn.Linear(2, 3, bias=False))
    y = model(x).argmax(1)
    gap = model(x).detach().sort(dim=1).values.diff(dim=1)[:, -1].min()
    with torch.no_grad():
        model.weight.mul_(36 / gap)  # 1 - p is a few roundings of one where it is largest
    risk = cf.Risk(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), cf.batches(x, y))
    for solver in (cf.Exact(), cf.LowRank(6)):
        with pytest.raises(errors.SolveError):
            cf.influence(risk, lambda m: m(x[:1])[0, 0], solver)


@pytest.mark.parametrize("size", [1e-150, 1.0, 1e155])
def test_a_sketch_of_any_size_is_rooted(size):
    x = normal(40, 4, seed=6)
    model = seeded(nn.Linear(4, 1, bias=False))
    risk = cf.Risk(model, lambda m, b: size * (m(b)[:, 0] - 1).square(), cf.batches(x))
    found = cf.influence(risk, lambda m: m.weight.sum(), cf.CG(preconditioner=cf.Nystrom(2)))
    right = cf.influence(risk, lambda m: m.weight.sum(), cf.Exact())
    assert torch.allclose(found.values, right.values, rtol=1e-3, atol=1e-3 * float(right.values.abs().max()))
