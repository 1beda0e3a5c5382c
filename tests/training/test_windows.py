"""Ordered streams, states between steps, scores of steps, and samples replaced in a window: beside brute force."""

import dataclasses

import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence.errors import (
    DataError,
    IdError,
    ResultFileError,
    StaleError,
    UnreliableWarning,
    UnsupportedError,
)

GEN = torch.Generator().manual_seed(0)
X = torch.randn(20, 3, dtype=torch.float64, generator=GEN)
Y = torch.randn(20, 1, dtype=torch.float64, generator=GEN)
OTHER = torch.randn(3, dtype=torch.float64, generator=GEN), torch.ones(1, dtype=torch.float64)


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def question(model):
    return {"first": model(X[:4]).sum(), "second": model(X[4:8]).square().mean()}


def recipe(**changed):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        init = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    options = {"optimizer": cf.SGD(0.05, 0.9), "epochs": 2, "batch_size": 3, "shuffle": False, "l2": 0.01} | changed
    return cf.Recipe(init, loss, (X, Y), **options)


CLIPPED = {"shuffle": True, "schedule": cf.linear, "clipping": 0.5}
OPTIMIZERS = [cf.SGD(0.05), cf.SGD(0.05, 0.9), cf.Adam(0.01, eps_root=1e-8), cf.AdamW(0.01, eps_root=1e-8)]


def test_an_ordered_stream_comes_in_the_order_of_the_data():
    rows = [step.tolist() for step in recipe().course().rows]
    assert rows[:2] == [[0, 1, 2], [3, 4, 5]]
    assert rows[6] == [18, 19]
    assert rows[7:] == rows[:7]
    assert recipe().with_seed(5).seed == 0
    assert recipe().content != recipe(shuffle=True).content


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("changed", [{}, CLIPPED], ids=["plain", "clipped"])
def test_a_state_that_was_saved_is_gone_on_from_to_the_bit(optimizer, changed, tmp_path):
    made = recipe(optimizer=optimizer, **changed)
    made.state(5).save(tmp_path / "state")
    resumed = made.resume(cf.TrainingState.load(tmp_path / "state"))
    for one, other in zip(resumed.parameters(), made.train().parameters(), strict=True):
        assert torch.equal(one, other)
    assert made.steps == 14


def test_a_target_that_is_held_is_in_the_state():
    field = cf.FieldLoss(
        lambda model, frozen, batch, w: (w * (model(batch[0]) - frozen(batch[0]) - 1)[:, 0] ** 2).sum()
    )
    made = recipe(hold=4)
    made = cf.Recipe(made.init, field, (X, Y), optimizer=cf.SGD(0.01), epochs=2, batch_size=3, shuffle=False, hold=4)
    resumed = made.resume(made.state(6))
    for one, other in zip(resumed.parameters(), made.train().parameters(), strict=True):
        assert torch.equal(one, other)


def test_scores_of_steps_and_of_samples_add_up_to_the_same():
    made = recipe()
    steps, samples = cf.replay(made, question, by="step"), cf.replay(made, question)
    assert steps.ids == tuple(range(14))
    torch.testing.assert_close(steps.values.sum(0), samples.values.sum(0))
    window = steps.sum_by({"first half": range(7), "second half": range(7, 14)})
    torch.testing.assert_close(window.values.sum(0), samples.values.sum(0))
    assert steps.verdict.level in {"sizes", "order"}
    assert "groups of steps" in str(steps.verdict)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_the_score_of_a_step_is_the_derivative_by_its_weight(optimizer):
    made = recipe(optimizer=optimizer)
    found = cf.replay(made, question, by="step", groups=0)

    def ended(step, factor):
        course = made.course()
        point = course.start(course.theta)
        for number in range(len(course)):
            batch, weights = course.part(number, made.ones)
            point = course.advance(point, number, batch, weights * (factor if number == step else 1))
        answers = question(made.holding(point.theta))
        return torch.stack([answers[name].detach() for name in found.objectives])

    for step in (0, 6, 13):
        numeric = (ended(step, 1 + 1e-4) - ended(step, 1 - 1e-4)) / 2e-4
        torch.testing.assert_close(found.values[step], numeric, rtol=1e-4, atol=1e-8)


