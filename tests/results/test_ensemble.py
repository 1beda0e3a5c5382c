"""Ensembles: the mean over seeds, its error, and whether a stated probability of a false name holds."""

import dataclasses
import math

import pytest
import torch
from grid import normal
from safetensors.torch import save as to_bytes

import crossfluence as cf
from crossfluence import errors
from crossfluence._results.scores import FORMAT
from crossfluence._results.significance import student_limit


def members(k=5, n=12, m=2, *, seed=0, effects=0.0):
    """k scores of n samples and m objectives, each the effects and noise of its own."""
    draws = normal(k, n, m, seed=seed) + effects
    names = ("x", "y", *map(str, range(2, m)))[:m]
    return [cf.Scores(values, range(n), names, "replay") for values in draws]


FOUND = cf.ensemble(members())


# What it computes.


def test_mean_and_error_are_those_of_numpy():
    values = torch.stack([one.values for one in members()]).numpy()
    assert torch.allclose(FOUND.values, torch.tensor(values.mean(0)), rtol=1e-12, atol=1e-14)
    assert torch.allclose(FOUND.errors, torch.tensor(values.std(0, ddof=1) / math.sqrt(5)), rtol=1e-12, atol=1e-14)
    assert (FOUND.ids, FOUND.objectives) == (tuple(range(12)), ("x", "y"))
    assert (FOUND.method, FOUND.members, FOUND.report) == ("mean of 5: replay", 5, None)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_equal_members_have_no_error_to_the_bit(k):
    one = members(1)[0]
    found = cf.ensemble([one] * k)
    assert torch.equal(found.values, one.values)
    assert torch.equal(found.errors, torch.zeros(12, 2, dtype=torch.float64))


def test_members_may_come_in_any_order_and_name_things_in_any_order():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    turned = [
        cf.Scores(one.values[order][:, [1, 0]], order.tolist(), ("y", "x"), "replay") for one in reversed(members())
    ]
    found = cf.ensemble(one for one in [members()[0], *turned[:-1]])
    assert (found.ids, found.objectives) == (FOUND.ids, FOUND.objectives)
    assert torch.allclose(found.values, FOUND.values, rtol=1e-12, atol=1e-14)
    assert torch.allclose(found.errors, FOUND.errors, rtol=1e-12, atol=1e-14)


def test_errors_shrink_as_one_over_the_root_of_the_number_of_members():
    few, many = (cf.ensemble(members(k, 40, 100)).errors.square().mean().sqrt() for k in (4, 64))
    assert few == pytest.approx(1 / 2, rel=0.03)
    assert many == pytest.approx(1 / 8, rel=0.03)


def test_errors_are_exact_where_members_are_large_beside_their_spread():
    offset = [dataclasses.replace(one, values=one.values + 2.0**40) for one in members()]
    assert torch.allclose(cf.ensemble(offset).errors, FOUND.errors, rtol=1e-3)


def test_points_of_a_training_are_averaged_before_trainings_are():
    trainings = [members(3, seed=seed) for seed in range(4)]
    found = cf.ensemble(cf.ensemble(points) for points in trainings)
    means = torch.stack([torch.stack([point.values for point in points]).mean(0) for points in trainings])
    assert found.members == 4
    assert torch.allclose(found.errors, means.std(0) / 2, rtol=1e-12)


def test_members_of_another_precision_are_added_up_in_double():
    singles = [dataclasses.replace(one, values=one.values.float()) for one in members()]
    found = cf.ensemble(singles)
    assert found.values.dtype == found.errors.dtype == torch.float64
    assert torch.allclose(found.values, FOUND.values, rtol=1e-5, atol=1e-6)


# What stands out.


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 30, 1000])
@pytest.mark.parametrize("level", [0.3, 0.05, 1e-4, 1e-9])
def test_the_limit_is_the_quantile_of_student_s_distribution(level, freedom):
    stats = pytest.importorskip("scipy.stats")
    assert student_limit(level, freedom) == pytest.approx(stats.t.isf(level / 2, freedom), rel=1e-9)


