"""Overfitted classifiers: a record of their training is not enough for sizes."""

import grid
import pytest
from grid import normal
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence._horizon.confident import confident

X = normal(40, 5, seed=1)
Y = (X @ normal(5, 3, seed=2)).argmax(1)


def entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def binary(model, batch):
    return F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], (batch[1] == 0).double(), reduction="none")


def squared(model, batch):
    return (model(batch[0])[:, 0] - 0.1 * batch[0][:, 0]).square()


def recipe(loss, epochs):
    net = grid.seeded(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), 4)
    return cf.Recipe(net, loss, (X, Y), optimizer=cf.Adam(2e-2), epochs=epochs, batch_size=10)


@pytest.mark.parametrize(
    ("loss", "epochs", "wanted"),
    [(entropy, 200, True), (entropy, 10, False), (binary, 200, True), (binary, 5, False), (squared, 200, False)],
)
def test_classifiers_without_any_loss_left_are_told_from_others(loss, epochs, wanted):
    made = recipe(loss, epochs)
    model = made.train()
    assert confident(made.risk(model)) == wanted
    if loss is squared or wanted:
        assert float(loss(model, (X, Y)).detach().mean()) < 0.02  # a small loss alone says nothing


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")
def test_sizes_of_an_overfitted_classifier_are_not_promised_with_a_record():
    levels = {}
    for epochs in (10, 200):
        made = recipe(entropy, epochs)
        risk = made.risk(made.train(), record=made.record())
        scores = cf.influence(risk, lambda model: model(X[:1])[0, 0], cf.Horizon())
        levels[epochs] = scores.verdict.level
        assert ("hardly any loss was left" in str(scores.verdict)) == (epochs == 200)
    assert levels == {10: "sizes", 200: "order"}


def test_a_loss_without_outputs_is_not_judged():
    assert not confident(grid.COX.risk())
