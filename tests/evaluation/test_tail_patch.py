"""One more step on each question's strongest samples, beside a step on random ones."""

import copy

import grid
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


def trained(l2=0.05):
    start = grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), 0)
    recipe = cf.Recipe(start, squared, (X, Y), optimizer=cf.SGD(0.1, 0.9), epochs=20, batch_size=20, l2=l2)
    return recipe.risk(recipe.train())


def ask(model):
    return model(POINTS)[:, 0]


def scores_of(values):
    return cf.Scores(values, range(len(values)), tuple(map(str, range(values.shape[1]))), "by hand")


def stepped(risk, rows, optimizer, steps):
    """With torch's own optimisers."""
    model = copy.deepcopy(risk.model)
    own = optimizer(model.parameters())
    for _ in range(steps):
        own.zero_grad()
        squared(model, (X[rows], Y[rows])).mean().backward()
        own.step()
    return ask(model).detach()


@pytest.mark.parametrize("effect", ["lowers", "raises"])
@pytest.mark.parametrize(("optimizer", "by_torch", "steps"), [
    (cf.SGD(0.05), lambda parameters: torch.optim.SGD(parameters, 0.05), 1),
    (cf.Adam(0.01), lambda parameters: torch.optim.Adam(parameters, 0.01), 3),
])  # fmt: skip
def test_a_step_is_that_of_pytorch_on_each_question_s_own_samples(effect, optimizer, by_torch, steps):
    scores, risk, sign = scores_of(normal(40, 3, seed=3)), trained(), -1 if effect == "lowers" else 1
    before = {name: part.clone() for name, part in risk.model.state_dict().items()}
    found = cf.tail_patch(scores, risk, ask, optimizer=optimizer, share=0.1, effect=effect, steps=steps, draws=5)
    for column in range(3):
        top = (sign * scores.values[:, column]).argsort(descending=True)[:4]
        change = float(stepped(risk, top, by_torch, steps)[column] - ask(risk.model).detach()[column])
        assert found.strongest[column] == pytest.approx(change, abs=1e-9)
        assert found.by_objective[str(column)] == pytest.approx(sign * (change - found.random[:, column].mean()))
    assert found.value.low <= found.value <= found.value.high
    assert (found.size, found.random.shape, found.method) == (4, (5, 3), "by hand")
    assert all(torch.equal(part, before[name]) for name, part in risk.model.state_dict().items())


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")
def test_a_small_step_on_what_a_solver_names_moves_as_promised_and_noise_does_not():
    risk = trained()
    scores, noise = cf.influence(risk, ask, cf.Identity()), scores_of(normal(40, 3, seed=3))
    for effect in ("lowers", "raises"):
        found = cf.tail_patch(scores, risk, ask, optimizer=cf.SGD(1e-3), share=0.05, effect=effect)
        assert min(found.by_objective.values()) > 0
        assert found.value > 3 * abs(cf.tail_patch(noise, risk, ask, optimizer=cf.SGD(1e-3), share=0.05).value)


@pytest.mark.parametrize(("change", "kind"), [
    ({"share": 0.0}, errors.DataError),
    ({"draws": 0}, errors.DataError),
    ({"steps": 0}, errors.DataError),
    ({"scores": scores_of(normal(30, 3, seed=3))}, errors.DataError),
    ({"scores": scores_of(normal(40, 2, seed=3))}, errors.ObjectiveError),
    ({"effect": "moves"}, ValueError),
    ({"scores": "scores"}, errors.UnsupportedError),
    ({"optimizer": 0.1}, errors.UnsupportedError),
    ({"risk": "risk"}, errors.UnsupportedError),
    ({"objective": 3}, errors.UnsupportedError),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(change, kind):
    given = {"scores": scores_of(normal(40, 3, seed=3)), "risk": trained(), "objective": ask, "optimizer": cf.SGD(0.1)}
    with pytest.raises(kind):
        cf.tail_patch(**given | change)