def test_the_list_is_that_of_tests_one_by_one_with_bonferroni():
    stats = pytest.importorskip("scipy.stats")
    made = members(6, 40, 1, seed=3, effects=torch.linspace(-3, 3, 40, dtype=torch.float64)[:, None])
    values = torch.stack([one.values[:, 0] for one in made]).numpy()
    p = stats.ttest_1samp(values, 0).pvalue * 40
    found = cf.ensemble(made)
    for effect, sign in (("raises", 1), ("lowers", -1)):
        listed = found.top(40, effect=effect, significance=0.05)
        means = values.mean(0) * sign
        assert [label for label, _ in listed] == sorted(
            ((p <= 0.05) & (means > 0)).nonzero()[0].tolist(), key=lambda row: -means[row]
        )
        assert 0 < len(listed) < len(found.top(40, effect=effect))


@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_lists_hold_a_false_name_as_seldom_as_stated(k, shared):
    """Nothing has an effect; with independent noise the share is also close to what was stated, not far below."""
    n, level, repeats = 20, 0.2, 1000
    noise = normal(k, n, repeats, seed=k) + shared * normal(k, 1, repeats, seed=k + 100)
    names = [f"repeat {number}" for number in range(repeats)]
    found = cf.ensemble(cf.Scores(values, range(n), names, "replay") for values in noise)
    listed = [
        found.top(1, name, significance=level) + found.top(1, name, effect="lowers", significance=level)
        for name in names
    ]
    false = sum(map(bool, listed))
    slack = 3 * math.sqrt(level * (1 - level) / repeats)
    assert false / repeats <= level + slack
    if not shared:
        assert false / repeats >= 1 - (1 - level / n) ** n - slack


def test_more_members_find_more_of_what_is_there():
    effects = torch.zeros(100, 1, dtype=torch.float64).index_fill(0, torch.arange(10), 1.0)
    listed = [cf.ensemble(members(k, 100, 1, effects=effects)).top(significance=0.05) for k in (4, 16, 64)]
    assert [len(names) for names in listed] == sorted(len(names) for names in listed)
    assert len(listed[0]) < 5
    assert {label for label, _ in listed[2]} == set(range(10))


def test_only_what_is_listed_changes_with_significance():
    found = cf.ensemble(members(8, 30, 1, effects=torch.arange(30.0)[:, None]))
    every, standing = found.top(30), found.top(30, significance=0.01)
    assert standing == [pair for pair in every if pair in standing]
    assert found.top(2, significance=0.01) == standing[:2]


def test_a_nan_is_no_effect_and_spoils_no_other():
    made = members(8, 3, 1, effects=torch.tensor([[5.0], [5.0], [0.0]]))
    made[2].values[1] = math.nan
    assert [label for label, _ in cf.ensemble(made).top(significance=0.05)] == [0]


# What it is used for.


def test_sums_carry_no_errors_and_sums_of_members_do():
    groups = ["u", "v"] * 6
    summed = FOUND.sum_by(groups)
    assert summed.errors is None
    with pytest.raises(ValueError, match=r"no errors.*ensemble\(member\.sum_by\(groups\) for member in members\)"):
        summed.top(objective="x", significance=0.05)
    right = cf.ensemble(one.sum_by(groups) for one in members())
    assert torch.allclose(right.values, summed.values, rtol=1e-12)
    rows = torch.stack([one.values[::2].sum(0) for one in members()])
    assert torch.allclose(right.errors[0], rows.std(0) / 5**0.5, rtol=1e-12)


def test_a_choice_of_samples_keeps_their_errors():
    chosen = FOUND.select([7, 2])
    assert torch.equal(chosen.errors, FOUND.errors[[7, 2]])
    assert chosen.members == 5


def test_agreement_takes_the_means():
    single = cf.Scores(FOUND.values, FOUND.ids, FOUND.objectives, "replay")
    truth = members(1, seed=9)[0]
    found, wanted = cf.compare(FOUND, truth), cf.compare(single, truth)
    assert (float(found.pearson), found.slope.low) == (float(wanted.pearson), wanted.slope.low)
    assert found.method == "mean of 5: replay"


@pytest.mark.parametrize("made", [FOUND, members(1)[0]], ids=["with errors", "without"])
def test_a_file_keeps_errors_and_is_read_where_there_are_none(made, tmp_path):
    made.save(tmp_path / "kept")
    loaded = cf.Scores.load(tmp_path / "kept")
    assert (loaded.members, loaded.method) == (made.members, made.method)
    assert torch.equal(loaded.values, made.values)
    assert loaded.errors is None if made.errors is None else torch.equal(loaded.errors, made.errors)


