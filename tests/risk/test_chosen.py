"""A risk of some samples: the same numbers as whole batches with weights of zero, for what those samples cost."""

import grid
import pytest
import torch
from grid import normal
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import crossfluence as cf
from crossfluence._autodiff.params import Layout
from crossfluence.errors import DataError

N, SIZE, IDS = 40, 8, (3, 17, 18, 39)  # in three of five batches
X = normal(N, 3, seed=1)
Y = normal(N, seed=2)
NET = grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
WEIGHTS = torch.zeros(N, dtype=X.dtype).index_fill(0, torch.tensor(IDS), 1.0)


def plain(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def chasing(model, frozen, batch, weights):
    target = frozen(batch[0])[:, 0].mean() + batch[1]  # of all samples of the batch
    return (weights * (model(batch[0])[:, 0] - target).square()).sum()


def pulled(model, batch, weights):
    """Every sample is compared with all of its batch, whatever their weights."""
    z = model(batch[0])[:, 0]
    return (weights[:, None] * (z[:, None] - z + batch[1]).square()).sum()


KINDS = {
    "per sample": plain,
    "on outputs": cf.OnOutputs(lambda model, b: model(b[0])[:, 0], lambda z, b: (z - b[1]).square()),
    "weighted": cf.WeightedLoss(pulled),
    "field": cf.FieldLoss(chasing),
}


class Counted(list):
    """Batches in a list that counts how many of them are read."""

    def __init__(self, items):
        super().__init__(items)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)

    def __iter__(self):
        self.read.extend(range(len(self)))
        return super().__iter__()


def in_batches(size=SIZE):
    return list(zip(X.split(size), Y.split(size), strict=True))


def written_out(loss, theta, size=SIZE):
    """The field of the chosen samples: every batch in full, with weights of zero."""
    live = {name: part.detach().requires_grad_() for name, part in theta.items()}
    frozen = {name: part.detach() for name, part in theta.items()}

    def run(params):
        return lambda x: torch.func.functional_call(NET, params, (x,))

    total = torch.zeros((), dtype=X.dtype)
    for (x, y), weights in zip(in_batches(size), WEIGHTS.split(size), strict=True):
        if isinstance(loss, cf.FieldLoss):
            total = total + loss.fn(run(live), run(frozen), (x, y), weights)
        elif isinstance(loss, cf.WeightedLoss):
            total = total + loss.fn(run(live), (x, y), weights)
        else:
            each = loss.losses(run(live), (x, y)) if isinstance(loss, cf.OnOutputs) else loss(run(live), (x, y))
            total = total + (weights * each).sum()
    slopes = torch.autograd.grad(total, list(live.values()))
    return Layout.of(theta).flatten(dict(zip(live, slopes, strict=True))) / N


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [SIZE, N])
def test_the_field_of_some_samples_is_that_of_whole_batches_with_weights_of_zero(kind, size):
    risk = cf.Risk(NET, KINDS[kind], in_batches(size))
    moved = {name: 1.1 * part for name, part in risk.theta.items()}
    only = risk.only(IDS)
    for theta in (risk.theta, moved):
        torch.testing.assert_close(only.field(theta), written_out(KINDS[kind], theta, size), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_some_samples_and_of_the_others_add_up(kind):
    risk, v = cf.Risk(NET, KINDS[kind], in_batches(), l2=0.1), normal(2, 21, seed=3)
    if kind == "on outputs":
        both = [part.gauss_newton_product(v) for part in (risk.only(IDS), risk.without(IDS))]
        torch.testing.assert_close(sum(both) - 0.1 * v, risk.gauss_newton_product(v), rtol=1e-12, atol=1e-14)
    both = [part.jacobian_product(v) for part in (risk.only(IDS), risk.without(IDS))]
    torch.testing.assert_close(sum(both) - 0.1 * v, risk.jacobian_product(v), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_batches_that_hold_the_samples_are_read(kind):
    data = Counted(in_batches())
    only = cf.Risk(NET, KINDS[kind], data).only(IDS)
    data.read.clear()
    only.field(only.theta)
    assert data.read == [0, 2, 4]


def test_a_step_of_undo_computes_the_losses_of_its_samples_alone():
    seen = []

    def noted(model, batch):
        seen.append(len(batch[0]))
        return plain(model, batch)

    risk = cf.Risk(NET, noted, in_batches())
    seen.clear()
    cf.undo(risk, IDS, steps=3, lr=1e-3)
    assert seen[-6:] == [1, 2, 1] * 2
    assert sum(size == SIZE for size in seen) == 1 + 2 * 3  # a check, and one comparison of each of the three batches


def test_a_coupled_loss_sees_its_whole_batch():
    seen = []

    def noted(model, batch, weights):
        seen.append(len(batch[0]))
        return pulled(model, batch, weights)

    only = cf.Risk(NET, cf.WeightedLoss(noted), in_batches()).only(IDS)
    seen.clear()
    only.field(only.theta)
    assert seen == [SIZE] * 3


def test_a_tensor_as_long_as_a_batch_that_belongs_to_all_of_its_samples_is_not_taken_apart():
    """The first look at the loss sees a scale of another length than its batch."""
    scales = [torch.ones(5), *(torch.full((SIZE,), 5 / SIZE) for _ in range(4))]
    data = [(x, y, scale) for (x, y), scale in zip(in_batches(), scales, strict=True)]
    only = cf.Risk(NET, lambda model, batch: plain(model, batch) * batch[2].sum(), data).only(IDS)
    torch.testing.assert_close(only.field(only.theta), 5 * written_out(plain, only.theta), rtol=1e-12, atol=1e-14)


def test_nodes_of_a_graph_keep_their_neighbours():
    ahead = torch.arange(N).roll(1)

    def of_nodes(model, batch):
        return plain(model, (batch[0] + batch[0][batch[2][0]], batch[1]))

    whole = cf.Risk(NET, of_nodes, [(X, Y, ahead[None])])
    rows = torch.cat(list(whole.sample_gradients()))[list(IDS)]
    only = whole.only(IDS)
    torch.testing.assert_close(only.field(only.theta), rows.sum(0), rtol=1e-12, atol=1e-14)


def test_a_sample_that_is_not_finite_does_not_count_without_its_weight():
    spoilt = Y.clone()
    spoilt[16] = torch.nan  # in the batch of 17 and 18
    only = cf.Risk(NET, plain, cf.batches(X, spoilt, size=SIZE)).only(IDS)
    torch.testing.assert_close(only.field(only.theta), written_out(plain, only.theta), rtol=1e-12, atol=1e-14)


class Items(Dataset):
    def __init__(self):
        self.read = []

    def __len__(self):
        return N

    def __getitem__(self, row):
        self.read.append(row)
        return X[row], Y[row]


@pytest.mark.parametrize("make", [lambda items: DataLoader(items, SIZE), lambda items: cf.batches(items, size=SIZE)])
def test_samples_of_other_batches_are_not_loaded(make):
    items = Items()
    only = cf.Risk(NET, plain, make(items)).only(IDS)
    items.read.clear()
    torch.testing.assert_close(only.field(only.theta), written_out(plain, only.theta), rtol=1e-12, atol=1e-14)
    assert items.read == [*range(8), *range(16, 24), *range(32, 40)]


def test_data_that_changed_is_refused_where_it_is_read():
    x = X.clone()
    only = cf.Risk(NET, plain, DataLoader(TensorDataset(x, Y), SIZE)).only(IDS)
    x[16] = 0
    with pytest.raises(DataError, match="Batch 2"):
        only.field(only.theta)
