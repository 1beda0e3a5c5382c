"""Jobs of several processes, started by torchrun: every rank has the answer of one process."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from crossfluence._data.batches import batches, numbered_batches
from crossfluence._data.ranks import Ranks, ranks_for
from crossfluence.errors import RankError

MODEL = """
import os, signal, time, torch
import crossfluence as cf

rank, draw = int(os.environ["RANK"]), torch.Generator().manual_seed(0)
x = torch.randn(37, 4, generator=draw, dtype=torch.float64)
y = torch.randint(3, (37,), generator=draw)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()

def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
"""
ANSWERS = (
    MODEL
    + """
dataset = torch.utils.data.TensorDataset(x, y)
kinds = {
    "uneven": cf.batches(x, y, size=5),
    "a rank without data": cf.batches(x, y, size=20),
    "listed": [(x[start:start + 5], y[start:start + 5]) for start in range(0, 37, 5)],
    "loader": torch.utils.data.DataLoader(dataset, 5),
}

def one(model):
    return model(x[:1])[0, 0]

more = cf.batches(x[20:] + 1, y[20:], size=7)
text = torch.randint(6, (14, 5), generator=draw)

def tokens(z, batch):
    return torch.nn.functional.cross_entropy(z[:, :-1].transpose(1, 2), batch[:, 1:], reduction="none")

def places(batch):  # another number in each sample
    return torch.where(torch.arange(4) < 1 + batch[:, :1] % 4, torch.arange(4), -1)

def by_token(shared):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(6, 3), torch.nn.Linear(3, 6)).double()
    kind = cf.OnOutputs.by_token(lambda model, batch: model(batch), tokens, places)
    risk = cf.Risk(net, kind, cf.batches(text, size=3), l2=0.1, shared=shared)
    asked = lambda net: net(text[:1])[0, 0, 0]
    found = cf.influence(risk, asked, cf.EKFAC(), unit="token")
    return found, cf.influence(risk, asked, cf.EKFAC(), unit="token", candidates=cf.batches(text[:5] * 0 + 2, size=2))

def coupled(model, batch, weights):
    z = model(batch[0])
    return (weights * (z.square().sum(1) - (z * (weights @ z)).sum(1) / 5)).sum()

def answers(shared, data):
    risk = cf.Risk(model, loss, data, l2=1e-2, shared=shared)
    each = cf.each_of(cf.batches(x[:6], y[:6], size=4), loss)
    scores = [cf.influence(risk, each, solver) for solver in (
        cf.EKFAC(), cf.Identity(), cf.EKFAC(curvature=cf.Fisher()), cf.EKFAC(pilot=8, damping=0.1),
    )]
    scores += [cf.influence(risk, one, solver) for solver in (
        cf.CG(cf.Relative(1.0), curvature=cf.GaussNewton(), rtol=1e-12), cf.GMRES(cf.Relative(.5), rtol=1e-12),
        cf.Exact(cf.Relative(.5)), cf.CG(cf.Relative(1.0), curvature=cf.Fisher(2), rtol=1e-12), cf.Auto(),
    )]
    scores += [cf.self_influence(risk, cf.EKFAC())]
    scores += [cf.influence(risk, asked, solver, candidates=more)
               for asked, solver in ((each, cf.EKFAC()), (one, cf.CG(1.0, rtol=1e-12)))]
    scores += [cf.influence(risk, one, solver) for solver in (cf.Horizon(), cf.Horizon(roots=50), cf.Horizon(pilot=20))]
    return [part.values for part in scores] + [risk.gradient.unsqueeze(1)]

