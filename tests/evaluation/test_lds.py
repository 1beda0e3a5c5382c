"""How far scores are from the truth: subsets, seeds, removals, and whether training is smooth at all."""

import warnings

import grid
import numpy as np
import pytest
import torch
from grid import normal
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence._evaluation.subsets import without_random
from crossfluence._results.agreement import mean_rank_correlation

X, Y = normal(60, 3, seed=0), normal(60, seed=1)
POINT = normal(2, 3, seed=2)
ROUGH = {"optimizer": cf.Adam(0.3), "epochs": 15, "batch_size": 5, "l2": 0.0}


def squared(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def network(seed=0):
    return grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), seed)


def recipe(**changes):
    options = {"optimizer": cf.SGD(0.1, 0.9), "epochs": 30, "batch_size": 20, "l2": 0.05, **changes}
    return cf.Recipe(options.pop("init", None) or network(), squared, (X, Y), **options)


def ask(model):
    return model(POINT)[:, 0]


def scores_of(values):
    return cf.Scores(values, range(len(values)), ("0", "1"), "by hand")


def spearman(x, y):
    """By sorting; there are no ties."""
    rank = [np.argsort(np.argsort(column)) for column in (x, y)]
    return np.corrcoef(*rank)[0, 1]


# The linear datamodelling score.


def test_one_seed_and_few_left_out():
    scores = scores_of(normal(60, 2, seed=3))
    found = cf.lds(scores, recipe(), ask, drop=0.1, subsets=8, seed=5)
    weights = without_random(60, 8, 0.1, seed=5)
    assert weights.sum(1).tolist() == [54] * 8
    actual, again = (
        torch.stack([ask(recipe(seed=seed).train(row)).detach() for row in weights]).numpy() for seed in (0, 1)
    )
    assert np.allclose(found.actual, actual, rtol=0, atol=1e-9)
    assert np.allclose(found.again, again, rtol=0, atol=1e-9)
    left_out = [(row == 0).nonzero().flatten() for row in weights]
    predicted = np.stack([-scores.values[rows].sum(0).numpy() for rows in left_out])
    assert np.allclose(found.predicted, predicted)
    assert found.score == pytest.approx(np.mean([spearman(predicted[:, j], actual[:, j]) for j in (0, 1)]))
    assert found.ceiling == pytest.approx(np.mean([spearman(again[:, j], actual[:, j]) for j in (0, 1)]))
    assert found.score.low <= found.score <= found.score.high
    assert (found.protocol, found.objectives, found.method) == ("leave out", ("0", "1"), "by hand")


@pytest.mark.parametrize(("protocol", "scale"), [("leave out", 1), ("half", 2)])
def test_the_score_across_seeds_is_beside_the_other_trainings(protocol, scale):
    scores = scores_of(normal(60, 2, seed=3))
    found = cf.lds(scores, recipe(), ask, protocol=protocol, drop=0.5, subsets=8, seeds=3)
    weights = scale * without_random(60, 8, 0.5, seed=0)
    others = [torch.stack([ask(recipe(seed=s).train(row)).detach() for row in weights]).numpy() for s in (1, 2)]
    each = [spearman(found.predicted[:, j], other[:, j]) for other in others for j in (0, 1)]
    assert found.across == pytest.approx(np.mean(each))


def test_half_subsets_each_with_another_seed():
    scores = scores_of(normal(60, 2, seed=3))
    found = cf.lds(scores, recipe(), ask, protocol="half", subsets=6, seeds=3)
    weights = 2 * without_random(60, 6, 0.5, seed=0)
    by_seed = [torch.stack([ask(recipe(seed=s).train(row)).detach() for row in weights]).numpy() for s in range(3)]
    assert np.allclose(found.actual, [by_seed[k % 3][k] for k in range(6)], rtol=0, atol=1e-9)
    assert np.allclose(found.again, [by_seed[(k + 1) % 3][k] for k in range(6)], rtol=0, atol=1e-9)
    assert np.allclose(found.predicted, ((weights - 1) @ scores.values).numpy())


def test_replay_reaches_what_retraining_can_find_and_noise_does_not():
    made = recipe()
    exact = cf.lds(cf.replay(made, ask), made, ask, drop=0.02, subsets=30)
    noise = cf.lds(scores_of(normal(60, 2, seed=3)), made, ask, drop=0.02, subsets=30)
    assert exact.score > 0.9
    assert abs(noise.score) < 0.5
    assert exact.ceiling == noise.ceiling


def test_the_seed_may_decide_more_than_the_order():
    scores = scores_of(normal(60, 2, seed=3))
    found = cf.lds(scores, lambda seed: recipe(init=network(seed), batch_size=None), ask, subsets=6)
    weights = without_random(60, 6, 0.01, seed=0)
    again = torch.stack([ask(recipe(init=network(1), batch_size=None).train(row)).detach() for row in weights])
    assert np.allclose(found.again, again, rtol=0, atol=1e-9)


def test_full_batches_have_no_seed_and_are_trained_once(tmp_path):
    bank = cf.Bank(recipe(batch_size=None), tmp_path)
    assert bank.with_seed(4) is bank
    found = cf.lds(scores_of(normal(60, 2, seed=3)), bank, ask, subsets=6)
    assert found.ceiling == pytest.approx(1)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_bank_answers_new_questions(tmp_path):
    bank = cf.Bank(recipe(), tmp_path)
    first = cf.lds(scores_of(normal(60, 2, seed=3)), bank, ask, subsets=5)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 10
    cf.lds(cf.replay(bank.recipe, lambda m: m[0].bias, groups=0), bank, lambda m: m[0].bias, subsets=5)
    assert sorted(tmp_path.iterdir()) == kept
    again = cf.lds(scores_of(normal(60, 2, seed=3)), bank, ask, subsets=5)
    assert np.array_equal(first.actual, again.actual)


