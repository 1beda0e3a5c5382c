"""Retrainings over real pools of processes, a worker of which dies: nothing is lost, and nothing done twice."""

import logging
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Executor, Future

import pytest
import torch
from grid import normal
from torch import nn

import crossfluence as cf

N = 16
VICTIM = 5  # the sample without which the training kills its own process, the first time
X = normal(N, 3, seed=0)


def training(folder, *, kills=False):
    """A training function that writes down which retrainings began and ended; nested, so that it travels by value."""

    def train(weights, x=X):
        from pathlib import Path

        def note(what):
            Path(folder, f"{what} {row} {os.getpid()} {time.monotonic_ns()}").touch()

        def count(pattern):
            return sum(1 for _ in Path(folder).glob(pattern))

        row = next(iter((weights == 0).nonzero().flatten().tolist()), "none")
        note("began")
        if kills and row == VICTIM and not count("killed*"):
            while count("store/*.json") < max(3, count("ended*")):  # all that had ended is kept: none is on its way
                time.sleep(0.001)
            time.sleep(0.2)  # and nobody waits for it any more
            note("killed")
            os.kill(os.getpid(), signal.SIGKILL)
        model = nn.Linear(3, 1).double()  # from the global generator, which every training finds in the same state
        loss = weights.double() @ (model(x)[:, 0] - x.sum(1).sin()).square()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.01 * gradient
        time.sleep(0.02)  # so that no worker runs through all of them before the others begin
        note("ended")
        return model

    return train


def question():
    """What each retrained model is asked; nested, too."""
    return lambda model: {"bias": model.bias[0], "size": model.weight.square().sum()}


def written(folder, what):
    """How often each retraining did something."""
    return Counter(file.name.split()[1] for file in folder.glob(f"{what} *"))


ROWS = {"none", *map(str, range(N))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The numbers when one training follows another."""
    return cf.leave_out(training(tmp_path_factory.mktemp("alone")), question(), range(N), n=N).values


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as workers,
        distributed.Client(workers) as client,
    ):
        yield client


@pytest.fixture
def loky():
    package = pytest.importorskip("loky")
    yield lambda: package.get_reusable_executor(max_workers=2, timeout=60)
    package.get_reusable_executor().shutdown(wait=True, kill_workers=True)


def test_loky_goes_on_from_the_store_after_a_worker_was_killed(loky, alone, tmp_path):
    train, store = training(tmp_path, kills=True), tmp_path / "store"
    with pytest.raises(RuntimeError, match="terminated"):
        cf.leave_out(train, question(), range(N), n=N, executor=loky(), store=store)
    kept, begun = len(list(store.iterdir())), written(tmp_path, "began").total()
    assert 3 <= kept < N + 1
    found = cf.leave_out(train, question(), range(N), n=N, executor=loky(), store=store)
    assert torch.equal(found.values, alone)
    assert written(tmp_path, "began").total() - begun == N + 1 - kept  # nothing that was kept is done twice
    assert set(written(tmp_path, "ended")) == ROWS
    assert len(list(tmp_path.glob("killed*"))) == 1


def test_dask_goes_on_without_a_worker_that_was_killed(cluster, alone, tmp_path):
    train, store = training(tmp_path, kills=True), tmp_path / "store"
    found = cf.leave_out(train, question(), range(N), n=N, executor=cluster.get_executor(pure=False), store=store)
    assert torch.equal(found.values, alone)
    assert written(tmp_path, "ended") == Counter(ROWS)  # each once: what had ended on the lost worker, too
    assert written(tmp_path, "began") == Counter([*ROWS, str(VICTIM)])
    assert len({file.name.split()[2] for file in tmp_path.glob("began *")}) >= 2
    again = cf.leave_out(train, question(), range(N), n=N, executor=cluster.get_executor(pure=False), store=store)
    assert torch.equal(again.values, alone)
    assert written(tmp_path, "ended") == Counter(ROWS)


def test_dask_keeps_what_had_ended_when_a_training_fails_and_names_the_failure(cluster, alone, tmp_path):
    whole, store = training(tmp_path), tmp_path / "store"

    def train(weights):
        if weights[VICTIM] == 0 and not (tmp_path / "mended").exists():
            while not list(store.glob("*.json")):
                time.sleep(0.001)
            raise MemoryError("no room for the model")
        return whole(weights)

    with pytest.raises(MemoryError, match="no room"):
        cf.leave_out(train, question(), range(N), n=N, executor=cluster.get_executor(pure=False), store=store)
    assert list(store.iterdir())
    (tmp_path / "mended").touch()
    found = cf.leave_out(train, question(), range(N), n=N, executor=cluster.get_executor(pure=False), store=store)
    assert torch.equal(found.values, alone)


def test_recipes_run_in_chunks_over_a_cluster(cluster):
    recipe = cf.Recipe(
        nn.Linear(3, 1).double(),
        lambda model, batch: (model(batch) - batch.sum(1, keepdim=True).sin()).square().sum(1),
        X,
        optimizer=cf.SGD(0.1),
        epochs=4,
        batch_size=4,
        at_once=5,
    )
    found = cf.leave_out(recipe, question(), range(N), executor=cluster.get_executor(pure=False))
    assert torch.equal(found.values, cf.leave_out(recipe, question(), range(N)).values)


# What no pool does on purpose.


class Fragile(Executor):
    """Answers two jobs at once; then breaks, gives the others up, or fails and never begins what is left."""

    def __init__(self, then):
        self.then, self.submitted = then, 0

    def submit(self, function, /, *args, **options):
        self.submitted += 1
        future = Future()
        if self.submitted <= 2:
            future.set_result(function(*args, **options))
        elif self.then == "breaks":
            raise RuntimeError("the pool is broken")
        elif self.then == "gives up":
            future.cancel()
            future.set_running_or_notify_cancel()
        elif self.submitted == 3:
            future.set_exception(RuntimeError("the third failed"))
        return future


@pytest.mark.parametrize(
    ("then", "error", "sentence"),
    [
        ("breaks", RuntimeError, "the pool is broken"),
        ("gives up", CancelledError, "gave up retrainings.*With store=folder, the same call"),
        ("fails", RuntimeError, "the third failed"),
    ],
)
def test_what_ended_is_kept_and_nobody_waits_for_the_rest(then, error, sentence, alone, tmp_path):
    train, store, raised = training(tmp_path), tmp_path / "store", []

    def run():
        with pytest.raises(error, match=sentence) as caught:
            cf.leave_out(train, question(), range(N), n=N, executor=Fragile(then), store=store)
        raised.append(caught)

    thread = threading.Thread(target=run, daemon=True)  # for whoever waits for ever
    thread.start()
    thread.join(30)
    assert raised
    assert len(list(store.iterdir())) == 2
    found = cf.leave_out(train, question(), range(N), n=N, store=store)
    assert torch.equal(found.values, alone)
    assert written(tmp_path, "ended") == Counter(ROWS)
