"""Leave-one-out: what it computes, where it runs, what it keeps and what it refuses."""

import importlib
import multiprocessing
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from grid import normal
from torch import nn

import crossfluence as cf
from crossfluence import errors
from crossfluence._evaluation import leave_out as retrain

X = normal(30, 2, seed=0)
Y = X @ torch.tensor([1.0, -2.0], dtype=torch.float64) + normal(30, seed=1)
L2 = 0.1
SETTINGS = {"optimizer": cf.SGD(0.5), "epochs": 150, "l2": L2}


def ridge(weights, x=X, y=Y):
    """Weighted least squares in closed form; n stays fixed and the l2 term is not reweighted."""
    w, n = weights.double(), len(x)
    solution = torch.linalg.solve(x.T @ (w[:, None] * x) / n + L2 * torch.eye(2, dtype=x.dtype), x.T @ (w * y) / n)
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = solution[None]
    return model


def ask(model):
    return model.weight.square().sum()


def asked(*rows):
    return float(ask(ridge(without(*rows))).detach())


def both(model):
    return {"first": model.weight[0, 0], "size": ask(model)}


def half_squares(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square() / 2


def recipe(**changes):
    return cf.Recipe(ridge(torch.ones(30)), half_squares, (X, Y), **{**SETTINGS, "at_once": 4, **changes})


def without(*rows):
    return torch.ones(30).index_fill(0, torch.tensor(rows, dtype=torch.long), 0)


@pytest.fixture
def trainings(monkeypatch):
    """Which rows had weight 0 in each training; raises instead of beginning call number `stop`."""
    seen = SimpleNamespace(rows=[], stop=None)
    original = retrain.retrained_values

    def counted(train, objective, weights):
        if seen.stop is not None and len(seen.rows) >= seen.stop:
            raise KeyboardInterrupt
        seen.rows += [tuple((row == 0).nonzero().flatten().tolist()) for row in weights]
        return original(train, objective, weights)

    monkeypatch.setattr(retrain, "retrained_values", counted)
    return seen


# What it computes.


def test_ids_alone_and_groups_are_trained_without_and_asked_again():
    whole = asked()
    found = cf.leave_out(ridge, ask, [7, 2], n=30)
    assert (found.ids, found.objectives, found.method, found.report) == ((7, 2), ("objective",), "retraining", None)
    assert found.values[:, 0].tolist() == [whole - asked(7), whole - asked(2)]
    groups = cf.leave_out(ridge, both, {"even": range(0, 30, 2), "pair": [1, 2], "nobody": []}, n=30)
    assert groups.ids == ("even", "pair", "nobody")
    assert groups.objectives == ("first", "size")
    assert groups.values[1, 1] == whole - asked(1, 2)
    assert groups.values[2].tolist() == [0, 0]


def test_labels_stand_for_rows():
    labels = [f"s{row}" for row in range(30)]
    by_row = cf.leave_out(ridge, both, [3, 29], n=30)
    by_label = cf.leave_out(ridge, both, ["s3", "s29"], n=30, ids=labels)
    assert torch.equal(by_row.values, by_label.values)
    by_tensor = cf.leave_out(ridge, both, torch.tensor([3, 29]), n=30)
    assert by_tensor.ids == (3, 29)


def test_a_recipe_agrees_with_the_closed_form_and_is_a_training_function():
    drop = {**{row: [row] for row in range(9)}, "group": [1, 5, 9]}
    closed = cf.leave_out(ridge, both, drop, n=30)
    assert torch.allclose(cf.leave_out(recipe(), both, drop).values, closed.values, rtol=1e-9, atol=1e-12)
    called = cf.leave_out(recipe().__call__, both, drop, n=30)
    assert torch.allclose(called.values, closed.values, rtol=1e-9, atol=1e-12)


def test_sign_and_unit_are_those_of_influence_ever_more_exactly_as_n_grows():
    misses = []
    for n in (50, 500, 5000):
        x = normal(n, 2, seed=2)
        y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + normal(n, seed=3)

        def train(weights, x=x, y=y):
            return ridge(weights, x, y)

        actual = cf.leave_out(train, both, range(20), n=n)
        risk = cf.Risk(train(torch.ones(n)), half_squares, cf.batches(x, y), l2=L2)
        predicted = cf.influence(risk, both, cf.Exact()).select(range(20))
        misses.append(float((predicted.values - actual.values).norm() / actual.values.norm()))
    assert misses[0] < 0.3
    assert misses[1] < 0.25 * misses[0]
    assert misses[2] < 0.25 * misses[1]


def test_every_training_begins_with_the_same_global_state_and_leaves_no_trace():
    def train(weights):
        return nn.Linear(1, 1)  # its weights come from the global generator

    state = torch.random.get_rng_state()
    scores = cf.leave_out(train, lambda model: model.weight[0, 0], [0, 1, 2], n=3)
    assert scores.values.tolist() == [[0], [0], [0]]
    assert torch.equal(torch.random.get_rng_state(), state)


# Where it runs.


class Backwards(Executor):
    """Begins nothing until the last job is submitted, then runs the last one first."""

    def __init__(self, expected):
        self.expected, self.jobs = expected, []

    def submit(self, function, /, *args, **options):
        self.jobs.append((Future(), function, args, options))
        if len(self.jobs) == self.expected:
            threading.Thread(target=self.run, daemon=True).start()
        return self.jobs[-1][0]

    def run(self):
        for future, function, args, options in reversed(self.jobs):
            future.set_result(function(*args, **options))


def test_threads_and_lazy_executors_give_the_same_scores_in_the_same_order():
    alone = cf.leave_out(ridge, both, range(12), n=30)
    with ThreadPoolExecutor(3) as threads:
        assert torch.equal(cf.leave_out(ridge, both, range(12), n=30, executor=threads).values, alone.values)
    assert torch.equal(cf.leave_out(ridge, both, range(12), n=30, executor=Backwards(13)).values, alone.values)


def test_spawned_processes_give_the_same_scores():
    here = importlib.import_module("tests.evaluation.test_leave_out")  # as another process can import it
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        found = cf.leave_out(here.ridge, here.both, range(5), n=30, executor=processes)
    assert torch.allclose(found.values, cf.leave_out(ridge, both, range(5), n=30).values, rtol=1e-12, atol=1e-12)


def test_a_failure_cancels_what_has_not_begun():
    begun = []

    def train(weights):
        begun.append(1)
        if len(begun) > 1:
            time.sleep(0.05)  # time for the failure of the first to arrive
        raise RuntimeError("out of memory")

    with ThreadPoolExecutor(1) as single, pytest.raises(RuntimeError, match="out of memory"):
        cf.leave_out(train, ask, range(30), n=30, executor=single)
    assert len(begun) < 10


# What it keeps.


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_an_interrupted_run_goes_on_with_what_is_missing(trainings, tmp_path, stop):
    store = tmp_path / "made" / "store"
    plain = cf.leave_out(ridge, both, range(9), n=30)
    trainings.rows, trainings.stop = [], stop
    with pytest.raises(KeyboardInterrupt):
        cf.leave_out(ridge, both, range(9), n=30, store=store)
    assert len(list(store.iterdir())) == len(trainings.rows) == stop
    done, trainings.rows, trainings.stop = trainings.rows, [], None
    again = cf.leave_out(ridge, both, range(9), n=30, store=store)
    assert torch.equal(again.values, plain.values)
    assert done + trainings.rows == [(), *((row,) for row in range(9))]
    trainings.rows = []
    assert torch.equal(cf.leave_out(ridge, both, range(9), n=30, store=str(store)).values, plain.values)
    assert trainings.rows == []
    assert {file.suffix for file in store.iterdir()} == {".json"}  # no temporary files


def test_an_interrupted_recipe_goes_on_at_the_next_chunk_with_the_same_bits(trainings, tmp_path):
    plain = cf.leave_out(recipe(), both, range(9))
    trainings.rows, trainings.stop = [], 8
    with pytest.raises(KeyboardInterrupt):
        cf.leave_out(recipe(), both, range(9), store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 8
    trainings.rows, trainings.stop = [], None
    assert torch.equal(cf.leave_out(recipe(), both, range(9), store=tmp_path).values, plain.values)
    assert trainings.rows == [(7,), (8,)]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b'{"names": ["first"]}', b"\xff\x00", b'{"values": "x"}'])
