"""Replay: the derivative of the end of training by every weight, against one long graph and against training again."""

from functools import partial

import grid
import pytest
import torch
from grid import normal
from reference import unrolled
from torch import nn
from torch.utils.data import TensorDataset

import crossfluence as cf
from crossfluence import errors

replay = partial(cf.replay, groups=0)  # the derivative itself; whether it can be believed is tested in test_verdict.py
PROBLEMS = [pytest.param(problem, id=problem.name) for problem in grid.PROBLEMS]
OPTIMIZERS = [
    cf.SGD(0.1),
    cf.SGD(0.05, momentum=0.9),
    cf.Adam(0.02),
    cf.Adam(0.02, betas=(0.7, 0.9), eps_root=1e-4),
    cf.AdamW(0.02, weight_decay=0.3),
]


def recipe(problem, **changes):
    data = problem.tensors[0] if len(problem.tensors) == 1 else problem.tensors
    options = {"optimizer": cf.Adam(0.02), "epochs": 5, "batch_size": 16, "l2": problem.l2, **changes}
    return cf.Recipe(problem.build(), problem.loss, data, **options)


def close(found, wanted, share=1e-8):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= share * wanted.abs().max()


# Exact.


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_scores_are_those_of_one_long_graph(problem, optimizer):
    made = recipe(problem, optimizer=optimizer, schedule=cf.WarmUp(0.3), hold=2)
    wanted = [unrolled(problem, made, objective) for objective in problem.objectives.values()]
    close(replay(made, problem.ask).values, torch.stack(wanted, dim=1))


@pytest.mark.parametrize("hold", [1, 3, 100])
@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:3], ids=repr)
def test_the_held_target_carries_the_derivative_of_the_steps_before_it(optimizer, hold):
    problem = grid.DEC_MOVING
    made = recipe(problem, optimizer=optimizer, hold=hold, batch_size=None, epochs=20)
    close(replay(made, problem.objective).values[:, 0], unrolled(problem, made, problem.objective))


@pytest.mark.parametrize("problem", [grid.SOFTMAX_ON_OUTPUTS, grid.CONTRASTIVE, grid.DEC_MOVING], ids=lambda p: p.name)
def test_scores_are_differences_of_retrainings_with_slightly_other_weights(problem):
    made, h = recipe(problem, schedule=cf.cosine), 1e-5
    steps = h * torch.eye(problem.n, dtype=torch.float64)[:6]
    models = [problem.objective(model).detach() for model in made.retrain(1 + torch.cat([steps, -steps]))]
    wanted = (torch.stack(models[:6]) - torch.stack(models[6:])) / (2 * h)
    close(replay(made, problem.objective).values[:6, 0], wanted, 1e-5)


@pytest.mark.parametrize("keep", [2, 3, 5, 8, 14, 15, 1000])
def test_the_number_of_points_kept_does_not_matter(keep):
    problem = grid.DEC_MOVING
    made = recipe(problem)  # 15 steps
    found = replay(made, problem.ask, keep=keep)
    assert torch.equal(found.values, replay(made, problem.ask).values)
    assert f"{keep} points" in found.report.solver


@pytest.mark.parametrize("problem", PROBLEMS)
def test_several_questions_in_one_sweep_are_each_alone(problem):
    made = recipe(problem)

    def many(model):
        first = problem.objective(model)
        return torch.stack([first, -2 * first, first.square()])

    found = replay(made, many)
    alone = replay(made, problem.objective).values[:, 0]
    factor = 2 * problem.objective(made.train()).detach()
    close(found.values, torch.stack([alone, -2 * alone, factor * alone], dim=1), 1e-9)
    assert found.objectives == ("0", "1", "2")


def test_a_test_set_is_one_question_or_one_for_each_sample():
    problem = grid.LOGISTIC
    made, held_out = recipe(problem), cf.batches(normal(7, 3, seed=60), torch.ones(7, dtype=torch.float64), size=3)
    each = replay(made, cf.each_of(held_out, problem.loss))
    mean = replay(made, cf.mean_over(held_out, problem.loss))
    assert each.values.shape == (problem.n, 7)
    close(mean.values[:, 0], each.values.mean(1))


# Beside other answers.


@pytest.mark.parametrize("problem", [grid.LOGISTIC, grid.COX, grid.DEC_MOVING], ids=lambda problem: problem.name)
def test_at_the_end_of_a_long_training_replay_is_influence(problem):
    made = recipe(problem, optimizer=cf.SGD(2.0, momentum=0.9), batch_size=None, epochs=400)
    influence = cf.influence(made.risk(made.train()), problem.ask, cf.Exact())
    close(replay(made, problem.ask).values, influence.values, 1e-6)


