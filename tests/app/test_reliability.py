"""The first sentence of an answer: levels, reasons and what to type, at the thresholds that stand in its module."""

from types import SimpleNamespace

import pytest
import torch

from crossfluence import Scores, compare
from crossfluence.app.report.reliability import (
    Removed,
    effect_in,
    foretold,
    judged,
    left_of_training,
    left_out_alone,
    removed_together,
)
from crossfluence.app.report.verdicts import vectors_alike


def level(found):
    return judged(found).level


def group(predicted, achieved, newton=None, *, random=False):
    return Removed("it", predicted, newton, achieved, random)


def together(*groups):
    return level(removed_together(groups, "the margin", " nats"))


@pytest.mark.parametrize(
    ("predicted", "achieved", "newton", "expected"),
    [
        (-0.2738, -0.2673, -0.2595, "sizes"),  # the demo
        (1.0, 1.49, None, "sizes"),
        (1.0, 1.51, None, "order"),
        (1.0, 0.21, None, "order"),
        (1.0, 0.19, None, "unreliable"),
        (1.0, 5.1, None, "unreliable"),
        (1.0, -1.0, None, "unreliable"),
        (-2.366, -0.409, -0.4, "order"),  # it bends, and the Newton step follows
        (-2.512, -0.283, -0.527, "unreliable"),  # neither does
        (-0.9, -0.74, 2.27, "unreliable"),  # the sum is near by luck: the Newton step says the opposite
        (-0.9, -0.74, -7.4, "unreliable"),
        (-0.9, -0.74, -0.3, "order"),
        (1.0, -1.0, -1.0, "unreliable"),  # the Newton step is right, and the sum has the other sign
        (1.0, 0.1, float("nan"), "unreliable"),
        (0.0, 1.0, None, "unreliable"),
        (1.0, float("nan"), None, "unreliable"),
    ],
)
def test_a_group_is_judged_by_achieved_per_predicted_change(predicted, achieved, newton, expected):
    assert together(group(predicted, achieved, newton)) == expected


def test_the_sentence_names_the_prediction_that_went_astray():
    found = judged(removed_together([group(-0.9, -0.74, 2.27)], "the margin", " nats"))
    assert "by -0.740 nats, predicted -0.900 by summed scores and +2.270 by one Newton step" in str(found)


def test_another_sign_within_noise_is_no_more_than_noise():
    noisy = group(0.0, 0.3, random=True)
    assert together(group(1.0, 1.0), group(0.1, -0.15, 0.1), noisy) == "order"
    assert together(group(1.0, 1.0), group(0.1, -0.25, 0.1), noisy) == "unreliable"
    assert foretold(Removed("it", 0.1, 0.1, -0.15), 1.0, 0.3) == "order"
    assert foretold(Removed("it", 0.1, 0.1, -0.15), 1.0) == "unreliable"


def test_a_weak_group_is_judged_beside_the_strongest():
    strong = group(1.0, 1.0)
    assert together(strong, group(0.02, -0.05)) == "order"
    assert together(strong, group(0.2, -0.2)) == "unreliable"


@pytest.mark.parametrize(("achieved", "expected"), [(0.3, "sizes"), (0.4, "order"), (0.65, "unreliable")])
def test_random_groups_tell_the_noise_of_training(achieved, expected):
    assert together(group(1.0, 1.0), group(0.1, achieved, random=True)) == expected


@pytest.mark.parametrize(("drift", "expected"), [(0.1, "sizes"), (-0.3, "order"), (0.6, "unreliable")])
def test_what_is_left_of_training_is_read_beside_the_changes(drift, expected):
    assert level(left_of_training(drift, [group(1.0, 1.0)], "the margin", " nats")) == expected


def agreement(predicted, actual):
    scores = [Scores(torch.tensor([values]).T, range(len(values)), ("m",), "by hand") for values in (predicted, actual)]
    return compare(*scores)


def test_one_by_one_correlation_and_slope_decide():
    x = [float(number) for number in range(1, 13)]
    assert level(left_out_alone(agreement(x, x), "row")) == "sizes"
    assert level(left_out_alone(agreement(x, [2 * value for value in x]), "row")) == "order"
    assert level(left_out_alone(agreement(x, x[::-1]), "row")) == "unreliable"
    assert level(left_out_alone(agreement([1.0, 1.1, 1.2], [1.05, 1.0, 1.15]), "row")) in {"sizes", "order"}  # r = .5
    assert level(left_out_alone(agreement([1.0, 1.1, 1.2], [-1.0, 1.0, -1.2]), "row")) == "unreliable"


def test_the_sentence_holds_the_worst_reasons_and_what_to_type():
    found = judged(
        [("sizes", "fine"), ("unreliable", "this"), ("order", "that"), ("unreliable", "more")], advice=["--k 9"]
    )
    assert not found.dependable
    assert str(found) == "These scores cannot be relied on: this; more; type --k 9."
    fine = judged([("sizes", "r = 1.000")], advice=["--k 9"])
    assert fine.dependable
    assert str(fine) == "These scores can be relied on, in order and size: r = 1.000."
    assert str(judged([("order", "slope 3")])) == (
        "These scores can be relied on in their order, not in their sizes: slope 3."
    )


def test_a_verdict_from_elsewhere_counts_as_well():
    verdict = SimpleNamespace(level="unreliable", reasons=("the loss is rough",), advice=("damping=1",))
    found = judged([("sizes", "fine")], verdict=verdict)
    assert (found.level, found.reasons, found.advice) == ("unreliable", ("the loss is rough",), ("damping=1",))


def test_an_effect_is_one_in_either_direction():
    assert effect_in(0.05, 12870) == "as asked"
    assert effect_in(0.06, 12870) == effect_in(0.94, 12870) == "none"
    assert effect_in(0.96, 12870) == effect_in(1.0, 12870) == "opposite"
    assert effect_in(1.0, 6) == "none"  # two words and two: the smallest p is a sixth


def test_vectors_that_tell_no_words_apart_are_unreliable_whatever_the_effect_size():
    ((level, said),) = vectors_alike([2e-12, -4e-12, 1e-13])
    assert level == "unreliable"
    assert "4e-12" in said
    assert vectors_alike([2e-3, -4e-12]) == []