def brute(made, places, window, share=1.0):
    """Training in which some rows of a window have other content, written out; or a part of the way there."""
    course, x, y = made.course(), X.clone(), Y.clone()
    for row in places:
        x[row], y[row] = OTHER
    point = course.start(course.theta)
    for step in range(len(course)):
        (a, b), weights = course.part(step, made.ones)
        if window[0] <= step < window[1]:
            rows = course.rows[step]
            new = x[rows], y[rows]

            def mixed(theta, frozen, batch, w, new=new):
                old = course.total(theta, frozen, batch, w * (1 - share))
                return old + course.total(theta, frozen, new, w * share)

            one = dataclasses.replace(course, total=mixed)
            point = one.advance(point, step, (a, b), weights)
        else:
            point = course.advance(point, step, (a, b), weights)
    answers = question(made.holding(point.theta))
    return torch.stack([value.detach() for value in answers.values()])


@pytest.mark.filterwarnings("ignore:.*too large for a first-order prediction")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_predicted_is_the_derivative_and_achieved_the_training_with_other_rows(optimizer):
    made = recipe(optimizer=optimizer)
    found = cf.what_if(made, question, replace={4: OTHER, 8: OTHER}, steps=(1, 9))
    torch.testing.assert_close(found.after, brute(made, (4, 8), (1, 9)))
    torch.testing.assert_close(found.before, brute(made, (4, 8), (1, 9), 0.0))
    numeric = (brute(made, (4, 8), (1, 9), 1e-5) - brute(made, (4, 8), (1, 9), -1e-5)) / 2e-5
    torch.testing.assert_close(found.predicted, numeric, rtol=1e-4, atol=1e-7)
    assert found.objectives == ("first", "second")


def test_a_small_replacement_is_predicted():
    made = recipe()
    near = {row: (X[row] + 1e-4, Y[row]) for row in range(20)}
    found = cf.what_if(made, question, replace=near, steps=(7, 14))
    torch.testing.assert_close(found.predicted, found.achieved, rtol=2e-2, atol=1e-8)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_the_slope_goes_to_one_as_the_size_of_a_replacement_goes_to_zero(optimizer):
    made, away = recipe(optimizer=optimizer), torch.randn(20, 3, dtype=torch.float64, generator=GEN)
    gaps = []
    for size in (4e-4, 1e-4):
        near = {row: (X[row] + size * away[row], Y[row]) for row in range(0, 20, 4)}
        found = cf.what_if(made, question, replace=near, steps=(3, 11))
        gaps.append((found.achieved / found.predicted - 1).abs())
    assert gaps[1].max() < 5e-3
    torch.testing.assert_close(gaps[0] / gaps[1], torch.full((2,), 4.0, dtype=torch.float64), rtol=0.1, atol=0)


def test_a_replacement_too_large_for_first_order_is_said():
    made = recipe()
    far = {row: (30 * X[row], Y[row]) for row in range(20)}
    said = (
        r"In this window the replacement is too large .*; steps 7 to 14: (first|second), predicted .*Believe `achieved`"
    )
    with pytest.warns(UnreliableWarning, match=said):
        cf.what_if(made, question, replace=far, steps=(7, 14))
    near = {4: (X[4] + 1e-3, Y[4]), 12: (30 * X[12], Y[12])}
    with pytest.warns(UnreliableWarning, match="In 1 of 2 windows the replacement is too large .*; steps 4 to 5"):
        cf.what_if(made, question, replace=near, steps=[(1, 2), (4, 5)])


