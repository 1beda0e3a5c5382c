"""Banks: models are trained once, whatever is asked of them, and never mixed up."""

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import grid
import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence._training.recipe import Recipe

PROBLEM = grid.LOGISTIC


def recipe(**changes):
    options = {"optimizer": cf.Adam(0.05), "epochs": 3, "batch_size": 16, "l2": PROBLEM.l2, "at_once": 4, **changes}
    return cf.Recipe(PROBLEM.build(), PROBLEM.loss, PROBLEM.tensors, **options)


def other(model):
    return {"bias": model.bias[0], "size": model.weight.square().sum()}


@pytest.fixture
def trained(monkeypatch):
    """How many models each call to the recipe trained."""
    seen, original = [], Recipe._fit

    def counted(self, weights):
        seen.append(len(weights))
        return original(self, weights)

    monkeypatch.setattr(Recipe, "_fit", counted)
    return seen


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_answers_are_those_of_the_recipe_and_new_questions_train_nothing(tmp_path, trained):
    bank, drop = cf.Bank(recipe(), tmp_path / "models"), range(6)
    first = cf.leave_out(bank, PROBLEM.ask, drop)
    assert sum(trained) == 7
    second = cf.leave_out(bank, other, drop)
    again = cf.leave_out(cf.Bank(recipe(), tmp_path / "models"), other, [3, 1])
    assert sum(trained) == 7
    assert torch.allclose(first.values, cf.leave_out(recipe(), PROBLEM.ask, drop).values, rtol=1e-9, atol=1e-12)
    assert torch.allclose(second.values, cf.leave_out(recipe(), other, drop).values, rtol=1e-9, atol=1e-12)
    assert torch.equal(again.values, second.select([3, 1]).values)


def test_a_stopped_run_goes_on_where_it_was_and_keeps_the_order(tmp_path, trained):
    weights = torch.ones(9, 40) - torch.eye(40)[:9]
    bank = cf.Bank(recipe(), tmp_path)
    assert len(list(itertools.islice(bank.retrain(weights[[1, 4, 7]]), 2))) == 2  # the third was trained, not asked for
    assert sum(trained) == 3
    found = list(bank.retrain(weights))
    assert sum(trained) == 3 + 7
    for model, wanted in zip(found, recipe().retrain(weights), strict=True):
        assert torch.allclose(flat(model), flat(wanted), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "removed"])
def test_a_damaged_model_is_trained_again(tmp_path, trained, damage):
    bank, weights = cf.Bank(recipe(), tmp_path), torch.ones(1, 40)
    whole = flat(next(bank.retrain(weights)))
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-3] ^= 1  # a number changes, the file still opens
    file.write_bytes({"cut": content[:-8], "flipped": content, "emptied": b"", "removed": b""}[damage])
    if damage == "removed":
        file.unlink()
    assert torch.equal(flat(next(bank.retrain(weights))), whole)
    assert trained == [1, 1]
    assert torch.equal(flat(next(bank.retrain(weights))), whole)
    assert trained == [1, 1]


def test_a_file_that_goes_while_models_are_read_is_trained_again(tmp_path):
    bank, weights = cf.Bank(recipe(), tmp_path), torch.ones(3, 40) - torch.eye(40)[:3]
    list(bank.retrain(weights))
    models = bank.retrain(weights)
    next(models)
    for file in tmp_path.iterdir():
        file.unlink()
    for model, wanted in zip(models, list(recipe().retrain(weights))[1:], strict=True):
        assert torch.allclose(flat(model), flat(wanted), rtol=1e-9, atol=1e-12)


def test_whatever_changes_the_training_changes_the_name(tmp_path):
    made = recipe()
    x, y = PROBLEM.tensors
    loss = cf.OnOutputs(lambda m, b: m(b[0])[:, 0], lambda z, b: (z - b[1]).square())
    variants = [
        made,
        dataclasses.replace(made, epochs=4),
        dataclasses.replace(made, l2=0.5),
        dataclasses.replace(made, seed=1),
        dataclasses.replace(made, optimizer=cf.AdamW(0.05)),
        dataclasses.replace(made, schedule=cf.WarmUp(0.5)),
        dataclasses.replace(made, data=(x + 1, y)),
        dataclasses.replace(made, loss=loss),
        dataclasses.replace(made, init=grid.seeded(nn.Linear(3, 1), seed=5)),
    ]
    for count, variant in enumerate(variants, start=1):
        cf.Bank(variant, tmp_path)(torch.ones(40))
        assert len(list(tmp_path.iterdir())) == count
    cf.Bank(dataclasses.replace(made, at_once=1), tmp_path)(torch.ones(40))  # no change of the training
    assert len(list(tmp_path.iterdir())) == len(variants)


def test_a_bank_runs_over_an_executor(tmp_path):
    bank = cf.Bank(recipe(at_once=2), tmp_path)
    with ThreadPoolExecutor(2) as pool:
        found = cf.leave_out(bank, other, range(5), executor=pool)
    assert len(list(tmp_path.iterdir())) == 6
    assert torch.allclose(found.values, cf.leave_out(recipe(), other, range(5)).values, rtol=1e-9, atol=1e-12)


def test_frozen_parameters_come_back_as_they_were(tmp_path):
    init = PROBLEM.build()
    init.bias.requires_grad_(False)
    made = dataclasses.replace(recipe(), init=init)
    first, second = (cf.Bank(made, tmp_path)(torch.ones(40)) for _ in range(2))
    assert torch.equal(flat(first), flat(second))
    assert not second.bias.requires_grad
