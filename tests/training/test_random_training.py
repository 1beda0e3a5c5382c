"""Trainings that draw random numbers: the same in every repetition, whatever the weights, alone or in a group."""

import copy

import grid
import numpy as np
import pytest
import torch
from grid import normal
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors

X, Y = normal(24, 4, seed=80), normal(24, 1, seed=81)


def network(*middle, outputs=1):
    return grid.seeded(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *middle, nn.Linear(6, outputs))).train()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.layer(x.unsqueeze(1) + torch.eye(4, dtype=x.dtype)).mean(1))


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def noisy(model, batch):
    return squared(model, (batch[0] + 0.3 * torch.randn_like(batch[0]), batch[1]))


def uneven(model, batch):
    """Draws what vmap cannot: from probabilities that differ from model to model."""
    return torch.bernoulli(model[0](batch[0]).detach().sigmoid()).mean(1) * squared(model, batch)


def two_views(model, batch, weights):
    first, second = (model(batch[0] + 0.3 * torch.randn_like(batch[0])) for _ in range(2))
    similar = first @ second.T
    return weights @ ((similar.exp() @ weights).log() - similar.diagonal())


def chase(model, frozen, batch, weights):
    return weights @ (model(batch[0]) - 0.5 * frozen(batch[0]) - batch[1]).square().sum(1)