@pytest.mark.filterwarnings("ignore:.*too large for a first-order prediction")
def test_several_windows_are_those_asked_one_by_one():
    made, windows = recipe(optimizer=cf.Adam(0.01, eps_root=1e-8)), [(7, 14), (1, 9), (2, 3)]
    other = {4: OTHER, 8: OTHER}
    together = cf.what_if(made, question, replace=other, steps=windows)
    for window, found in zip(windows, together, strict=True):
        alone = cf.what_if(made, question, replace=other, steps=window)
        assert found.method == alone.method
        torch.testing.assert_close(found.predicted, alone.predicted)
        torch.testing.assert_close(found.after, alone.after)
        torch.testing.assert_close(found.after, brute(made, (4, 8), window))


@pytest.mark.filterwarnings("ignore:.*too large for a first-order prediction")
def test_rows_have_labels_and_data_may_be_a_mapping():
    made = recipe()
    mapping = cf.Recipe(
        made.init, lambda model, batch: (model(batch["x"]) - batch["y"]).square().sum(1), {"x": X, "y": Y},
        optimizer=cf.SGD(0.05, 0.9), epochs=2, batch_size=3, shuffle=False, l2=0.01,
    )  # fmt: skip
    names = [f"row {row}" for row in range(20)]
    other = {"x": OTHER[0], "y": OTHER[1]}
    found = cf.what_if(mapping, question, replace={"row 4": other}, steps=(0, 3), ids=names)
    wanted = cf.what_if(made, question, replace={4: OTHER}, steps=(0, 3))
    torch.testing.assert_close(found.predicted, wanted.predicted)
    torch.testing.assert_close(found.after, wanted.after)


def test_what_cannot_be_replaced_is_refused_with_a_sentence(tmp_path):
    made = recipe()
    with pytest.raises(DataError, match=r"window \(10, 15\) lies outside of training, which has 14 steps"):
        cf.what_if(made, question, replace={4: OTHER}, steps=(10, 15))
    with pytest.raises(DataError, match="needed the first step and the one after the last"):
        cf.what_if(made, question, replace={4: OTHER}, steps=3)
    with pytest.raises(DataError, match="None of the 1 samples is trained on in steps 0 to 1"):
        cf.what_if(made, question, replace={4: OTHER}, steps=(0, 1))
    with pytest.raises(DataError, match=r"window \(10, 15\) lies outside of training, which has 14 steps"):
        cf.what_if(made, question, replace={4: OTHER}, steps=[(0, 3), (10, 15)])
    with pytest.raises(DataError, match="In steps 0 to 3 every replacement equals what it replaces"):
        cf.what_if(made, question, replace={4: (X[4], Y[4])}, steps=(0, 3))
    with pytest.raises(IdError, match="Unknown id 20"):
        cf.what_if(made, question, replace={20: OTHER}, steps=(0, 3))
    with pytest.raises(DataError, match=r"has shape \(2,\); the data has \(3,\)"):
        cf.what_if(made, question, replace={4: (torch.ones(2), OTHER[1])}, steps=(0, 3))
    with pytest.raises(DataError, match="has no part 0; needed one row of each of the 2"):
        cf.what_if(made, question, replace={4: (OTHER[0],)}, steps=(0, 3))
    with pytest.raises(DataError, match="nothing to replace"):
        cf.what_if(made, question, replace={}, steps=(0, 3))
    coupled = cf.WeightedLoss(lambda model, batch, weights: (weights * model(batch[0])[:, 0]).sum() ** 2)
    with pytest.raises(UnsupportedError, match="needs a loss of each sample"):
        cf.what_if(recipe_of(coupled), question, replace={4: OTHER}, steps=(0, 3))
    with pytest.raises(StaleError, match="state is of another recipe"):
        made.resume(recipe(epochs=3).state(2))
    with pytest.raises(DataError, match="no state before step 15; the training has 14 steps"):
        made.state(15)
    with pytest.raises(ResultFileError):
        cf.TrainingState.load(tmp_path / "none")
    with pytest.raises(ValueError, match="by='epoch'; needed 'sample' or 'step'"):
        cf.replay(made, question, by="epoch")


def recipe_of(kind):
    return cf.Recipe(recipe().init, kind, (X, Y), optimizer=cf.SGD(0.01), epochs=2, batch_size=3, shuffle=False)
