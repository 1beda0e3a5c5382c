"""Answers on another device are those of the CPU: on one made of Python everywhere, on a GPU where there is one."""

import copy

import elsewhere
import grid
import pytest
import torch
from elsewhere import Elsewhere
from test_laws import solvers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close as close

import crossfluence as cf
from crossfluence._storage import archive

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")


class Python:
    """The device of `elsewhere`."""

    @staticmethod
    def there(value):
        return elsewhere.there(value)

    @staticmethod
    def on_it(tensor):
        return isinstance(tensor, Elsewhere)


class Cuda:
    """The first GPU."""

    @staticmethod
    def there(value):
        return value.cuda() if isinstance(value, nn.Module) else torch.utils._pytree.tree_map_only(
            Tensor, lambda part: part.cuda(), value
        )  # fmt: skip

    @staticmethod
    def on_it(tensor):
        return tensor.is_cuda


GPU = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def python(monkeypatch):
    monkeypatch.setattr(archive, "safe_open", elsewhere.opened)
    with elsewhere.Factories():
        yield Python


@pytest.fixture(params=["python", pytest.param("cuda", marks=GPU)])
def device(request):
    return Cuda if request.param == "cuda" else request.getfixturevalue("python")


def squares(model):
    return sum(part.square().sum() for part in model.parameters())


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def network():
    return grid.seeded(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))


def samples(n=20):
    x = grid.normal(n, 5, seed=1)
    return x, x[:, :3].argmax(1)


def risk(model, data, size=7):
    return cf.Risk(model, loss, cf.batches(*data, size=size), l2=0.1)


def same(found, wanted, device, rtol=1e-6):
    close(found.values.cpu(), wanted.values, rtol=rtol, atol=rtol * float(wanted.values.abs().max()))
    assert found.ids == wanted.ids


def with_blocks(problem):
    return [cf.EKFAC(0.1), cf.KFAC(0.1), cf.BlockDiagonal(0.1), cf.Diagonal(0.1)] if problem.per_sample else []


FEW = [
    *((grid.SOFTMAX_ON_OUTPUTS, solver) for solver in solvers(grid.SOFTMAX_ON_OUTPUTS)),
    *((grid.AUTOENCODER, solver) for solver in with_blocks(grid.AUTOENCODER)),
    *((problem, cf.Exact(problem.damping)) for problem in (grid.CONTRASTIVE, grid.SKIP_GRAM, grid.LANGUAGE)),
]
ALL = [(problem, solver) for problem in grid.PROBLEMS for solver in solvers(problem) + with_blocks(problem)]


def compared(problem, solver, device):
    wanted = cf.influence(problem.risk(), squares, solver)
    model, data = device.there(copy.deepcopy(problem.model)), device.there(problem.tensors)
    there = cf.Risk(model, problem.loss, cf.batches(*data, size=10_000), l2=problem.l2)
    same(cf.influence(there, squares, solver), wanted, device)


@pytest.mark.parametrize(("problem", "solver"), FEW, ids=str)
def test_solvers_score_as_on_the_cpu(problem, solver, python):
    compared(problem, solver, python)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("problem", "solver"), ALL, ids=str)
def test_every_solver_scores_on_a_gpu_as_on_the_cpu(problem, solver):
    compared(problem, solver, Cuda)


QUESTIONS = {
    "plain": lambda data: squares,
    "each": lambda data: cf.each_of(cf.batches(*data, size=5), loss),
    "mean": lambda data: cf.mean_over(cf.batches(*data, size=5), loss),
}


@pytest.mark.parametrize("solver", [cf.Identity(), cf.EKFAC(0.1), cf.EKFAC(0.1, pilot=10), cf.Exact(0.5)], ids=str)
@pytest.mark.parametrize("question", QUESTIONS)
def test_all_kinds_of_questions_and_candidates(question, solver, device):
    data, tests = samples(), samples(9)
    wanted = cf.influence(risk(network(), data), QUESTIONS[question](tests), solver, candidates=cf.batches(*samples(4)))
    there = risk(device.there(network()), device.there(data))
    added = cf.batches(*device.there(samples(4)))
    same(cf.influence(there, QUESTIONS[question](device.there(tests)), solver, candidates=added), wanted, device)
    same(cf.self_influence(there, solver), cf.self_influence(risk(network(), data), solver), device)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4", "sign"])
def test_an_index_is_built_and_asked(dtype, device, tmp_path):
    """Its rows are on disk, and its scores on the CPU, wherever the model is."""

    def asked(name, place):
        model, data, tests = place(network()), place(samples()), place(samples(9))
        cf.Index.build(risk(model, data), cf.EKFAC(0.1), tmp_path / name, dtype=dtype)
        index = cf.Index.open(tmp_path / name, model)
        index.append(cf.batches(*place(samples(4))), loss=loss)
        question = cf.each_of(cf.batches(*tests), loss)
        found = index.scores(question), index.self_influence(), index.search(question, 3, share=0.5)
        return [each.values for each in found]

    for found, wanted in zip(asked("there", device.there), asked("here", lambda value: value), strict=True):
        assert not device.on_it(found)
        close(found, wanted)


def test_a_recipe_trains_and_is_replayed(device):
    def recipe(place):
        return cf.Recipe(place(network()), loss, place(samples()), optimizer=cf.Adam(0.01), epochs=2, batch_size=5)

    there, here = recipe(device.there), recipe(lambda value: value)
    close(squares(there.train()).cpu(), squares(here.train()))
    for verb in (cf.replay, cf.tracin, cf.source):
        same(verb(there, squares), verb(here, squares), device)
    same(cf.leave_out(there, squares, [0, 3]), cf.leave_out(here, squares, [0, 3]), device)


def test_actions(device):
    place = device.there
    for act in (
        lambda one: cf.unlearn(one, [0, 1], cf.Exact(0.5)), lambda one: cf.undo(one, [0, 1], steps=2, lr=0.01),
    ):  # fmt: skip
        there, here = act(risk(place(network()), place(samples()))), act(risk(network(), samples()))
        close(squares(there.model).detach().cpu(), squares(here.model).detach())


@pytest.mark.parametrize("solver", [cf.Identity(), cf.EKFAC(0.1), cf.Exact(0.5), cf.Auto(0.5)], ids=str)
def test_batches_are_moved_to_the_model_and_the_data_stays(solver, device):
    data, tests = samples(), samples(9)
    wanted = cf.influence(risk(network(), data), cf.each_of(cf.batches(*tests), loss), solver)
    found = cf.influence(risk(device.there(network()), data), cf.each_of(cf.batches(*tests), loss), solver)
    same(found, wanted, device)
    assert not device.on_it(data[0])


def test_the_device_of_python_is_as_strict_as_a_gpu(python):
    x = python.there(torch.ones(2))
    here, first = torch.ones(2), torch.tensor([0, 1])
    for mistake in (
        lambda: x + here, lambda: x.numpy(), lambda: here @ x, lambda: torch.stack([x, here]),
        lambda: torch.randn(2, device=x.device, generator=torch.Generator()), lambda: x.index_add(0, first, x),
    ):  # fmt: skip
        with pytest.raises((RuntimeError, TypeError), match=r"device|elsewhere"):
            mistake()
    assert (x + torch.tensor(1.0)).tolist() == [2, 2]
    assert torch.zeros(2, device=x.device).add_(x).cpu().tolist() == [1, 1]