KINDS = {
    "dropout": (network(nn.Dropout(0.4)), squared),
    "dropout on outputs": (
        network(nn.Dropout(0.4)),
        cf.OnOutputs(lambda model, batch: model(batch[0]), lambda z, batch: (z - batch[1]).square().sum(1)),
    ),
    "noise": (network(), noisy),
    "two views": (network(outputs=2), cf.WeightedLoss(two_views)),
    "moving target": (network(nn.Dropout(0.4)), cf.FieldLoss(chase)),
    "attention": (grid.seeded(Attention()).train(), squared),
    "uneven": (network(nn.Dropout(0.4)), uneven),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def recipe(kind="dropout", **changes):
    init, loss = KINDS[kind]
    data = changes.pop("data", (X, Y))
    options = {"optimizer": cf.Adam(0.02, eps_root=1e-8), "epochs": 4, "batch_size": 8, "l2": 0.01, **changes}
    return cf.Recipe(init, loss, data, **{"random": True, **options})


def ask(model):
    return model(X[:2]).sum()


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


# The same numbers every time.


@pytest.mark.parametrize("kind", ["dropout", "dropout on outputs", "noise"])
def test_training_is_an_ordinary_loop_that_begins_each_step_with_its_seed(kind):
    made, (init, _) = recipe(kind, optimizer=cf.SGD(0.1)), KINDS[kind]
    model, loss, course = copy.deepcopy(init), noisy if kind == "noise" else squared, made.course()
    for rows, seed in zip(course.rows, course.seeds, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            total = loss(model, (X[rows], Y[rows])).mean()
        (total + 0.005 * flat_norm(model)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    assert torch.allclose(flat(made.train()), flat(model), rtol=0, atol=1e-12)


def flat_norm(model):
    return sum(parameter.square().sum() for parameter in model.parameters())


@kinds
def test_many_weights_at_once_are_each_alone(kind):
    weights = torch.ones(4, 24, dtype=torch.float64)
    weights[1, 3], weights[2, :5], weights[3] = 0, 0, normal(24, seed=82).square()
    made = recipe(kind)
    for row, model in zip(weights, made.retrain(weights), strict=True):
        assert torch.allclose(flat(model), flat(made.train(row)), rtol=1e-9, atol=1e-9)


class Thinned(nn.Module):
    def __init__(self):
        super().__init__()
        self.at, self.drop = nn.Parameter(torch.zeros(64)), nn.Dropout(0.5)


def thinned(**changes):
    """Whole numbers and halves throughout, so that no sum depends on its order."""
    x = torch.randint(1, 9, (8, 64), generator=torch.Generator().manual_seed(0)).float()
    options = {"optimizer": cf.SGD(0.5), "epochs": 3, "random": True, **changes}
    return cf.Recipe(Thinned(), lambda model, batch: (model.drop(model.at) * batch).sum(1), x, **options)


def test_masks_are_the_same_to_the_bit_alone_and_in_a_group():
    weights = torch.ones(5, 8).scatter(1, torch.arange(5).unsqueeze(1), 0)
    together = [flat(model) for model in thinned().retrain(weights)]
    assert all(torch.equal(one, flat(thinned().train(row))) for one, row in zip(together, weights, strict=True))
    dropped = torch.stack(together) == 0
    assert 0 < dropped[0].sum() < 32  # an eighth of 64, if each of three steps has a mask of its own
    assert all(torch.equal(dropped[0], other) for other in dropped)


def test_each_step_has_its_own_mask_and_each_seed_its_own_steps():
    kept = [flat(thinned(epochs=k).train()) for k in (1, 2)]
    assert not torch.equal(kept[1] - kept[0], kept[0])
    assert not torch.equal(flat(thinned(seed=1).train()), flat(thinned().train()))
    assert torch.equal(flat(thinned(seed=1).train()), flat(thinned().with_seed(1).train()))


@kinds
def test_the_global_random_state_neither_matters_nor_moves(kind):
    made, weights = recipe(kind), torch.ones(2, 24)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = [flat(model) for model in made.retrain(weights)]
    cf.replay(made, ask if kind != "two views" else lambda model: model(X[0]).sum())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert all(torch.equal(one, flat(two)) for one, two in zip(first, recipe(kind).retrain(weights), strict=True))


# Derivatives and verbs.


@kinds
def test_replay_is_the_difference_of_retrainings_with_slightly_other_weights(kind):
    made, h = recipe(kind), 1e-5
    steps = h * torch.eye(24, dtype=torch.float64)[:5]
    answers = [ask(model).detach() for model in made.retrain(1 + torch.cat([steps, -steps]))]
    wanted = (torch.stack(answers[:5]) - torch.stack(answers[5:])) / (2 * h)
    found = cf.replay(made, ask).values[:5, 0]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_so_is_the_derivative_by_the_data():
    h, direction = 1e-5, normal(24, 4, seed=83)
    found = cf.data_gradient(recipe("noise"), ask)["objective"]
    ahead, behind = (ask(recipe("noise", data=(X + step * direction, Y)).train()).detach() for step in (h, -h))
    assert (found * direction).sum() == pytest.approx(float(ahead - behind) / (2 * h), rel=1e-6)


def test_replay_predicts_training_again_with_the_same_masks():
    made = recipe(optimizer=cf.SGD(0.02, 0.9), epochs=10)
    agreement = cf.compare(cf.replay(made, ask), cf.leave_out(made, ask, range(24)))
    assert agreement.pearson > 0.95


def test_banks_and_scores_of_random_trainings(tmp_path):
    made = recipe(batch_size=None, optimizer=cf.SGD(0.1, 0.9), epochs=10)
    bank = cf.Bank(made, tmp_path)
    assert torch.equal(flat(bank(made.ones)), flat(made.train()))
    assert cf.smoothness(bank, ask, drop=0.1, groups=6).pearson > 0.9
    found = cf.lds(cf.replay(made, ask), bank, ask, drop=0.1, subsets=12)
    assert found.score > 0.8
    assert found.ceiling < 1  # another seed has other masks, though every step takes all samples


# Modes.


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # a few epochs
def test_trained_models_come_in_evaluation_mode_and_init_keeps_its_own():
    made = recipe()
    model = made.train()
    assert made.init.training
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(X), model(X))
    assert torch.isfinite(cf.influence(made.risk(model), ask).values).all()


def test_dropout_in_evaluation_mode_is_no_dropout():
    plain, dropped = (network(*layers).eval() for layers in ([], [nn.Dropout(0.4)]))
    options = {"optimizer": cf.Adam(0.02), "epochs": 4, "batch_size": 8}
    trained = [flat(cf.Recipe(init, squared, (X, Y), **options).train()) for init in (plain, dropped)]
    assert torch.equal(*trained)
    assert torch.equal(flat(cf.Recipe(dropped, squared, (X, Y), random=True, **options).train()), trained[0])


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # a few epochs
def test_noise_that_a_loss_adds_in_training_alone_leaves_influence_at_the_end():
    def loss(model, batch):
        return (noisy if model.training else squared)(model, batch)

    made = cf.Recipe(network(), loss, (X, Y), optimizer=cf.SGD(0.1), epochs=4, l2=0.1, random=True)
    model = made.train()
    plain = cf.Risk(model, squared, cf.batches(X, Y), l2=0.1)
    assert torch.equal(cf.influence(made.risk(model), ask).values, cf.influence(plain, ask).values)


# Bad input.


@pytest.mark.parametrize("kind", ["dropout", "noise"])
def test_a_random_loss_is_refused_unless_the_recipe_says_so(kind):
    with pytest.raises(errors.NondeterministicError, match="random=True"):
        recipe(kind, random=False)


def test_at_the_end_a_random_loss_has_no_influence():
    with pytest.raises(errors.NondeterministicError, match=r"model\.eval\(\)"):
        recipe().risk(recipe().init)
    made = recipe("noise")
    with pytest.raises(errors.NondeterministicError, match="draw augmentations once"):
        made.risk(made.train())


def test_numbers_from_elsewhere_cannot_be_repeated():
    generator = np.random.default_rng(0)
    with pytest.raises(errors.NondeterministicError, match="global generators"):
        cf.Recipe(
            network(), lambda m, batch: squared(m, batch) * generator.random(), (X, Y), optimizer=cf.SGD(0.1), epochs=1,
            random=True,
        )  # fmt: skip


def test_what_a_risk_refuses_is_refused_of_random_losses_too():
    def detached(model, batch):
        return F.dropout(model(batch[0])).detach().square().sum(1) + model[0].bias.sum()

    with pytest.raises(errors.UnsupportedError, match="FieldLoss"):
        cf.Recipe(network(), detached, (X, Y), optimizer=cf.SGD(0.1), epochs=1, random=True)
    with pytest.raises(errors.NondeterministicError, match="BatchNorm1d"):
        cf.Recipe(network(nn.BatchNorm1d(6)), squared, (X, Y), optimizer=cf.SGD(0.1), epochs=1, random=True)
