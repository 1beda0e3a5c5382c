"""TracIn: the similarity of gradients along a training, against every step written out."""

from functools import partial

import grid
import pytest
import torch
from reference import Dense

import crossfluence as cf
from crossfluence import errors

replay, tracin = (partial(verb, groups=0) for verb in (cf.replay, cf.tracin))  # no trainings to test the answers


def recipe(problem, **changes):
    data = problem.tensors[0] if len(problem.tensors) == 1 else problem.tensors
    return cf.Recipe(problem.build(), problem.loss, data, **{"epochs": 6, "l2": problem.l2, **changes})


def models(problem, **changes):
    """The model before each step of full batches."""
    return [problem.build(), *(recipe(problem, **{**changes, "epochs": k}).train() for k in range(1, 6))]


def close(found, wanted):
    assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()


PROBLEMS = pytest.mark.parametrize("problem", [grid.LOGISTIC, grid.CONTRASTIVE, grid.DEC_MOVING], ids=lambda p: p.name)


@PROBLEMS
def test_with_every_step_a_checkpoint_it_is_the_sum_over_all_steps(problem):
    found = tracin(recipe(problem, optimizer=cf.SGD(0.1)), problem.objective, checkpoints=6)
    wanted = 0
    for model in models(problem, optimizer=cf.SGD(0.1)):
        dense = Dense(model, problem.loss, problem.tensors, problem.l2)
        wanted = wanted - 0.1 * dense.slope(problem.objective) @ dense.K
    close(found.values[:, 0], wanted)


@PROBLEMS
def test_adam_divides_by_the_root_mean_square_of_gradients(problem):
    made = recipe(problem, optimizer=cf.Adam(0.02, eps=1e-3))
    found = tracin(made, problem.objective, checkpoints=6, preconditioned=True)
    square, wanted = 0, 0
    for count, model in enumerate(models(problem, optimizer=cf.Adam(0.02, eps=1e-3)), start=1):
        dense = Dense(model, problem.loss, problem.tensors, problem.l2)
        square = 0.999 * square + 0.001 * dense.field(dense.theta, dense.ones).square()
        scaled = dense.slope(problem.objective) / ((square / (1 - 0.999**count)).sqrt() + 1e-3)
        wanted = wanted - 0.02 * scaled @ dense.K
    close(found.values[:, 0], wanted)


def test_each_checkpoint_stands_for_the_learning_rates_of_its_stretch():
    problem, rates = grid.LOGISTIC, [1.0, 0.5, 0.5, 0.25, 0.25, 0.25]
    schedule = cf.StepDecay((1 / 6, 0.5), factor=0.5)
    found = tracin(recipe(problem, optimizer=cf.SGD(0.1), schedule=schedule), problem.objective, checkpoints=2)
    middle = []
    for k in (1, 4):
        first = recipe(problem, optimizer=cf.SGD(0.1), schedule=lambda t, k=k: rates[round(t * k)], epochs=k).train()
        dense = Dense(first, problem.loss, problem.tensors, problem.l2)
        middle.append(-dense.slope(problem.objective) @ dense.K)
    close(found.values[:, 0], 0.1 * (sum(rates[:3]) * middle[0] + sum(rates[3:]) * middle[1]))
    assert found.method == "tracin(checkpoints=2, preconditioned=False)"


def test_a_lasting_gradient_counts_as_often_as_momentum_keeps_it():
    made = recipe(grid.LOGISTIC, optimizer=cf.SGD(0.1, momentum=0.9))
    plain, scaled = (tracin(made, grid.LOGISTIC.ask, preconditioned=flag).values for flag in (False, True))
    close(scaled, 10 * plain)


def test_of_one_step_and_a_linear_question_it_is_replay():
    made = recipe(grid.DEC_MOVING, optimizer=cf.SGD(0.1), epochs=1)

    def linear(model):
        return model.centres.sum(0)

    close(tracin(made, linear).values, replay(made, linear).values)


def test_it_agrees_with_training_again_less_than_replay_does():
    problem = grid.SOFTMAX_ON_OUTPUTS
    made = recipe(problem, optimizer=cf.Adam(0.02), epochs=40, batch_size=20)
    truth = cf.leave_out(made, problem.objective, range(problem.n))
    exact, traced, scaled = (
        cf.compare(scores, truth).pearson
        for scores in (
            replay(made, problem.objective),
            tracin(made, problem.objective),
            tracin(made, problem.objective, preconditioned=True),
        )
    )
    assert exact > 0.95
    assert exact > max(traced, scaled)
    assert min(traced, scaled) > 0.3


def test_labels_and_wrong_numbers():
    made = recipe(grid.LOGISTIC, optimizer=cf.SGD(0.1))
    labels = [f"s{row}" for row in range(40)]
    assert tracin(made, grid.LOGISTIC.ask, ids=labels).ids == tuple(labels)
    with pytest.raises(errors.DataError, match="2 ids for 40"):
        tracin(made, grid.LOGISTIC.ask, ids=[0, 1])
    with pytest.raises(ValueError, match="checkpoints=0"):
        tracin(made, grid.LOGISTIC.ask, checkpoints=0)
    assert torch.equal(tracin(made, grid.LOGISTIC.ask, checkpoints=99).values, tracin(made, grid.LOGISTIC.ask).values)