def test_a_file_from_before_there_were_errors_opens(tmp_path):
    header = {"format": FORMAT, "ids": "[0, 1]", "objectives": '["m"]', "method": "CG", "report": "null"}
    (tmp_path / "old").write_bytes(to_bytes({"values": torch.ones(2, 1)}, metadata=header))
    loaded = cf.Scores.load(tmp_path / "old")
    assert (loaded.errors, loaded.members, loaded.ids) == (None, 1, (0, 1))


def test_a_table_has_a_column_of_errors_only_where_there_are_some():
    pytest.importorskip("pandas")
    from crossfluence.app.report.page import frame_csv

    frame = FOUND.to_frame()
    assert list(frame.columns) == ["x", "y", "error of x", "error of y"]
    assert frame.loc[3, "error of y"] == FOUND.errors[3, 1]
    header, first, *_ = frame_csv(FOUND).decode().splitlines()
    assert header == "id,x,y,error of x,error of y"
    assert int(first.split(",")[0]) == int(FOUND.values[:, 0].abs().argmax())  # still in the order of the values
    assert frame_csv(members(1)[0]).decode().splitlines()[0] == "id,x,y"


def test_a_picture_shows_the_error_of_each_bar():
    pytest.importorskip("plotly")
    (bars,) = FOUND.plot("y", k=2).data
    assert list(bars.error_x.array) == [float(FOUND.errors[int(label), 1]) for label in bars.y]
    assert members(1)[0].plot("y").data[0].error_x.array is None


def test_seeds_of_a_training_are_members_and_their_mean_is_checked_as_scores_are():
    def ask(model):
        return model.weight.sum()

    x = normal(30, 2, seed=0)
    recipe = cf.Recipe(
        torch.nn.Linear(2, 1).double(),
        lambda model, batch: (model(batch) - batch.sum(1, keepdim=True).sin()).square().sum(1),
        x,
        optimizer=cf.SGD(0.1),
        epochs=3,
        batch_size=10,
    )
    found = cf.ensemble(cf.replay(recipe.with_seed(seed), ask) for seed in range(4))
    assert found.errors.min() > 0
    curve = cf.removal_curve(found, recipe, ask, [2], draws=2)
    assert curve.predicted[0] == pytest.approx(sum(score for _, score in found.top(2)))
    assert cf.lds(found, recipe, ask, subsets=8).score > 0


# Bad input.


def test_what_does_not_fit_is_refused_with_a_sentence():
    one, two = members(2)
    for error, sentence, call in (
        (errors.DataError, "Got 1 members; needed at least 2", lambda: cf.ensemble([one])),
        (errors.DataError, "Got 0 members", lambda: cf.ensemble([])),
        (errors.IdError, "Member 1 has other ids than member 0, 2 missing: 0, 3", lambda: cf.ensemble(
            [one, two.select([label for label in range(12) if label not in {0, 3}])]
        )),
        (errors.IdError, "Member 2 has other ids .* 1 missing: 11; 1 too many: 'z'", lambda: cf.ensemble(
            [one, two, dataclasses.replace(two, ids=(*range(11), "z"))]
        )),
        (errors.IdError, "other objectives than member 0, 1 missing: 'y'; 1 too many: 'w'", lambda: cf.ensemble(
            [one, dataclasses.replace(two, objectives=("x", "w"))]
        )),
        (ValueError, "significance=5; needed a probability", lambda: FOUND.top(objective="x", significance=5)),
        (ValueError, r"\(replay\) have no errors.*ensemble\(\[", lambda: one.top(objective="x", significance=0.05)),
        (ValueError, "errors of 'x' are zero: the 2 members are equal.*seed that changes it", lambda: cf.ensemble(
            [one, one]
        ).top(objective="x", significance=0.05)),
        (ValueError, r"errors of shape \(2,\) and members=2; needed .*, \(12, 2\)", lambda: dataclasses.replace(
            one, errors=torch.ones(2), members=2
        )),
        (ValueError, "members=1; needed .* at least 2", lambda: dataclasses.replace(one, errors=one.values.abs())),
    ):  # fmt: skip
        with pytest.raises(error, match=sentence):
            call()