def test_the_mean_rank_correlation_leaves_columns_without_variation_out():
    x = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
    y = np.array([[1.0, 1.0], [3.0, 2.0], [2.0, 3.0], [4.0, 4.0]])
    assert mean_rank_correlation(x, y) == pytest.approx(0.8)
    assert np.isnan(mean_rank_correlation(x[:, 1:], y[:, 1:]))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"protocol": "quarter"}, ValueError, "protocol='quarter'"),
        ({"subsets": 2}, errors.DataError, "subsets=2"),
        ({"seeds": 1}, errors.DataError, "seeds=1"),
        ({"drop": 1.0}, errors.DataError, r"drop=1\.0"),
        ({"scores": cf.Scores(torch.ones(9, 2), range(9), ("0", "1"), "")}, errors.DataError, "9 scores .* of 60"),
        ({"scores": cf.Scores(torch.ones(60, 1), range(60), ("x",), "")}, errors.ObjectiveError, r"\('x',\)"),
        ({"train": lambda seed: network(seed)}, TypeError, "Got Sequential for seed 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, match):
    options = {"scores": scores_of(torch.ones(60, 2)), "train": recipe(epochs=1), "objective": ask, "subsets": 3}
    with pytest.raises(error, match=match):
        cf.lds(**{**options, **changes})


# Removals.


def test_a_removal_curve_is_leave_out_of_the_strongest_and_of_random_groups():
    made = recipe()

    def one(model):
        return ask(model)[0]

    scores = cf.replay(made, one)
    for effect in ("raises", "lowers"):
        curve = cf.removal_curve(scores, made, one, [1, 5], effect=effect, draws=4)
        ranked = [label for label, _ in scores.top(5, effect=effect)]
        truth = cf.leave_out(made, one, {"one": ranked[:1], "five": ranked})
        assert curve.achieved == pytest.approx(truth.values[:, 0].tolist(), abs=1e-9)
        assert curve.predicted == pytest.approx(scores.sum_by({1: ranked[:1], 5: ranked}).values[:, 0].tolist())
        assert curve.sizes == (1, 5)
        assert all(one.low <= one <= one.high for one in curve.random)
        assert abs(curve.achieved[1]) > max(abs(curve.random[1].low), abs(curve.random[1].high))
    assert curve.achieved[1] < 0 < cf.removal_curve(scores, made, one, [5]).achieved[0]
    assert len(curve.plot().data) == 3


def test_sizes_and_questions_of_a_removal_curve():
    scores = cf.Scores(torch.tensor([[1.0], [2.0], [-1.0]]), range(3), ("m",), "")
    for sizes in ([], [0], [1, 3]):
        with pytest.raises(errors.DataError, match="needed 1 to 2"):
            cf.removal_curve(scores, lambda weights: pytest.fail("trained"), ask, sizes)
    with pytest.raises(errors.DataError, match="2 questions"):
        cf.removal_curve(scores_of(torch.ones(3, 2)), lambda weights: pytest.fail("trained"), ask, [1])


# Smoothness.


def test_smooth_training_moves_in_proportion():
    found = cf.smoothness(recipe(batch_size=None), ask, groups=6)
    assert found.pearson > 0.97
    assert found.slope == pytest.approx(1, abs=0.1)


def test_smoothness_scales_up_what_a_share_of_the_weight_does():
    made = recipe(batch_size=None)
    found = cf.smoothness(made, ask, drop=0.05, groups=3, nudge=0.25, seed=4)
    without = without_random(60, 3, 0.05, seed=4)
    full = ask(made.train()).detach()
    quarter = torch.stack([full - ask(made.train(1 - (1 - row) / 4)).detach() for row in without])
    whole = torch.stack([full - ask(made.train(row)).detach() for row in without])
    assert np.allclose(found.predicted, 4 * quarter, rtol=0, atol=1e-9)
    assert np.allclose(found.actual, whole, rtol=0, atol=1e-9)


def test_rough_training_is_warned_of_with_advice():
    with pytest.warns(errors.RoughTrainingWarning, match="a lower learning rate"):
        found = cf.smoothness(recipe(**ROUGH), ask, groups=8)
    assert found.pearson < 0.9


def test_smoothness_bounds_what_replay_can_predict():
    smooth, rough = recipe(), recipe(**ROUGH)
    bounds, reached = [], []
    for made in (smooth, rough):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.RoughTrainingWarning)
            bounds.append(cf.smoothness(made, ask, drop=0.02, groups=20).spearman)
        reached.append(cf.lds(cf.replay(made, ask, groups=0), made, ask, drop=0.02, subsets=20).score)
    assert bounds[0] > bounds[1]
    assert reached[0] > reached[1]


@pytest.mark.parametrize("changes", [{"groups": 2}, {"nudge": 0.0}, {"nudge": 1.0}])
def test_smoothness_needs_three_groups_and_a_share(changes):
    with pytest.raises(errors.DataError, match="at least 3 groups"):
        cf.smoothness(recipe(), ask, **changes)