@pytest.mark.parametrize("problem", [grid.SOFTMAX_ON_OUTPUTS, grid.CONTRASTIVE], ids=lambda problem: problem.name)
def test_a_training_that_stopped_early_is_predicted(problem):
    made = recipe(problem, optimizer=cf.SGD(0.1, momentum=0.9), batch_size=None, epochs=10)
    agreement = cf.compare(replay(made, problem.objective), cf.leave_out(made, problem.objective, range(problem.n)))
    assert agreement.pearson > 0.95
    assert 0.8 < agreement.slope < 1.25


def test_permuting_the_data_of_full_steps_permutes_the_scores():
    problem = grid.DEC_MOVING
    order = torch.randperm(problem.n, generator=torch.Generator().manual_seed(0))
    options = {"optimizer": cf.Adam(0.02), "epochs": 10, "l2": problem.l2}
    permuted = cf.Recipe(problem.build(), problem.loss, problem.tensors[0][order], **options)
    found = replay(permuted, problem.objective, ids=order.tolist())
    wanted = replay(recipe(problem, batch_size=None, epochs=10), problem.objective)
    close(found.select(range(problem.n)).values, wanted.values)


# Corners.


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(5, 2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_parameters_that_no_sample_touches_give_no_nan(optimizer):
    which = torch.tensor([0, 1, 1, 3])  # rows 2 and 4 have no gradient, and no second moment
    made = cf.Recipe(
        grid.seeded(Table()), lambda m, x: (m.rows(x) - 1).square().sum(1), which, optimizer=optimizer, epochs=6
    )
    scores = replay(made, lambda m: {"all": m.rows.weight.sum(), "first": m.rows.weight[0].sum()}).values
    assert scores.isfinite().all()
    assert scores[0, 1] != 0
    assert scores[1:, 1].tolist() == [0, 0, 0]


def test_a_data_set_is_replayed_as_its_tensors():
    problem = grid.LOGISTIC
    options = {"optimizer": cf.Adam(0.02), "epochs": 3, "batch_size": 16, "l2": problem.l2}
    made = cf.Recipe(problem.build(), problem.loss, TensorDataset(*problem.tensors), **options)
    close(replay(made, problem.ask).values, replay(recipe(problem, epochs=3), problem.ask).values)


def test_the_report_tells_how_it_came_about():
    problem = grid.LOGISTIC
    made = recipe(problem)
    scores = replay(made, problem.ask, ids=[f"s{row}" for row in range(40)])
    assert (scores.method, scores.ids[3]) == ("replay", "s3")
    assert scores.report.solver == "replay of 15 steps, 15 points kept"
    assert scores.report.values == pytest.approx([value.item() for value in problem.ask(made.train()).values()])
    assert scores.report.coverage == 1
    assert "1-fold" in scores.report.notes[0]


def test_derivatives_that_grow_are_said_to():
    made = recipe(grid.LOGISTIC, optimizer=cf.SGD(90.0), batch_size=None, epochs=12)
    growth = float(replay(made, grid.LOGISTIC.objective).report.notes[0].split()[-1].partition("-")[0])
    assert growth > 10


def test_the_recipe_and_the_global_random_state_are_left_as_they_were():
    made = recipe(grid.DEC_MOVING)
    before, state = [p.clone() for p in made.init.parameters()], torch.random.get_rng_state()
    with torch.no_grad():
        scores = replay(made, grid.DEC_MOVING.ask)
    assert all(torch.equal(one, two) for one, two in zip(before, made.init.parameters(), strict=True))
    assert all(p.grad is None for p in made.init.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not scores.values.requires_grad


# Bad input.


def test_a_training_function_cannot_be_replayed():
    with pytest.raises(TypeError, match=r"Got function; replay needs a crossfluence\.Recipe"):
        replay(lambda weights: grid.LOGISTIC.model, grid.LOGISTIC.objective)


def test_wrong_numbers_of_ids_and_points_are_refused():
    with pytest.raises(errors.DataError, match="3 ids for 40 samples"):
        replay(recipe(grid.LOGISTIC), grid.LOGISTIC.objective, ids="abc")
    with pytest.raises(ValueError, match="keep=1"):
        replay(recipe(grid.LOGISTIC), grid.LOGISTIC.objective, keep=1)


def test_an_objective_that_ignores_the_parameters_is_refused():
    with pytest.raises(errors.ObjectiveError, match="does not depend"):
        replay(recipe(grid.LOGISTIC), lambda model: torch.zeros(()))


def test_a_training_that_diverges_is_refused():
    made = recipe(grid.AUTOENCODER, optimizer=cf.SGD(1e3), epochs=50)
    with pytest.raises(errors.NonFiniteError, match="NaN or infinite"):
        replay(made, grid.AUTOENCODER.objective)
