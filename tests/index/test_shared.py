"""Indexes that several processes build, started by torchrun: those of one process, whoever wrote which file."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, pathlib, signal, sys, torch
import crossfluence as cf
from crossfluence._index import shards, writing

rank, count, kill = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(sys.argv[1])
shards.SHARD_BYTES = int(sys.argv[2])
draw = torch.Generator().manual_seed(0)
x = torch.randn(37, 4, generator=draw, dtype=torch.float64)
y = torch.randint(3, (37,), generator=draw)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()

def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

if kill and rank == count - 1:
    turn = iter(range(kill))
    group = writing._Writing._group

    def dying(*args):
        if next(turn, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return group(*args)

    writing._Writing._group = dying
risk = cf.Risk(model, loss, cf.batches(x, y, size=int(sys.argv[3])))
index = cf.Index.build(risk, cf.EKFAC(), "shared", dtype="float32", tolerance=0.0)
alone = cf.Risk(model, loss, cf.batches(x, y, size=5), shared=False)
each = cf.each_of(cf.batches(x[:6], y[:6], size=4), loss)
wanted = cf.influence(alone, each, cf.EKFAC(tolerance=0.0)).values

def near(found, wanted):
    assert float((found.double() - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())

near(index.scores(each).values, wanted)
assert index.ids == tuple(range(37))
index.append(cf.batches(x[:11], y[:11], size=3), ids=[f"again {row}" for row in range(11)])
near(index.scores(each).values, torch.cat([wanted, wanted[:11]]))
near(cf.Index.open("shared", model).scores(each).values, torch.cat([wanted, wanted[:11]]))
assert len(index.ids) == 48
near(index.self_influence().values[:37], cf.self_influence(alone, cf.EKFAC()).values)

def refused(kind, words, call):
    try:
        call()
    except kind as error:
        assert words in str(error), (words, str(error))
    else:
        raise AssertionError(words)

wrong = x.clone()
wrong[36, 0] = float("nan")  # the last rank reads it, and all say so
new = cf.batches(wrong, y, size=5)
refused(cf.errors.NonFiniteError, "of the new data", lambda: index.append(new, ids=range(50, 87)))
refused(cf.errors.DataError, "in the index already", lambda: index.append(cf.batches(x, y, size=5), ids=range(37)))
refused(cf.errors.RankError, "have different data", lambda: index.append(cf.batches(x + rank, y, size=5)))
if count > 1:
    write = shards.write_tensors

    def full(path, *args, **kwargs):
        if "rows-" in str(path):
            raise OSError(28, "No space left on device")
        write(path, *args, **kwargs)

    shards.write_tensors = full if rank == count - 1 else write
    build = lambda: cf.Index.build(risk, cf.EKFAC(), "full")
    refused(cf.errors.ResultFileError, "0 of 37 samples are in whole files", build)
    shards.write_tensors = write
    assert build().info()["samples"] == 37
    refused(cf.errors.ResultFileError, "Make its parent first", lambda: cf.Index.build(risk, cf.EKFAC(), "no/where"))
    place = pathlib.Path(f"of rank {rank}")
    refused(cf.errors.RankError, "one folder: name one on a disk that all machines share",
            lambda: cf.Index.build(risk, cf.EKFAC(), place))
print("all is well")
"""


def run(folder, ranks, *settings):
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"]
    return subprocess.run(
        [*command, "script.py", *map(str, settings)], cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def rows(folder):
    return json.loads((folder / "shared" / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("ranks", "shard", "size"),
    [
        (2, 600, 5),
        pytest.param(3, 2**26, 20, marks=pytest.mark.slow),  # two batches: one rank has none
        pytest.param(1, 600, 5, marks=pytest.mark.slow),
        pytest.param(3, 600, 3, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_any_number_of_ranks_builds_the_index_of_one_process(tmp_path, ranks, shard, size):
    done = run(tmp_path, ranks, 0, shard, size)
    assert done.stdout.count("all is well") == ranks, done.stderr[-3000:]


def test_a_killed_rank_ends_the_build_and_the_same_command_goes_on(tmp_path):
    done = run(tmp_path, 2, 2, 600, 5)
    assert done.returncode != 0
    assert "has lost another rank" in done.stderr
    before = rows(tmp_path)["unfinished"]["shards"]
    assert sum(part["rows"] for part in before) == 20
    done = run(tmp_path, 2, 0, 600, 5)
    assert done.stdout.count("all is well") == 2, done.stderr[-3000:]
    assert rows(tmp_path)["parts"][0]["shards"][: len(before)] == before
