"""Recipes: the optimisers are PyTorch's, many trainings at once are each alone, and nothing else is touched."""

import copy
import math

import grid
import pytest
import torch
from grid import normal
from reference import Dense
from torch import nn
from torch.utils.data import TensorDataset

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.params import fingerprint

X, Y = normal(20, 3, seed=0), normal(20, 1, seed=1)
INIT = grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
DEFAULTS = {"optimizer": cf.SGD(0.05, 0.9), "epochs": 5, "l2": 0.01}
OPTIMIZERS = {
    "SGD": (cf.SGD(0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (cf.SGD(0.02, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
    "Adam": (cf.Adam(0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "tuned Adam": (
        cf.Adam(0.01, betas=(0.7, 0.95), eps=1e-3),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.7, 0.95), eps=1e-3),
    ),
    "AdamW": (
        cf.AdamW(0.01, betas=(0.8, 0.9), weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9), weight_decay=0.3),
    ),
}
KINDS = [grid.LOGISTIC, grid.ON_OUTPUTS, grid.CONTRASTIVE, grid.COX, grid.DEC_MOVING, grid.SKIP_GRAM]
kinds = pytest.mark.parametrize("problem", KINDS, ids=lambda problem: problem.name)


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def recipe(init=INIT, loss=squared, data=(X, Y), **changes):
    return cf.Recipe(init, loss, data, **{**DEFAULTS, **changes})


def of_problem(problem, **changes):
    data = problem.tensors[0] if len(problem.tensors) == 1 else problem.tensors
    options = {"optimizer": cf.Adam(0.02), "epochs": 30, "l2": problem.l2, **changes}
    return cf.Recipe(problem.build(), problem.loss, data, **options)


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def by_hand(optimizer, batches, weights, l2=0.01, schedule=lambda progress: 1.0):
    """An ordinary PyTorch loop over the given rows."""
    model = copy.deepcopy(INIT)
    stepping = optimizer(model.parameters())
    full = stepping.param_groups[0]["lr"]
    for count, rows in enumerate(batches):
        stepping.param_groups[0]["lr"] = full * schedule(count / len(batches))
        stepping.zero_grad()
        loss = (weights[rows] * squared(model, (X[rows], Y[rows]))).mean()
        (loss + l2 / 2 * sum(p.square().sum() for p in model.parameters())).backward()
        stepping.step()
    return flat(model)


def shuffled(epochs, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return [rows for _ in range(epochs) for rows in torch.randperm(20, generator=generator).split(size)]


# The optimisers.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_100_full_steps_are_those_of_torch_optim(name):
    ours, theirs = OPTIMIZERS[name]
    found = flat(recipe(optimizer=ours, epochs=100).train())
    expected = by_hand(theirs, [torch.arange(20)] * 100, torch.ones(20))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_100_weighted_mini_batches_are_those_of_torch_optim(name):
    ours, theirs = OPTIMIZERS[name]
    weights = normal(20, seed=2).square()
    found = flat(recipe(optimizer=ours, epochs=34, batch_size=8, seed=3).train(weights))
    expected = by_hand(theirs, shuffled(34, 8, seed=3), weights)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


SCHEDULES = {
    "cosine": (cf.cosine, lambda t: (1 + math.cos(math.pi * t)) / 2),
    "warm-up": (cf.WarmUp(0.25), lambda t: 4 * t if t < 0.25 else (1 + math.cos(math.pi * (t - 0.25) / 0.75)) / 2),
    "steps": (cf.StepDecay((0.3, 0.6), 0.2), lambda t: 1.0 if t < 0.3 else 0.2 if t < 0.6 else 0.2**2),
}


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize(("ours", "expected"), SCHEDULES.values(), ids=list(SCHEDULES))
def test_a_schedule_multiplies_the_learning_rate_by_the_share_of_steps_done(name, ours, expected):
    found = flat(recipe(optimizer=OPTIMIZERS[name][0], epochs=20, batch_size=8, schedule=ours).train())
    wanted = by_hand(OPTIMIZERS[name][1], shuffled(20, 8, seed=0), torch.ones(20), schedule=expected)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_schedules_refuse_shares_outside_training():
    with pytest.raises(ValueError, match=r"share=1\.0"):
        cf.WarmUp(1.0)
    with pytest.raises(ValueError, match=r"at=\(0.5, 75\)"):
        cf.StepDecay((0.5, 75))


# Order.


def test_the_seed_shuffles_mini_batches_and_nothing_else():
    small = [flat(recipe(batch_size=6, seed=seed).train()) for seed in (0, 0, 1)]
    assert torch.equal(small[0], small[1])
    assert not torch.allclose(small[0], small[2])
    whole = [flat(recipe(batch_size=size, seed=seed).train()) for size, seed in ((None, 0), (20, 1), (99, 2))]
    assert torch.equal(whole[0], whole[1])
    assert torch.equal(whole[0], whole[2])


@pytest.mark.parametrize("size", [None, 6])
def test_a_data_set_trains_as_its_tensors(size):
    assert torch.equal(
        flat(recipe(batch_size=size).train()), flat(recipe(data=TensorDataset(X, Y), batch_size=size).train())
    )


# Many at once.


@kinds
def test_many_weights_at_once_are_each_alone(problem):
    weights = torch.ones(5, problem.n, dtype=torch.float64)
    weights[1, 3], weights[2, :5], weights[3] = 0, 0, normal(problem.n, seed=4).square()
    made = of_problem(problem)
    together = [flat(model) for model in made.retrain(weights)]
    for row, found in zip(weights, together, strict=True):
        assert torch.allclose(found, flat(made.train(row)), rtol=1e-9, atol=1e-9)
    assert torch.allclose(together[0], together[4], rtol=0, atol=1e-12)
    assert not torch.allclose(together[0], together[1], rtol=0, atol=1e-9)


@kinds
def test_mini_batches_of_many_weights_are_each_alone(problem):
    weights = torch.ones(3, problem.n).scatter(1, torch.tensor([[0], [1], [2]]), 0)
    made = of_problem(problem, batch_size=16, epochs=5)
    for row, model in zip(weights, made.retrain(weights), strict=True):
        assert torch.allclose(flat(model), flat(made.train(row)), rtol=1e-9, atol=1e-9)


def test_the_number_trained_at_once_does_not_matter():
    weights = normal(7, 20, seed=5).square()
    several = [torch.stack([flat(m) for m in recipe(at_once=k).retrain(weights)]) for k in (1, 3, 7, 100)]
    assert all(torch.allclose(several[0], other, rtol=1e-12, atol=1e-12) for other in several)


def test_training_again_is_the_same_to_the_bit():
    weights = normal(4, 20, seed=6).square()
    first, second = ([flat(m) for m in recipe(batch_size=6).retrain(weights)] for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert torch.equal(flat(recipe().train()), flat(recipe()(torch.ones(20))))


def test_nothing_of_a_sample_of_weight_zero_is_left():
    weights, far = torch.ones(20), X.clone()
    weights[4], far[4] = 0, 1e3
    assert torch.equal(flat(recipe().train(weights)), flat(recipe(data=(far, Y)).train(weights)))


# A held target.


@pytest.mark.parametrize("hold", [1, 3, 7])
def test_a_held_target_is_refreshed_every_so_many_steps(hold):
    problem = grid.DEC_MOVING
    found = flat(of_problem(problem, hold=hold, optimizer=cf.SGD(0.5), epochs=20).train())
    dense = Dense(problem.build(), problem.loss, problem.tensors, problem.l2)
    theta = dense.theta
    for count in range(20):
        if count % hold == 0:
            still = theta

        def total(live, still=still):
            return dense.call(live, still, lambda m, s: problem.loss.fn(m, s, dense.batch, dense.ones))

        theta = theta - 0.5 * (torch.func.grad(total)(theta) / problem.n + problem.l2 * theta)
    assert torch.allclose(found, theta, rtol=0, atol=1e-12)
    if hold > 1:
        fresh = flat(of_problem(problem, optimizer=cf.SGD(0.5), epochs=20).train())
        assert not torch.allclose(found, fresh, rtol=0, atol=1e-9)


# What must be left alone.


def test_init_and_global_random_state_are_left_as_they_were():
    init = copy.deepcopy(INIT).eval()
    before, state = fingerprint(init), torch.random.get_rng_state()
    made = recipe(init, batch_size=6)
    model = made.train()
    list(made.retrain(torch.ones(3, 20)))
    assert fingerprint(init) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in [*init.parameters(), *model.parameters()])
    assert not {p.data_ptr() for p in init.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not model.training
    assert torch.is_grad_enabled()


def test_frozen_parameters_stay_where_they_were():
    init = copy.deepcopy(INIT)
    init[0].requires_grad_(False)
    model = recipe(init).train()
    assert torch.equal(model[0].weight, init[0].weight)
    assert not torch.equal(model[2].weight, init[2].weight)


# The risk.


@kinds
def test_the_risk_at_the_end_of_training_has_a_small_gradient(problem):
    made = of_problem(problem, epochs=1000, schedule=cf.cosine)
    start, end = made.risk(made.init).gradient.norm(), made.risk(made.train()).gradient.norm()
    assert end < 1e-4
    assert end < 1e-3 * start


def test_the_risk_is_what_training_minimised():
    made = recipe(l2=0.3)
    risk = made.risk(made.train())
    assert (risk.n, risk.l2, risk.ids) == (20, 0.3, tuple(range(20)))
    step = flat(recipe(l2=0.3, optimizer=cf.SGD(1.0), epochs=1).train()) - flat(INIT)
    assert torch.allclose(-step, made.risk(INIT).gradient, rtol=1e-12, atol=1e-14)


# Bad input.


@pytest.mark.parametrize("name", ["epochs", "hold", "at_once", "batch_size"])
def test_a_count_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0; needed at least 1"):
        recipe(**{name: 0})


def test_weights_of_another_length_are_refused_with_both_numbers():
    with pytest.raises(errors.DataError, match=r"\(1, 19\) for 20 samples"):
        recipe().train(torch.ones(19))
    with pytest.raises(errors.DataError, match=r"\(3, 21\).*needed \(r, 20\)"):
        next(recipe().retrain(torch.ones(3, 21)))


def test_what_a_risk_refuses_is_refused_before_training():
    with pytest.raises(errors.LossShapeError, match="reduction='none'"):
        recipe(loss=lambda model, batch: squared(model, batch).mean())
    with pytest.raises(errors.NondeterministicError, match=r"model\.eval\(\)"):
        recipe(nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 1)).double())
    with pytest.raises(errors.DataError, match=r"\[20, 19\]"):
        recipe(data=(X, Y[:19]))
    with pytest.raises(errors.ParameterError, match="requires_grad"):
        recipe(copy.deepcopy(INIT).requires_grad_(False))
