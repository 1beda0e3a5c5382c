"""EK-FAC for all pairs of 10,000 training and 200 test images, beside kronfluence and dattri: CPU time and agreement.

Usage: CROSSFLUENCE_DATA=<folder> python benchmarks/peers.py --peer-python <python with kronfluence and dattri>
    python -m venv peers && peers/bin/pip install -c constraints.txt torch
    peers/bin/pip install kronfluence==1.0.1 dattri==0.3.0

One perceptron 784-512-256-10 on MNIST is trained once. Then each library runs in its own process, on one thread, in
turns: factors of the empirical Fisher matrix, corrected eigenvalues, damping of 0.1 mean eigenvalues, all scores. The
time is the process's CPU time after the imports. dattri has one damping for all layers: 0.1 of the mean of them all.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

QUESTIONS, BATCH, EPOCHS = 200, 256, 3
RESULTS = Path(__file__).parent / "results"


def perceptron() -> nn.Module:
    sizes = (784, 512), (512, 256)
    return nn.Sequential(*(part for size in sizes for part in (nn.Linear(*size), nn.ReLU())), nn.Linear(256, 10))


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def trained(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            losses(model, (x[rows], y[rows])).mean().backward()
            optimizer.step()
    return model.state_dict()


def crossfluence(model: nn.Module, samples: tuple[Tensor, Tensor], tests: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    import crossfluence as cf

    risk = cf.Risk(model, losses, cf.batches(*samples, size=BATCH))
    return {"scores": -cf.influence(risk, cf.each_of(cf.batches(*tests, size=QUESTIONS), losses), cf.EKFAC()).values}


def kronfluence(model: nn.Module, samples: tuple[Tensor, Tensor], tests: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from torch.utils.data import TensorDataset

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return losses(model, batch).sum()

        def compute_measurement(self, batch, model):
            return losses(model, batch).sum()

    task = Classification()
    model = prepare_model(model, task)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("peers", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        fit = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        analyzer.fit_all_factors("factors", TensorDataset(*samples), per_device_batch_size=BATCH, factor_args=fit)
        analyzer.compute_pairwise_scores(
            "scores", "factors", TensorDataset(*tests), TensorDataset(*samples),
            per_device_query_batch_size=QUESTIONS, per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=None),
        )  # fmt: skip
        return {"scores": analyzer.load_pairwise_scores("scores")["all_modules"].T}


def dattri(model: nn.Module, samples: tuple[Tensor, Tensor], tests: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    def loss(params, batch):
        return functional.cross_entropy(torch.func.functional_call(model, params, batch[0]), batch[1])

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = IFAttributorEKFAC(task=task, device="cpu")
    attributor.cache(DataLoader(TensorDataset(*samples), batch_size=BATCH))
    values = [torch.as_tensor(part).flatten() for part in attributor.cached_lambdas.values()]
    attributor.damping = 0.1 * float(torch.cat(values).mean())
    large = (
        DataLoader(TensorDataset(*part), batch_size=1_000) for part in (samples, tests)
    )  # it repeats tests for each
    return {"scores": attributor.attribute(*large)}


LIBRARIES = {"crossfluence": crossfluence, "kronfluence": kronfluence, "dattri": dattri}


def measure(name: str, given: Path, out: Path) -> None:
    torch.set_num_threads(1)
    model, problem = perceptron(), torch.load(given)
    model.load_state_dict(problem["weights"])
    samples, tests = problem["samples"], problem["tests"]
    started = time.process_time()
    found = LIBRARIES[name](model.eval(), samples, tests)
    seconds = time.process_time() - started
    torch.save(found["scores"].detach(), out)
    print(json.dumps({"seconds": seconds, "version": version(name), "torch": torch.__version__}))


def run(name: str, python: str, problem: Path) -> tuple[dict[str, str], Tensor]:
    out = problem.with_name(f"{name}.scores")
    command = [python, __file__, "--measure", name, "--problem", str(problem), "--out", str(out)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=alone)
    return json.loads(done.stdout.splitlines()[-1]), torch.load(out)


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


def side_by_side(libraries: list[str], peer_python: str, n: int) -> Iterator[dict[str, str]]:
    from mnist import mnist  # not in the peers' environment

    made, samples = commit(), mnist("train", n)
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder) / "problem"
        torch.save({"weights": trained(*samples), "samples": samples, "tests": mnist("test", QUESTIONS)}, problem)
        ours, reference = run("crossfluence", sys.executable, problem)
        for name in libraries:
            row, scores = (ours, reference) if name == "crossfluence" else run(name, peer_python, problem)
            agreement = torch.corrcoef(torch.stack([reference.flatten(), scores.flatten()]).double())[0, 1]
            yield {
                "library": name, "version": row["version"], "n": str(n), "questions": str(QUESTIONS),
                "cpu seconds": f"{row['seconds']:.2f}", "times ours": f"{row['seconds'] / ours['seconds']:.1f}",
                "correlation with ours": f"{agreement:.5f}", "torch": row["torch"], "commit": made,
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="has kronfluence and dattri")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    for hidden in ("--measure", "--problem", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure, Path(chosen.problem), Path(chosen.out))
        return
    rows = []
    RESULTS.mkdir(exist_ok=True)
    for row in side_by_side(chosen.libraries, chosen.peer_python, chosen.n):
        rows.append(row)
        print(row, flush=True)
        with (RESULTS / f"peers-{chosen.n}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
