"""Retrainings over MPI, where there is one: `apt install openmpi-bin`, `pip install mpi4py`."""

import os
import shutil
import subprocess
import sys

import pytest

TRAINING = """
import torch
import crossfluence as cf

x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
start = torch.nn.Linear(3, 1, dtype=torch.float64)
torch.nn.init.zeros_(start.weight), torch.nn.init.zeros_(start.bias)


def loss(model, batch):
    return (model(batch)[:, 0] - batch.sum(1).sin()).square()


recipe = cf.Recipe(start, loss, x, optimizer=cf.SGD(0.1, 0.9), epochs=20)


def train(weights):
    return recipe.train(weights)


def question(model):
    return model.bias[0]
"""
SCRIPT = """
from mpi4py.futures import MPIPoolExecutor
from training import cf, question, recipe, train

if __name__ == "__main__":
    with MPIPoolExecutor() as executor:
        found = cf.leave_out(train, question, range(8), n=40, executor=executor, store="retrained")
    print("the same:", bool((found.values == cf.leave_out(recipe, question, range(8)).values).all()))
"""


@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="needs mpiexec")
def test_retrainings_over_mpi_are_those_of_one_process(tmp_path):
    pytest.importorskip("mpi4py")
    (tmp_path / "training.py").write_text(TRAINING)
    (tmp_path / "script.py").write_text(SCRIPT)
    freely = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe")
    settings = os.environ | dict.fromkeys(freely, "1") | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["mpiexec", "-n", "3", sys.executable, "-m", "mpi4py.futures", "script.py"],
        cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "the same: True" in done.stdout, done.stderr
    assert len(list((tmp_path / "retrained").glob("*.json"))) == 9  # and that of all samples
