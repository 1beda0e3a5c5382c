"""Traps of training again, acting and the command line: what is easy to get silently wrong."""

import contextlib
import functools
import importlib
import pickle
import random
import shutil
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import ModuleType

import pytest
import torch
from grid import normal
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.params import fingerprint
from crossfluence._storage.hashing import content_hash
from crossfluence.clustering.objectives import log_assignment, margin

X, Y = normal(30, 2, seed=0), normal(30, seed=1)


def half_squares(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square() / 2


def ask(model):
    return model.weight.square().sum()


def start():
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data.fill_(0.3)
    return model


def recipe(**changes):
    init = changes.pop("init", None) or start()
    return cf.Recipe(init, half_squares, (X, Y), **{"optimizer": cf.SGD(0.5), "epochs": 50, "l2": 0.1, **changes})


# Content.

MINE = ModuleType("typed_by_a_user")
MINE.__file__ = "/somewhere/typed_by_a_user.py"


@pytest.fixture(autouse=True)
def _a_module_of_the_user(monkeypatch):
    monkeypatch.setitem(sys.modules, MINE.__name__, MINE)


def made(source, name="f", module=MINE.__name__):
    space = {"__name__": module}
    exec(source, space)
    return space[name]


def test_closures_of_the_library_and_of_packages_are_content():
    one, two = torch.zeros(2), torch.ones(2)
    questions = [
        margin(one, 0, 1),
        margin(two, 0, 1),
        margin(one, 0, 2),
        log_assignment(one, 0),
        log_assignment(two, 0),
    ]
    assert len({content_hash(question) for question in questions}) == 5


@pytest.mark.parametrize(
    "source",
    [
        "class f:\n  lr = {}\n  def __call__(self, w): return self.lr",
        "class f:\n  @staticmethod\n  def g(): return {}",
        "class f:\n  @classmethod\n  def g(cls): return {}",
        "class f:\n  @property\n  def g(self): return {}",
        "class B:\n  def g(self): return {}\nclass f(B): pass",
        "class B:\n  lr = {}\nclass A(B): pass\nf = A()",
    ],
)
def test_everything_in_a_class_of_the_user_is_content(source):
    assert content_hash(made(source.format(1))) == content_hash(made(source.format(1)))
    assert content_hash(made(source.format(1))) != content_hash(made(source.format(2)))


def test_the_form_of_arguments_is_content():
    assert content_hash(made("def f(x): return x")) != content_hash(made("def f(*x): return x"))


@pytest.mark.parametrize("module", ["__main__", "not_registered", None])
def test_code_of_any_module_that_is_not_installed_is_content(module):
    # __main__: its file is a tool's own under pytest, cProfile, pdb
    assert content_hash(made("def f(): return 1", module=module)) != content_hash(
        made("def f(): return 2", module=module)
    )


class Private(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self._temperature, self.weight = temperature, nn.Parameter(torch.ones(1))


def test_private_attributes_frozen_parameters_and_hooks_of_a_module_are_content():
    net, frozen, hooked = Private(1), Private(1), Private(1)
    frozen.weight.requires_grad_(False)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert len({content_hash(module) for module in (net, Private(2), frozen, hooked)}) == 4
    assert content_hash(net) == content_hash(Private(1))


class Base:
    __slots__ = ("x",)


class Slots(Base):
    def __init__(self, x):
        self.x = x


class Words(list):
    pass


def test_state_that_is_not_in_a_dictionary_is_content():
    one, two = Words([1]), Words([1])
    one.k, two.k = 1, 2
    pairs = [(random.Random(0), random.Random(1)), (Slots(1), Slots(2)), (one, two), ({1: 1}.get, {1: 2}.get)]
    for first, second in pairs:
        assert content_hash(first) != content_hash(second), type(first)


def test_an_open_file_is_refused_as_the_docstring_says(tmp_path):
    (tmp_path / "x").write_text("x")
    with (tmp_path / "x").open() as file, pytest.raises(TypeError, match="store=None"):
        content_hash(file)


def test_a_sparse_tensor_is_hashed_and_a_bottomless_list_refused():
    assert content_hash(torch.eye(2).to_sparse()) != content_hash(2 * torch.eye(2).to_sparse())
    with pytest.raises(TypeError, match="store=None"):
        content_hash(functools.reduce(lambda inner, _: [inner], range(5000), 0))


def test_what_a_users_module_imports_is_content_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_outer.py").write_text("from my_inner import rate\ndef g(): return rate\n")
    found = []
    for number in (1, 2):
        (tmp_path / "my_inner.py").write_text(f"rate = {number}\n" + "# longer\n" * number)
        importlib.invalidate_caches()
        found.append(content_hash(made("import my_outer\ndef f(): return my_outer.g()")))
        for name in ("my_inner", "my_outer"):
            monkeypatch.delitem(sys.modules, name)
    assert found[0] != found[1]


# Recipes.


def test_a_recipe_can_be_sent_to_another_process():
    made = recipe()
    sent = pickle.loads(pickle.dumps(made))
    assert torch.equal(sent.train().weight, made.train().weight)


def test_weights_that_are_no_numbers_are_refused():
    for bad in (float("nan"), float("inf")):
        with pytest.raises((errors.NonFiniteError, errors.DataError)):
            recipe().train(torch.ones(30).index_fill(0, torch.tensor([3]), bad))


def test_no_rows_train_no_models():
    assert list(recipe().retrain(torch.ones(0, 30))) == []


def test_weights_of_a_wrong_shape_are_refused_at_once():
    with pytest.raises(errors.DataError):
        recipe().retrain(torch.ones(2, 29))


def test_an_init_that_changes_later_changes_nothing_or_is_refused():
    init = start()
    made = recipe(init=init, epochs=1)
    first = made.train().weight
    with torch.no_grad():
        init.weight.fill_(100)
    with contextlib.suppress(errors.StaleError):
        assert torch.equal(made.train().weight, first)


def test_a_loss_that_cannot_be_vectorised_is_trained_one_by_one():
    def loss(model, batch):
        losses = half_squares(model, batch)
        return losses if model.weight.sum().item() > -1e9 else -losses

    made = cf.Recipe(start(), loss, (X, Y), optimizer=cf.SGD(0.5), epochs=5)
    plain = cf.Recipe(start(), half_squares, (X, Y), optimizer=cf.SGD(0.5), epochs=5)
    assert torch.allclose(cf.leave_out(made, ask, [0, 1]).values, cf.leave_out(plain, ask, [0, 1]).values)


def test_an_optimiser_that_is_none_of_ours_is_refused_with_advice():
    for wrong in (torch.optim.SGD(start().parameters(), lr=0.1), cf.SGD):
        with pytest.raises(TypeError, match=r"crossfluence.*(SGD|Adam)\("):
            recipe(optimizer=wrong)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
def test_a_learning_rate_that_is_not_positive_is_refused(lr):
    for verb in (cf.SGD, cf.Adam):
        with pytest.raises(ValueError, match="lr"):
            verb(lr)
    risk = recipe().risk(start())
    for verb in (cf.undo, cf.amplify):
        with pytest.raises(ValueError, match="lr"):
            verb(risk, [0], steps=1, lr=lr)


# Leaving out.


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_recipe_in_threads_gives_the_same_scores_and_leaves_init_alone(at_once):
    init = start()
    before = fingerprint(init)
    alone = cf.leave_out(recipe(at_once=at_once), ask, range(30)).values
    with ThreadPoolExecutor(4) as threads:
        found = cf.leave_out(recipe(init=init, at_once=at_once), ask, range(30), executor=threads).values
    assert torch.equal(found, alone)
    assert fingerprint(init) == before


class AtOnce(Executor):
    def submit(self, function, /, *args, **options):
        future = Future()
        try:
            future.set_result(function(*args, **options))
        except RuntimeError as error:
            future.set_exception(error)
        return future


def test_what_was_finished_beside_a_failure_is_kept(tmp_path):
    def train(weights):
        if weights[4] == 0:
            raise RuntimeError("out of memory")
        model = start()
        model.weight.data *= weights.sum()
        return model

    for _ in range(5):  # the order in which finished futures come is arbitrary
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        with pytest.raises(RuntimeError, match="out of memory"):
            cf.leave_out(train, ask, range(9), n=30, executor=AtOnce(), store=tmp_path / "s")
        assert len(list((tmp_path / "s").iterdir())) == 9


# Acting.


def test_remove_takes_ids_in_a_tensor_as_leave_out_does():
    assert torch.equal(cf.remove(recipe(), torch.tensor([1, 2]), ask).after, cf.remove(recipe(), [1, 2], ask).after)


def test_remove_trains_twice_from_the_same_global_state():
    outcome = cf.remove(lambda weights: nn.Linear(2, 1, bias=False), [0], ask, n=30)
    assert outcome.achieved.tolist() == [0]


def test_remove_refuses_scores_of_other_samples_or_questions():
    made = recipe()
    scores = cf.influence(made.risk(made.train()), ask)
    with pytest.raises(errors.DataError):
        cf.remove(made, [5], ask, scores=scores.select([5, 7]))
    with pytest.raises(errors.ObjectiveError):
        cf.remove(made, [5], lambda model: {"other": model.weight.sum()}, scores=scores)


def test_remove_refuses_an_id_that_stands_twice_before_it_trains():
    with pytest.raises(errors.DataError):
        cf.remove(lambda weights: pytest.fail("trained"), [0, 0], ask, n=30)


def test_remove_refuses_a_training_function_that_returns_no_module():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        cf.remove(lambda weights: 3, [0], ask, n=30)


def test_names_of_parameters_are_no_patterns():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.ParameterDict({"a[0]": torch.zeros(2, dtype=torch.float64)})

    risk = cf.Risk(Named(), lambda model, x: (x - model.at["a[0]"]).square().sum(1), cf.batches(X))
    moved = cf.amplify(risk, [0], steps=1, lr=0.1).model.at["a[0]"]
    assert moved.abs().sum() > 0.1
