"""Derivatives by the data themselves: against one long graph, training again with other data, and `replay`."""

from dataclasses import replace

import grid
import pytest
import torch
from grid import normal
from reference import unrolled
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

import crossfluence as cf
from crossfluence import errors

SOFT = replace(
    grid.SOFTMAX_ON_OUTPUTS,
    name="soft targets",
    tensors=(grid.SOFTMAX_ON_OUTPUTS.tensors[0], F.one_hot(grid.SOFTMAX_ON_OUTPUTS.tensors[1], 3).double()),
)
CASES = [(SOFT, 0), (SOFT, 1), (grid.LOGISTIC, 1), (grid.CONTRASTIVE, 1), (grid.COX, 0), (grid.DEC_MOVING, 0)]
cases = pytest.mark.parametrize(("problem", "part"), CASES, ids=lambda case: getattr(case, "name", case))
optimizers = pytest.mark.parametrize("optimizer", [cf.SGD(0.1, momentum=0.9), cf.Adam(0.02, eps_root=1e-8)], ids=repr)


def recipe(problem, tensors=None, **changes):
    data = problem.tensors if tensors is None else tensors
    options = {"optimizer": cf.Adam(0.02), "epochs": 4, "batch_size": 16, "l2": problem.l2, **changes}
    return cf.Recipe(problem.build(), problem.loss, data[0] if len(data) == 1 else data, **options)


def close(found, wanted, share=1e-8):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= share * wanted.abs().max()


def only(found):
    (values,) = found.values()
    return values


# Exact.


@optimizers
@cases
def test_it_is_the_derivative_of_one_long_graph(problem, part, optimizer):
    made = recipe(problem, optimizer=optimizer, schedule=cf.WarmUp(0.3), hold=2)
    found = cf.data_gradient(made, problem.ask, part=part)
    assert list(found) == list(problem.objectives)
    for name, objective in problem.objectives.items():
        close(found[name], unrolled(problem, made, objective, part))


@optimizers
@cases
def test_it_is_the_difference_of_trainings_with_slightly_other_data(problem, part, optimizer):
    h, direction = 1e-5, normal(*problem.tensors[part].shape, seed=70)

    def answer(step):
        tensors = list(problem.tensors)
        tensors[part] = tensors[part] + step * direction
        return problem.objective(recipe(problem, tuple(tensors), optimizer=optimizer).train()).detach()

    found = only(cf.data_gradient(recipe(problem, optimizer=optimizer), problem.objective, part=part))
    close((found * direction).sum(), (answer(h) - answer(-h)) / (2 * h), 1e-6)


def test_by_a_factor_of_each_loss_it_is_replay():
    problem = grid.LOGISTIC

    def weighted(model, batch):
        return batch[2] * problem.loss(model, batch[:2])

    data = (*problem.tensors, torch.ones(problem.n, dtype=torch.float64))
    made = cf.Recipe(problem.build(), weighted, data, optimizer=cf.Adam(0.02), epochs=4, batch_size=16)
    close(only(cf.data_gradient(made, problem.objective, part=2)), cf.replay(made, problem.objective).values[:, 0])


@pytest.mark.parametrize("keep", [2, 5, 12, 1000])
def test_the_number_of_points_kept_does_not_matter(keep):
    made = recipe(grid.DEC_MOVING)
    found, wanted = (only(cf.data_gradient(made, grid.DEC_MOVING.objective, keep=k)) for k in (keep, None))
    assert torch.equal(found, wanted)


# How the data comes.


def test_full_steps_are_one_batch_of_all_and_their_order_is_that_of_the_data():
    problem, order = grid.CONTRASTIVE, torch.randperm(50, generator=torch.Generator().manual_seed(0))
    permuted = tuple(tensor[order] for tensor in problem.tensors)
    wanted = only(cf.data_gradient(recipe(problem, batch_size=None), problem.objective))
    for size in (50, 99):
        assert torch.equal(only(cf.data_gradient(recipe(problem, batch_size=size), problem.objective)), wanted)
    found = only(cf.data_gradient(recipe(problem, permuted, batch_size=None), problem.objective))
    close(found, wanted[order])


class Named(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, row):
        return {"x": SOFT.tensors[0][row], "label": SOFT.tensors[1][row], "name": f"sample {row}"}


def by_key(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["label"], reduction="none")


def test_a_data_set_is_read_as_its_tensors():
    options = {"optimizer": cf.Adam(0.02), "epochs": 4, "batch_size": 16, "l2": SOFT.l2}
    pairs = cf.Recipe(SOFT.build(), SOFT.loss, TensorDataset(*SOFT.tensors), **options)
    named = cf.Recipe(SOFT.build(), by_key, Named(), **options)
    wanted = only(cf.data_gradient(recipe(SOFT), SOFT.objective, part=1))
    close(only(cf.data_gradient(pairs, SOFT.objective, part=1)), wanted)
    close(only(cf.data_gradient(named, SOFT.objective, part="label")), wanted)


def test_a_picture_has_a_derivative_of_its_own_shape():
    x, y = normal(12, 2, 4, 4, seed=71), normal(12, seed=72)
    model = grid.seeded(nn.Sequential(nn.Conv2d(2, 1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4, 1)))
    made = cf.Recipe(
        model, lambda m, batch: (m(batch[0])[:, 0] - batch[1]).square(), (x, y), optimizer=cf.SGD(0.1), epochs=3
    )
    found = cf.data_gradient(made, lambda m: m(x[:2])[:, 0])
    assert {name: values.shape for name, values in found.items()} == {"0": x.shape, "1": x.shape}
    assert not any(values.requires_grad for values in found.values())


# Bad input.


def test_integers_are_refused_with_what_to_give_instead():
    with pytest.raises(errors.DataError, match=r"torch\.int64.*one_hot\(y, classes\)"):
        cf.data_gradient(recipe(grid.SOFTMAX_ON_OUTPUTS), SOFT.objective, part=1)


def test_a_part_that_is_not_there_or_no_tensor_is_refused():
    made = cf.Recipe(SOFT.build(), by_key, Named(), optimizer=cf.SGD(0.1), epochs=1)
    with pytest.raises(errors.DataError, match=r"part=2 .*\[0, 1\]"):
        cf.data_gradient(recipe(SOFT), SOFT.objective, part=2)
    with pytest.raises(errors.DataError, match=r"part=0 .*\['x', 'label', 'name'\]"):
        cf.data_gradient(made, SOFT.objective)
    with pytest.raises(errors.DataError, match="'name' of a batch is a list; needed a tensor"):
        cf.data_gradient(made, SOFT.objective, part="name")


def test_a_training_function_has_no_steps_to_go_through():
    with pytest.raises(TypeError, match=r"Got function; data_gradient needs a crossfluence\.Recipe"):
        cf.data_gradient(lambda weights: SOFT.build(), SOFT.objective)