def test_a_damaged_file_is_trained_again(trainings, tmp_path, damage):
    plain = cf.leave_out(ridge, both, range(4), n=30, store=tmp_path)
    for file in sorted(tmp_path.iterdir())[:2]:
        file.write_bytes(damage)
    trainings.rows = []
    assert torch.equal(cf.leave_out(ridge, both, range(4), n=30, store=tmp_path).values, plain.values)
    assert len(trainings.rows) == 2


def test_more_ids_later_train_only_the_new_ones(trainings, tmp_path):
    cf.leave_out(ridge, ask, [1, 2], n=30, store=tmp_path)
    trainings.rows = []
    labels = [f"s{row}" for row in range(30)]
    cf.leave_out(ridge, ask, {"a": ["s2"], "b": ["s3"], "c": ["s1", "s2"]}, n=30, ids=labels, store=tmp_path)
    assert trainings.rows == [(3,), (1, 2)]


def test_nothing_stale_is_reused(trainings, tmp_path):
    def larger(model):
        return ask(model) + 1

    def steeper(model, batch):
        return 2 * half_squares(model, batch)

    runs = [
        lambda: cf.leave_out(recipe(), ask, [0], store=tmp_path),
        lambda: cf.leave_out(recipe(optimizer=cf.SGD(0.4)), ask, [0], store=tmp_path),
        lambda: cf.leave_out(recipe(epochs=149), ask, [0], store=tmp_path),
        lambda: cf.leave_out(recipe(), larger, [0], store=tmp_path),
        lambda: cf.leave_out(cf.Recipe(recipe().init, steeper, (X, Y), **SETTINGS), ask, [0], store=tmp_path),
        lambda: cf.leave_out(cf.Recipe(recipe().init, half_squares, (X, 2 * Y), **SETTINGS), ask, [0], store=tmp_path),
        lambda: cf.leave_out(lambda w: ridge(w, X, Y), ask, [0], n=30, store=tmp_path),
        lambda: cf.leave_out(lambda w: ridge(w, X, -Y), ask, [0], n=30, store=tmp_path),
        lambda: cf.leave_out(lambda w: ridge(w, X[:9], Y[:9]), ask, [0], n=9, store=tmp_path),
    ]
    for run in runs:
        trainings.rows = []
        run()
        assert len(trainings.rows) == 2
        run()
        assert len(trainings.rows) == 2


