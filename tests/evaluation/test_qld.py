"""The query loss difference: each question's own strongest samples go, and as many random ones."""

import grid
import numpy as np
import pytest
import torch
from grid import normal
from torch import nn

import crossfluence as cf
from crossfluence import errors

X, Y = normal(40, 3, seed=0), normal(40, seed=1)
POINTS = normal(3, 3, seed=2)


def squared(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def recipe():
    start = grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), 0)
    return cf.Recipe(start, squared, (X, Y), optimizer=cf.SGD(0.1, 0.9), epochs=20, batch_size=20, l2=0.05)


def ask(model):
    return model(POINTS)[:, 0]


def scores_of(values):
    return cf.Scores(values, range(len(values)), tuple(map(str, range(values.shape[1]))), "by hand")


@pytest.mark.parametrize("effect", ["lowers", "raises"])
def test_each_question_loses_its_own_strongest_samples(effect):
    scores, made, sign = scores_of(normal(40, 3, seed=3)), recipe(), 1 if effect == "lowers" else -1
    found = cf.qld(scores, made, ask, drop=0.1, effect=effect, draws=5, seed=7)
    before = ask(made.train()).detach()
    for column in range(3):
        top = (sign * scores.values[:, column]).argsort()[:4]
        weights = torch.ones(40, dtype=torch.float64)
        weights[top] = 0
        change = float(ask(made.train(weights)).detach()[column] - before[column])
        assert found.strongest[column] == pytest.approx(change, abs=1e-9)
        assert found.by_objective[str(column)] == pytest.approx(sign * (change - found.random[:, column].mean()))
    assert found.value == pytest.approx(np.mean(list(found.by_objective.values())))
    assert found.value.low <= found.value <= found.value.high
    assert (found.size, found.random.shape, found.method) == (4, (5, 3), "by hand")


def test_replay_finds_what_matters_and_noise_does_not():
    made = recipe()
    replayed, noise = cf.replay(made, ask), scores_of(normal(40, 3, seed=3))
    best = {effect: cf.qld(replayed, made, ask, drop=0.05, effect=effect) for effect in ("lowers", "raises")}
    assert all(min(found.by_objective.values()) > 0 for found in best.values())
    assert best["lowers"].value > 3 * abs(cf.qld(noise, made, ask, drop=0.05).value)


def test_a_function_of_weights_may_weigh_more_than_samples(tmp_path):
    def train(weights):  # two parts of each sample
        return recipe().train(weights.reshape(40, 2).mean(1))

    found = cf.qld(scores_of(normal(80, 3, seed=3)), train, ask, draws=2, store=tmp_path)
    assert found.size == 1
    assert len(list(tmp_path.iterdir())) == 6


def test_one_question_has_no_interval():
    found = cf.qld(scores_of(normal(40, 1, seed=3)), recipe(), lambda model: ask(model)[:1], draws=2)
    assert np.isnan(found.value.low)


@pytest.mark.parametrize(("call", "kind"), [
    (lambda: cf.qld(scores_of(normal(40, 3, seed=3)), recipe(), ask, drop=0.0), errors.DataError),
    (lambda: cf.qld(scores_of(normal(40, 3, seed=3)), recipe(), ask, draws=0), errors.DataError),
    (lambda: cf.qld(scores_of(normal(30, 3, seed=3)), recipe(), ask), errors.DataError),
    (lambda: cf.qld(scores_of(normal(40, 2, seed=3)), recipe(), ask, draws=1), errors.ObjectiveError),
    (lambda: cf.qld(scores_of(normal(40, 3, seed=3)), recipe(), ask, effect="moves"), ValueError),
    (lambda: cf.qld("scores", recipe(), ask), errors.UnsupportedError),
])  # fmt: skip
def test_what_means_nothing_is_refused(call, kind):
    with pytest.raises(kind):
        call()
