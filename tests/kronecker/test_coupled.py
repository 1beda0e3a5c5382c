"""EK-FAC of losses that couple samples: each sample's row goes through its whole batch."""

import classes
import pytest
import torch
from grid import normal, seeded
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.functional import isolated

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")

N = 24
X = normal(N, 2, 5, seed=1)
MODEL = seeded(nn.Sequential(nn.Linear(5, 6), classes.Root(6, 1.0), nn.Tanh(), classes.Conv1D(3, 6)), size=0.5)


@cf.WeightedLoss
def contrast(model, batch, weights):
    """Two views of a sample are alike; the other samples of the batch, each with its weight, are not."""
    z = nn.functional.normalize(model(batch), dim=-1)
    alike = z[:, 0] @ z[:, 1].T / 0.5
    others = (weights.to(alike) * alike.exp()).sum(1).log()
    return weights.to(alike) @ (others - alike.diagonal())


def dense(inverse, risk):
    with isolated():
        each = torch.cat(list(risk.sample_gradients())) * risk.n
    return risk.layout.split(each)


@pytest.mark.parametrize("size", [N, 8])
def test_eigenvalues_are_mean_squared_rows_along_the_eigenvectors(size):
    risk = cf.Risk(MODEL, contrast, cf.batches(X, size=size))
    inverse = cf.EKFAC(0.1).invert(risk)
    rows = dense(inverse, risk)
    assert sum(block.slot.size for block in inverse.blocks) == risk.p
    for block in inverse.blocks:
        along = block.along(block.slot.gather(rows))
        torch.testing.assert_close(block.values, along.square().mean(0))
        if block.left is not None:  # the eigenvectors of the rows' own second moments
            moment = torch.einsum("ngrc,ngsc->grs", *[block.slot.gather(rows)] * 2)
            inside = block.left.mT @ moment @ block.left
            torch.testing.assert_close(inside, torch.diag_embed(inside.diagonal(dim1=1, dim2=2)), atol=1e-9, rtol=0)


def test_scores_equal_the_dense_formula():
    risk = cf.Risk(MODEL, contrast, cf.batches(X, size=8), l2=0.01)
    inverse, ask = cf.EKFAC(0.1).invert(risk), lambda m: m(X[0, 0])[1]
    found = cf.influence(risk, ask, inverse)
    rows = risk.layout.flatten(dense(inverse, risk))
    named, columns = risk.layout.split(torch.eye(risk.p, dtype=torch.float64)), {}
    for block in inverse.blocks:
        columns |= block.slot.scatter(block.apply_eigenfunction(block.slot.gather(named), block.values))
    matrix = risk.layout.flatten(columns)
    matrix += (0.01 + 0.1) * torch.eye(risk.p, dtype=torch.float64)
    slope = torch.cat([part.flatten() for part in torch.autograd.grad(ask(MODEL), list(MODEL.parameters()))])
    torch.testing.assert_close(found.values[:, 0], -rows @ torch.linalg.solve(matrix, slope) / N)
    own = cf.self_influence(risk, inverse).values[:, 0]
    torch.testing.assert_close(own, -((rows @ torch.linalg.inv(matrix)) * rows).sum(1) / N)


def test_a_weighted_sum_of_single_losses_has_their_exact_blocks():
    each = lambda m, x: m(x).square().sum((1, 2))  # noqa: E731
    plain, coupled = (
        cf.BlockDiagonal(0.1).invert(cf.Risk(MODEL, loss, cf.batches(X, size=8)))
        for loss in (each, cf.WeightedLoss(lambda m, x, w: w @ each(m, x)))
    )
    found = {block.slot: block for block in coupled.blocks}
    for block in plain.blocks:
        vectors = normal(3, *block.slot.form, seed=4)
        one, other = (some.apply_eigenfunction(vectors, some.values) for some in (block, found[block.slot]))
        torch.testing.assert_close(one, other)


def test_what_needs_single_samples_is_refused():
    risk = cf.Risk(MODEL, contrast, cf.batches(X))
    for solver in (cf.EKFAC(pilot=5), cf.EKFAC(curvature=cf.Fisher())):
        with pytest.raises(errors.UnsupportedError, match="couples samples"):
            solver.invert(risk)
    with pytest.raises(errors.UnsupportedError, match="Choose with Risk"):
        cf.EKFAC(layers="0").invert(risk)