# Bad input.


def test_what_does_not_fit_is_refused_with_a_sentence():
    for error, sentence, call in (
        (errors.DataError, r"n=len\(x\)", lambda: cf.leave_out(ridge, ask, [0])),
        (errors.DataError, "n=31, but the recipe has 30", lambda: cf.leave_out(recipe(), ask, [0], n=31)),
        (errors.DataError, "2 ids for 30 samples", lambda: cf.leave_out(ridge, ask, ["a"], n=30, ids=["a", "b"])),
        (errors.DataError, "only 1 differ", lambda: cf.leave_out(ridge, ask, ["a"], n=2, ids=["a", "a"])),
        (errors.DataError, "nothing to leave out", lambda: cf.leave_out(ridge, ask, [], n=30)),
        (errors.IdError, "Unknown id 30", lambda: cf.leave_out(ridge, ask, [0, 30], n=30)),
        (errors.IdError, "Unknown id -1", lambda: cf.leave_out(ridge, ask, {"last": [-1]}, n=30)),
        (
            TypeError,
            r"executor object; .*client\.get_executor",
            lambda: cf.leave_out(ridge, ask, [0], n=30, executor=object()),
        ),
        (TypeError, "returned Tensor; needed a torch.nn.Module", lambda: cf.leave_out(lambda w: w, ask, [0], n=30)),
        (errors.ObjectiveError, "float", lambda: cf.leave_out(ridge, lambda m: 1.0, [0], n=30)),
    ):
        with pytest.raises(error, match=sentence):
            call()


def test_names_that_differ_from_model_to_model_are_refused():
    def moody(model):
        return {"up" if ask(model) >= asked() else "down": ask(model)}

    with pytest.raises(errors.ObjectiveError, match=r"differ between retrained models.*'up'"):
        cf.leave_out(ridge, moody, range(30), n=30)
