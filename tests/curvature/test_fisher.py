"""Square roots of criteria at the outputs, and Fisher matrices made of them."""

import grid
import pytest
import torch
from grid import integers, normal
from reference import sample_gradients
from torch.func import hessian
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._curvature.output_gradients import square_root
from crossfluence._solvers.exact import dense

CLASSES, TOKENS = integers(4, 9, seed=1), integers(4, 9, 3, seed=2)
REAL = torch.arange(3) < 1 + integers(3, 9, 1, seed=3)


def masked_entropy(z):
    return (F.cross_entropy(z.movedim(-1, 1), TOKENS[: len(z)], reduction="none") * REAL[: len(z)]).sum(1)


CRITERIA = {
    "squared error": (lambda z: (z - 1).square().sum(1), (4,)),
    "weighted squares": (lambda z: z.square() @ torch.tensor([0.5, 1, 2, 0]).double(), (4,)),
    "logistic": (lambda z: F.softplus(z), ()),
    "softmax": (lambda z: F.cross_entropy(z, CLASSES[: len(z)], reduction="none"), (4,)),
    "half a softmax": (lambda z: F.cross_entropy(z, CLASSES[: len(z)], reduction="none") / 2, (4,)),
    "softmax, classes second": (lambda z: F.cross_entropy(z, TOKENS[: len(z)], reduction="none").sum(1), (4, 3)),
    "softmax of real tokens": (masked_entropy, (3, 4)),
    "tempered softmax": (lambda z: F.cross_entropy(z / 2, CLASSES[: len(z)], reduction="none"), (4,)),
    "distances": (lambda z: (z[:, 0] - z[:, 1]).square() + z.square().sum(1), (2,)),
}


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("size", [1, 9])
def test_square_roots_squared_are_second_derivatives(name, size):
    criterion, shape = CRITERIA[name]
    z = normal(size, *shape, seed=4)
    count = z[0].numel()
    root = square_root(criterion, z)
    columns = [root(unit.reshape(1, *shape).expand_as(z)).reshape(size, count) for unit in torch.eye(count).double()]
    found = torch.stack(columns, 2) @ torch.stack(columns, 2).mT
    whole = hessian(lambda flat: criterion(flat.reshape(z.shape)).sum())(z.flatten()).reshape(size, count, size, count)
    wanted = torch.stack([whole[i, :, i] for i in range(size)])
    assert (found - wanted).abs().max() <= 1e-12


def test_certain_predictions_have_almost_no_curvature():
    z = torch.tensor([[40.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    root = square_root(lambda z: F.cross_entropy(z, torch.tensor([0, 1]), reduction="none"), z)
    drawn = root(torch.tensor([[1.0, -1.0, 1.0]]).expand(2, 3))
    assert drawn.isfinite().all()
    assert drawn[0].abs().max() < 1e-3 < drawn[1].abs().max()


def test_a_concave_criterion_has_no_fisher_matrix():
    with pytest.raises(errors.SolveError, match="not convex in the outputs"):
        square_root(lambda z: -z.square().sum(1), torch.ones(2, 3))


def test_many_outputs_coupled_in_a_way_of_their_own_are_refused():
    with pytest.raises(errors.UnsupportedError, match=r"couples the 300 outputs.*EmpiricalFisher"):
        square_root(lambda z: z.sum(1).square() + z.square().sum(1), torch.ones(2, 300))


SPLIT = [pytest.param(problem, id=problem.name) for problem in (grid.ON_OUTPUTS, grid.SOFTMAX_ON_OUTPUTS)]


@pytest.mark.parametrize("problem", SPLIT)
def test_every_column_together_is_gauss_newton(problem):
    risk = problem.risk(size=11).without([3])
    found = dense(cf.Fisher(samples=None), risk)
    assert torch.allclose(found, dense(cf.GaussNewton(), risk), atol=1e-12)


@pytest.mark.parametrize("problem", SPLIT)
def test_many_draws_come_close_to_gauss_newton_and_a_seed_decides_them(problem):
    risk = problem.risk()
    wanted = dense(cf.GaussNewton(), risk)
    few, many = (dense(cf.Fisher(samples), risk) for samples in (1, 300))
    assert (many - wanted).norm() < 0.1 * wanted.norm()
    assert torch.equal(few, dense(cf.Fisher(1), risk))
    if risk.kind.outputs(risk.model, problem.tensors).ndim > 1:  # with one output signs do not matter
        assert not torch.allclose(few, dense(cf.Fisher(1, seed=1), risk))


@pytest.mark.parametrize("problem", [grid.LOGISTIC, grid.SOFTMAX_ON_OUTPUTS, grid.AUTOENCODER], ids=lambda p: p.name)
def test_the_empirical_fisher_is_the_second_moment_of_the_gradients(problem):
    risk = problem.risk(size=11)
    gradients = sample_gradients(problem.model, risk.kind.losses, problem.tensors)
    rows = torch.cat([each.flatten(1) for each in gradients.values()], 1)
    wanted = rows.T @ rows / problem.n + problem.l2 * torch.eye(risk.p)
    assert torch.allclose(dense(cf.EmpiricalFisher(), risk), wanted, atol=1e-12)


def test_fisher_matrices_need_the_losses_they_are_made_of():
    with pytest.raises(errors.UnsupportedError, match=r"Fisher needs to know where the outputs are.*EmpiricalFisher"):
        cf.Fisher().product(grid.AUTOENCODER.risk(), torch.ones(1, grid.AUTOENCODER.risk().p).double())
    with pytest.raises(errors.UnsupportedError, match=r"WeightedLoss has no gradient for each sample alone"):
        cf.EmpiricalFisher().product(grid.COX.risk(), torch.ones(1, 4).double())
    with pytest.raises(ValueError, match="samples=0"):
        cf.Fisher(samples=0)
