"""Agreement against the textbook's implementation."""

import copy
import pickle

import numpy as np
import pytest
import torch
from grid import normal
from scipy import stats

import crossfluence as cf


def scores(values, ids=None, objectives=None):
    values = values[:, None] if values.ndim == 1 else values
    names = objectives or tuple(f"m{k}" for k in range(values.shape[1]))
    return cf.Scores(values, tuple(range(len(values))) if ids is None else ids, names, "by hand")


CASES = {
    "noise": (normal(30, seed=0), normal(30, seed=1)),
    "line": (normal(30, seed=0), 2.5 * normal(30, seed=0) - 7),
    "ties": (normal(40, seed=2).round(), normal(40, seed=2).add(normal(40, seed=3)).round()),
    "far from zero": (normal(30, seed=4) + 1e6, normal(30, seed=4) + normal(30, seed=5) + 1e6),
    "tiny": (1e-9 * normal(30, seed=6), 1e-12 * (normal(30, seed=6) - normal(30, seed=7))),
    "two questions": (normal(15, 2, seed=8), normal(15, 2, seed=8) + normal(15, 2, seed=9)),
}


@pytest.mark.parametrize(("x", "y"), CASES.values(), ids=list(CASES))
def test_figures_are_those_of_scipy(x, y):
    found = cf.compare(scores(x), scores(y))
    x, y = x.flatten().numpy(), y.flatten().numpy()
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-8)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-8)
    assert found.slope == pytest.approx(stats.linregress(x, y).slope, rel=1e-6)


def test_each_objective_has_its_own_correlation():
    x, y = CASES["two questions"]
    found = cf.compare(scores(x), scores(y)).pearson_by_objective
    wanted = {f"m{k}": stats.pearsonr(x[:, k], y[:, k]).statistic for k in range(2)}
    assert found == pytest.approx(wanted)


def test_the_interval_is_that_of_resampling_the_ids():
    x, y = CASES["two questions"]
    found = cf.compare(scores(x), scores(y)).pearson
    generator = np.random.default_rng(1)
    draws = [generator.integers(0, len(x), len(x)) for _ in range(3000)]
    resampled = [stats.pearsonr(x[rows].flatten(), y[rows].flatten()).statistic for rows in draws]
    assert (found.low, found.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.03)
    assert found.low < found < found.high


def test_ids_and_objectives_are_matched_by_name_not_by_place():
    x = normal(10, 3, seed=10)
    predicted = scores(x, tuple("abcdefghij"), ("p", "q", "r"))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))[:6]
    actual = scores(x[order][:, [2, 0]], tuple("abcdefghij"[k] for k in order), ("r", "p"))
    found = cf.compare(predicted, actual)
    assert (found.predicted == found.actual).all()
    assert found.slope == pytest.approx(1.0)
    assert found.ids == actual.ids
    assert found.objectives == ("r", "p")


def test_swapping_the_sides_keeps_correlations():
    x, y = CASES["noise"]
    one, other = cf.compare(scores(x), scores(y)), cf.compare(scores(y), scores(x))
    assert one.pearson == pytest.approx(other.pearson)
    assert one.spearman == pytest.approx(other.spearman)
    assert one.slope * other.slope == pytest.approx(one.pearson**2)


def test_what_does_not_vary_agrees_with_nothing():
    found = cf.compare(scores(torch.zeros(5)), scores(normal(5, seed=0)))
    assert all(np.isnan(figure) for figure in (found.pearson, found.spearman, found.slope))


def test_comparing_twice_gives_the_same_intervals_and_leaves_numpy_alone():
    state = repr(np.random.get_state())  # noqa: NPY002
    x, y = CASES["noise"]
    assert repr(cf.compare(scores(x), scores(y))) == repr(cf.compare(scores(x), scores(y)))
    assert repr(np.random.get_state()) == state  # noqa: NPY002


def test_two_ids_are_too_few():
    with pytest.raises(ValueError, match="2 retrained ids; needed at least 3"):
        cf.compare(scores(torch.ones(5)), scores(torch.ones(2)))


def test_what_was_not_predicted_cannot_be_compared():
    with pytest.raises(KeyError, match="Unknown id 5"):
        cf.compare(scores(torch.ones(5)), scores(torch.ones(6)))
    with pytest.raises(KeyError, match="'other'"):
        cf.compare(scores(torch.ones(5)), scores(torch.ones(5), objectives=("other",)))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_an_estimate_is_a_float_with_ends_and_survives_copying(duplicate):
    estimate = duplicate(cf.Estimate(0.5, 0.25, 0.75))
    assert (estimate, estimate.low, estimate.high) == (0.5, 0.25, 0.75)
    assert estimate + 1 == 1.5
    assert f"{estimate}" == "0.500 [0.250, 0.750]"


def test_the_picture_shows_every_id_and_the_line_of_equality():
    pytest.importorskip("plotly")
    x, y = CASES["two questions"]
    figure = cf.compare(scores(x), scores(y)).plot()
    assert [len(trace.x) for trace in figure.data] == [15, 15, 2]