for name, data in kinds.items():
    if name != "uneven" and int(os.environ["WORLD_SIZE"]) == 2:
        continue  # three ranks do them
    for place, (got, wanted) in enumerate(zip(answers(None, data), answers(False, data))):
        assert float((got - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max()), (name, place)
for got, wanted in zip(by_token(None), by_token(False)):
    assert got.ids == wanted.ids and torch.allclose(got.values, wanted.values, rtol=1e-10, atol=1e-14)
data = kinds["uneven"]
got, wanted = (
    cf.influence(cf.Risk(model, cf.WeightedLoss(coupled), data, l2=2.0, shared=shared), one, cf.CG(1.0)).values
    for shared in (None, False)
)
assert torch.allclose(got, wanted, rtol=1e-6)

def refused(kind, words, call):
    try:
        call()
    except kind as error:
        assert words in str(error), (words, str(error))
    else:
        raise AssertionError(words)

other = torch.nn.Linear(4, 3).double()
torch.nn.init.constant_(other.weight, float(rank)), torch.nn.init.zeros_(other.bias)
refused(cf.errors.RankError, "Rank 1 has another model", lambda: cf.Risk(other, loss, data))
moved = cf.batches(x + (rank == 1), y, size=5)
refused(cf.errors.RankError, "have different data", lambda: cf.Risk(model, loss, moved))
fewer = cf.batches(x[: 37 - 10 * rank], y[: 37 - 10 * rank], size=5)
refused(cf.errors.RankError, "have different data", lambda: cf.Risk(model, loss, fewer))
refused(cf.errors.RankError, "Rank 1 has another l2", lambda: cf.Risk(model, loss, data, l2=float(rank)))
wrong = x.clone()
wrong[36, 0] = float("inf")  # the last rank reads it, and all say so
risk = cf.Risk(model, loss, cf.batches(wrong, y, size=5))
refused(cf.errors.NonFiniteError, "in batch 7", lambda: cf.influence(risk, one, cf.Identity()))
armed = []

def failing(model, batch):
    if armed and rank == 1:
        raise ZeroDivisionError("once")
    return loss(model, batch)

risk = cf.Risk(model, failing, data)
armed.append(1)
refused((cf.errors.RankError, ZeroDivisionError), "once", lambda: risk.gradient)
risk = cf.Risk(model, loss, data)
calls = (lambda: risk.gradient) if rank else lambda: risk.jacobian_product(torch.ones(1, risk.p, dtype=torch.float64))
refused(cf.errors.RankError, "Every rank has to make the same calls", calls)

torch.distributed.init_process_group("gloo")  # as training with DDP does
if rank == 0:
    found = cf.influence(cf.Risk(model, loss, data), one, cf.CG(1.0, curvature=cf.GaussNewton()))
    assert "worked alone" in str(found.report.notes)
torch.distributed.barrier()
found = cf.influence(cf.Risk(model, loss, data, shared=True), one, cf.CG(1.0, curvature=cf.GaussNewton()))
assert "worked alone" not in str(found.report.notes)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sharded = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)).double()
fully_shard(sharded, mesh=init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),)))
for shared in (None, True, False):
    refused(cf.errors.UnsupportedError, "The model is sharded", lambda: cf.Risk(sharded, loss, data, shared=shared))
place = f"index of {rank}"
cf.Index.build(cf.Risk(model, loss, data), cf.EKFAC(), place)
refused(cf.errors.UnsupportedError, "The model is sharded", lambda: cf.Index.open(place, sharded))
torch.distributed.destroy_process_group()
print("all is well")
"""
)
KILLED = (
    MODEL
    + """
armed = []

def dying(model, batch):
    if armed and rank == 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(model, batch)

risk = cf.Risk(model, dying, cf.batches(x, y, size=5))
armed.append(1)
cf.influence(risk, lambda model: model(x[:1])[0, 0], cf.Identity())
"""
)


def run(folder, script, ranks):
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"]
    return subprocess.run(
        [*command, "script.py"], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gives_the_answers_of_one_process_and_refuses_what_differs(tmp_path, ranks):
    done = run(tmp_path, ANSWERS, ranks)
    assert done.stdout.count("all is well") == ranks, done.stderr[-3000:]


def test_a_killed_rank_ends_the_job_with_a_sentence(tmp_path):
    done = run(tmp_path, KILLED, 2)
    assert done.returncode != 0
    assert "has lost another rank" in done.stderr


@pytest.mark.parametrize("sizes", [[5] * 8, [7], [], [1, 100, 1, 1], [0, 3, 0, 9, 2]])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_batch_belongs_to_one_rank(sizes, count):
    parts = [Ranks(number, count).part(sizes) for number in range(count)]
    assert [index for part in parts for index in part] == list(range(len(sizes)))


def test_equal_batches_are_dealt_evenly():
    assert [len(Ranks(number, 3).part([4] * 10)) for number in range(3)] in ([3, 4, 3], [4, 3, 3], [3, 3, 4])


@pytest.mark.parametrize("kind", ["batches", "dataset", "list", "loader", "iterable"])
def test_batches_that_are_not_wanted_are_not_read(kind):
    x, read = torch.arange(10.0), []

    class Reads(TensorDataset):
        def __getitem__(self, index):
            read.append(index)
            return x[index]

    class Anew:
        def __iter__(self):
            return iter(x.split(3))

    made = {
        "batches": batches(x, size=3), "dataset": batches(Reads(x), size=3), "list": list(x.split(3)),
        "loader": DataLoader(Reads(x), 3), "iterable": Anew(),
    }  # fmt: skip
    found = dict(numbered_batches(made[kind], range(2, 4)))
    assert {index: batch.tolist() for index, batch in found.items()} == {2: [6, 7, 8], 3: [9]}
    assert read == ([6, 7, 8, 9] if kind in {"dataset", "loader"} else [])


def test_ranks_that_are_not_there_are_asked_for_in_vain(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert ranks_for(None).count == 1
    with pytest.raises(RankError, match="torchrun --nproc-per-node"):
        ranks_for(True)
