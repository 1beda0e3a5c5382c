"""Recipes whose steps are given one by one, and AdamW's decay of some parameters alone, beside PyTorch's own loop."""

import copy

import grid
import pytest
import torch
from grid import normal
from torch import nn

import crossfluence as cf

X, Y = normal(20, 3, seed=0), normal(20, 1, seed=1)
INIT = grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
ORDER = [[3, 1, 2], [0, 19], [7, 7, 5, 4], [9]]


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def recipe(**changes):
    options = {"optimizer": cf.SGD(0.05, 0.9), "epochs": 2, "order": ORDER, **changes}
    return cf.Recipe(INIT, squared, (X, Y), **options)


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def by_hand(optimizer, weights):
    model = copy.deepcopy(INIT)
    stepping = optimizer(model)
    for rows in ORDER * 2:
        stepping.zero_grad()
        (weights[rows] * squared(model, (X[rows], Y[rows]))).sum().div(len(rows)).backward()
        stepping.step()
    return flat(model)


@pytest.mark.parametrize("weights", [torch.ones(20), torch.arange(20.0) % 3], ids=["ones", "others"])
def test_given_steps_are_taken_in_order(weights):
    weights = weights.double()
    wanted = by_hand(lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), weights)
    torch.testing.assert_close(flat(recipe().train(weights)), wanted)
    both = torch.stack([weights, torch.ones(20)])
    torch.testing.assert_close(flat(next(recipe().retrain(both))), wanted)


def test_replay_follows_given_steps():
    ask = lambda model: model(X[:1])[0, 0]  # noqa: E731
    found = cf.replay(recipe(), ask, groups=0).values[7, 0]
    moved = torch.ones(2, 20, dtype=torch.float64)
    moved[:, 7] += torch.tensor([1e-4, -1e-4])
    ahead, behind = (float(ask(model).detach()) for model in recipe().retrain(moved))
    assert float(found) == pytest.approx((ahead - behind) / 2e-4, rel=1e-5)


def test_another_seed_exchanges_samples_and_keeps_the_sizes_of_steps():
    other = recipe().with_seed(3)
    assert list(map(len, other.order)) == list(map(len, ORDER))
    assert [row for step in other.order for row in step] != [row for step in ORDER for row in step]
    exchanged = {old: new for mine, theirs in zip(ORDER, other.order) for old, new in zip(mine, theirs)}  # noqa: B905
    assert len(set(exchanged.values())) == len(exchanged)
    assert recipe().with_seed(0).order == recipe().order


def test_the_order_is_content():
    assert recipe().content != recipe(order=ORDER[::-1]).content


@pytest.mark.parametrize("order", [[[0, 20]], [[-1]], [[0], []], []])
def test_steps_that_cannot_be_taken_are_refused(order):
    with pytest.raises(cf.CrossfluenceError, match="0 to 19"):
        recipe(order=order)


def test_the_decay_of_some_parameters_is_that_of_parameter_groups():
    def groups(model):
        weights = [p for name, p in model.named_parameters() if "weight" in name]
        others = [p for name, p in model.named_parameters() if "weight" not in name]
        return torch.optim.AdamW(
            [{"params": weights, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}], lr=0.01
        )

    wanted = by_hand(groups, torch.ones(20, dtype=torch.float64))
    found = recipe(optimizer=cf.AdamW(0.01, weight_decay={"*weight": 0.3})).train()
    torch.testing.assert_close(flat(found), wanted)
    with pytest.raises(cf.CrossfluenceError, match="weight_decay matches none"):
        recipe(optimizer=cf.AdamW(0.01, weight_decay={"*wight": 0.3})).train()
