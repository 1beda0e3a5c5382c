"""Changes that make a training smooth, and how far each leads away."""

import pytest
import torch
from grid import normal, seeded
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence._evaluation.suggestions import changes

X = normal(40, 3, seed=1)


def loss(model, batch):
    return (model(batch)[:, 0] - batch.sum(1).sin()).square()


def recipe(**options):
    options = {"optimizer": cf.AdamW(0.03), "epochs": 60, "batch_size": 20, **options}
    net = seeded(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))
    return cf.Recipe(net, loss, X, **options)


def ask(model):
    return {"one": model(X[:1])[0, 0], "all": loss(model, X).mean()}


def test_each_change_is_measured_beside_the_training_as_it_is():
    made = recipe(epochs=4)
    found = cf.smoothness(made, ask, groups=4, drop=0.05, suggest=True)
    wanted = [name for name, _ in changes(made)]
    assert sorted(one.name for one in found.changes) == sorted(wanted)
    assert [one.moved for one in found.changes] == sorted(one.moved for one in found.changes)
    one = next(each for each in found.changes if each.name == "eps_root=1e-06")
    assert one.recipe.optimizer == cf.AdamW(0.03, eps_root=1e-6)
    own, other = made.train(), one.recipe.train()
    away, way = (
        torch.cat([(a - b).detach().flatten() for a, b in zip(first.parameters(), second.parameters(), strict=True)])
        for first, second in ((other, own), (own, made.init))
    )
    assert one.moved == pytest.approx(float(away.norm() / way.norm()))
    assert one.questions == pytest.approx({k: float((ask(other)[k] - ask(own)[k]).detach()) for k in ("one", "all")})
    assert one.loss == pytest.approx(one.questions["all"])
    again = cf.smoothness(one.recipe, ask, groups=4, drop=0.05)
    assert one.smoothness == pytest.approx(float(again.pearson))
    assert list(found.to_frame().columns) == ["smoothness", "moved", "loss", "one", "all", "note"]


@pytest.mark.filterwarnings("ignore::crossfluence.errors.RoughTrainingWarning")
def test_a_rough_training_is_answered_with_the_nearest_smooth_one():
    rough = recipe(optimizer=cf.Adam(0.02), epochs=100, batch_size=None)  # divides by gradients that vanish
    question = lambda model: model(X[:1])[0, 0]  # noqa: E731
    found = cf.smoothness(rough, question, groups=8, drop=0.025, suggest=True)
    assert found.agreement.pearson < 0.9
    best = found.best
    assert best is not None
    assert best.smoothness >= 0.9
    assert best.name in str(found)
    assert all(one.smoothness < 0.9 for one in found.changes[: found.changes.index(best)])


def test_only_changes_that_change_something_are_tried():
    names = lambda made: [name for name, _ in changes(made)]  # noqa: E731
    assert names(recipe(optimizer=cf.SGD(0.1), schedule=cf.WarmUp(0.1), batch_size=None)) == ["lr=0.05"]
    assert names(recipe(optimizer=cf.SGD(0.1), batch_size=30)) == [
        "schedule=WarmUp(0.2)", "lr=0.05", "lr=0.05, schedule=WarmUp(0.2)"]  # fmt: skip
    assert "batch_size=40, epochs=120" in names(recipe())


def test_the_answer_is_a_sentence_and_wrong_numbers_are_refused():
    made = recipe(optimizer=cf.SGD(0.05), epochs=2)
    found = cf.smoothness(made, lambda model: model(X[:1])[0, 0], groups=3, drop=0.05, suggest=True)
    assert str(found).startswith("As it is, small changes correlate")
    with pytest.raises(errors.DataError, match="groups=2"):
        cf.smoothness(made, ask, groups=2, suggest=True)


def test_a_bank_keeps_the_models_of_changes_too(tmp_path):
    made = recipe(optimizer=cf.SGD(0.05), schedule=cf.WarmUp(0.1), epochs=2, batch_size=None)
    found = cf.smoothness(cf.Bank(made, tmp_path), ask, groups=3, drop=0.05, suggest=True)
    assert len(list(tmp_path.iterdir())) == 2 * 7
    assert len(found.changes) == 1
