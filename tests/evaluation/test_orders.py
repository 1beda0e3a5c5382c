"""`leave_out` over several orders of the data: a mean with its noise, and a verdict from it."""

import pytest
import torch
from grid import integers, normal, seeded
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._results.noise import over_orders, reliability

X, Y = normal(40, 3, seed=1), integers(3, 40, seed=2)
GROUPS = {f"g{k}": range(5 * k, 5 * k + 5) for k in range(8)}


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def recipe(**options):
    options = {"optimizer": cf.SGD(0.5), "epochs": 3, "batch_size": 8, **options}
    return cf.Recipe(seeded(nn.Linear(3, 3)), loss, (X, Y), **options)


def ask(model):
    z = model(X[:2])
    return {"one": z[0, 0], "other": z[1, 2] - z[1, 1]}


def test_the_mean_over_orders_is_that_of_trainings_with_other_seeds():
    found = cf.leave_out(recipe(seed=4), ask, GROUPS, seeds=3)
    each = torch.stack([cf.leave_out(recipe(seed=seed), ask, GROUPS).values for seed in (4, 5, 6)])
    assert torch.allclose(found.values, each.mean(0), atol=1e-14)
    assert torch.allclose(found.errors, each.std(0) / 3**0.5, atol=1e-14)
    assert found.members == 3
    assert found.method == "retraining, mean of 3 orders"
    assert list(found.to_frame().columns) == ["one", "other", "error of one", "error of other"]
    assert "in the median question" in str(found.verdict)


def test_one_order_is_as_before():
    found, wanted = (cf.leave_out(recipe(), ask, GROUPS, **more) for more in ({"seeds": 1}, {}))
    assert torch.equal(found.values, wanted.values)
    assert found.errors is None
    assert found.method == "retraining"


def test_agreement_knows_the_ceiling_that_noise_leaves():
    truth = cf.leave_out(recipe(), ask, GROUPS, seeds=3)
    found = cf.compare(cf.replay(recipe(), ask, groups=0).sum_by(GROUPS), truth)
    spread = truth.values.flatten().var()
    assert found.ceiling == pytest.approx(float(1 - truth.errors.square().mean() / spread) ** 0.5)
    assert cf.compare(truth, cf.leave_out(recipe(), ask, GROUPS)).ceiling is None


def test_trainings_are_kept_order_by_order(tmp_path):
    found = cf.leave_out(recipe(), ask, GROUPS, seeds=2, store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * 9
    more = cf.leave_out(recipe(), ask, GROUPS, seeds=3, store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 * 9
    assert more.members == 3
    assert torch.equal(cf.leave_out(recipe(), ask, GROUPS, seeds=2, store=tmp_path).values, found.values)


def test_a_bank_keeps_the_models_of_every_order(tmp_path):
    bank = cf.Bank(recipe(), tmp_path)
    found = cf.leave_out(bank, ask, GROUPS, seeds=2)
    assert len(list(tmp_path.iterdir())) == 2 * 9
    assert torch.allclose(found.values, cf.leave_out(recipe(), ask, GROUPS, seeds=2).values)


def test_steps_of_all_samples_are_trained_once_and_have_no_noise(monkeypatch):
    whole, rows = recipe(batch_size=None), []
    first = cf.Recipe.retrain
    monkeypatch.setattr(cf.Recipe, "retrain", lambda self, w: (rows.append(len(w)), first(self, w))[1])
    found = cf.leave_out(whole, ask, GROUPS, seeds=4)
    assert sum(rows) == 9
    assert not found.errors.any()
    assert found.verdict.level == "sizes"
    assert "at 1.00" in str(found.verdict)


def drawn(signal, noise, k, n=4_000, seed=0):
    """Effects of k orders with so much signal and noise."""
    true = signal * normal(n, 1, seed=seed)
    return true, [
        cf.Scores(true + noise * normal(n, 1, seed=seed + 1 + order), tuple(range(n)), ("m",), "retraining")
        for order in range(k)
    ]


@pytest.mark.parametrize(("noise", "level"), [(0.1, "sizes"), (1.5, "order"), (4.0, "unreliable")])
def test_reliability_is_the_correlation_with_as_many_other_orders(noise, level):
    true, members = drawn(1.0, noise, 8)
    mean, other = over_orders(members[:4]), over_orders(members[4:])
    share = reliability(mean.values[:, 0], mean.errors[:, 0])
    assert share == pytest.approx(cf.compare(mean, other).pearson, abs=0.04)
    assert share**0.5 == pytest.approx(float(torch.corrcoef(torch.cat([mean.values, true], 1).T)[0, 1]), abs=0.06)
    assert mean.verdict.level == level
    one = float(torch.corrcoef(torch.cat([members[0].values, members[1].values], 1).T)[0, 1])
    said = float(str(mean.verdict).split("with another at ")[1][:4])
    assert said == pytest.approx(one, abs=0.05)


def test_nothing_but_noise_is_announced():
    noise = torch.Generator().manual_seed(0)

    def drawn_at_random(model):
        return model(X[:1])[0, 0] * 1e-9 + torch.rand((), generator=noise)

    with pytest.warns(errors.UnreliableWarning, match="more orders"):
        found = cf.leave_out(recipe(), drawn_at_random, range(20), seeds=2)
    assert found.verdict.level == "unreliable"


def test_a_training_function_and_wrong_numbers_are_refused():
    train = lambda weights: recipe().train(weights)  # noqa: E731
    with pytest.raises(errors.UnsupportedError, match=r"seeds=2 and function; a training function has no seed"):
        cf.leave_out(train, ask, GROUPS, n=40, seeds=2)
    for seeds in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"seeds={seeds}"):
            cf.leave_out(recipe(), ask, GROUPS, seeds=seeds)


def test_two_samples_have_errors_and_no_judgement_of_them():
    found = cf.leave_out(recipe(), ask, [0, 1], seeds=2)
    assert found.errors.any()
    assert str(found.verdict) == "Sizes and order can be believed: trained again in 2 orders of the data."
