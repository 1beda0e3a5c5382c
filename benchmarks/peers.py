"""EK-FAC for all pairs of training and test samples, beside kronfluence and dattri: CPU time and agreement.

Usage: CROSSFLUENCE_DATA=<folder> python benchmarks/peers.py --peer-python <python with kronfluence and dattri>
    python -m venv peers && peers/bin/pip install -c constraints.txt torch
    peers/bin/pip install kronfluence==1.0.1 dattri==0.3.0

Three problems, each trained once: a perceptron 784-512-256-10 and a small convolutional network on MNIST, a character
transformer of four layers on Shakespeare (sequences of 64). Then each library runs in its own process, on one thread,
in turns: factors of the empirical Fisher matrix for every linear layer and convolution, corrected eigenvalues, damping
of 0.1 mean eigenvalues, all scores. The time is the process's CPU time after the imports. dattri knows linear layers
only, and has one damping for all layers, 0.1 of the mean of them all: its scores are compared with ours damped alike.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from shakespeare import Transformer, shakespeare, summed
from torch import Tensor, nn
from torch.nn import functional

RESULTS = Path(__file__).parent / "results"
Pair = tuple[Tensor, Tensor]


def perceptron() -> nn.Module:
    sizes = (784, 512), (512, 256)
    return nn.Sequential(*(part for size in sizes for part in (nn.Linear(*size), nn.ReLU())), nn.Linear(256, 10))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def losses(model: nn.Module, batch: Pair) -> Tensor:
    return summed(model(batch[0]), batch[1])


def images(n: int, questions: int) -> tuple[Pair, Pair]:
    from mnist import mnist  # not in the peers' environment

    return mnist("train", n), mnist("test", questions)


@dataclass(frozen=True)
class Problem:
    """A model, its data, and how it is trained.

    Attributes:
        model: Untrained.
        data: Training samples and questions, from how many there are of each.
        n: Training samples, unless said otherwise.
        questions: How many.
        batch: Samples in a step, and in a pass.
        epochs: Of training.
        lr: Of SGD with momentum 0.9.
    """

    model: Callable[[], nn.Module]
    data: Callable[[int, int], tuple[Pair, Pair]]
    n: int
    questions: int
    batch: int
    epochs: int
    lr: float


PROBLEMS = {
    "perceptron": Problem(perceptron, images, 10_000, 200, 256, 3, 0.1),
    "convolutions": Problem(convolutions, images, 2_000, 200, 256, 10, 0.1),
    "transformer": Problem(Transformer, shakespeare, 2_000, 100, 50, 3, 1e-3),
}


def trained(problem: Problem, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr, momentum=0.9)
    for _ in range(problem.epochs):
        for rows in torch.randperm(len(x)).split(problem.batch):
            optimizer.zero_grad()
            losses(model, (x[rows], y[rows])).mean().backward()
            optimizer.step()
    return model.state_dict()


def crossfluence(problem: Problem, model: nn.Module, samples: Pair, tests: Pair, alike: bool = False) -> Tensor:
    """Scores; `alike`: all layers with one damping, as dattri has it."""
    import crossfluence as cf

    known = [f"{name}.*" for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    risk = cf.Risk(model, losses, cf.batches(*samples, size=problem.batch), params=known)
    solver = cf.EKFAC()
    if alike:
        blocks = solver.invert(risk).blocks
        solver = cf.EKFAC(0.1 * float(torch.cat([block.values.flatten() for block in blocks]).mean()))
    questions = cf.each_of(cf.batches(*tests, size=problem.questions), losses)
    return -cf.influence(risk, questions, solver).values


def kronfluence(problem: Problem, model: nn.Module, samples: Pair, tests: Pair) -> Tensor:
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
        analyzer.fit_all_factors(
            "factors", TensorDataset(*samples), per_device_batch_size=problem.batch, factor_args=fit
        )
        analyzer.compute_pairwise_scores(
            "scores", "factors", TensorDataset(*tests), TensorDataset(*samples),
            per_device_query_batch_size=problem.questions, per_device_train_batch_size=problem.batch,
            score_args=ScoreArguments(damping_factor=None),
        )  # fmt: skip
        return analyzer.load_pairwise_scores("scores")["all_modules"].T


def dattri(problem: Problem, model: nn.Module, samples: Pair, tests: Pair) -> Tensor:
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    def loss(params, batch):
        return functional.cross_entropy(torch.func.functional_call(model, params, batch[0]), batch[1])

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = IFAttributorEKFAC(task=task, device="cpu")
    attributor.cache(DataLoader(TensorDataset(*samples), batch_size=problem.batch))
    values = [torch.as_tensor(part).flatten() for part in attributor.cached_lambdas.values()]
    attributor.damping = 0.1 * float(torch.cat(values).mean())
    large = (
        DataLoader(TensorDataset(*part), batch_size=1_000) for part in (samples, tests)
    )  # it repeats tests for each
    return attributor.attribute(*large)


LIBRARIES: dict[str, Callable[..., Tensor]] = {
    "crossfluence": crossfluence,
    "kronfluence": kronfluence,
    "dattri": dattri,
}


def measure(name: str, problem: Problem, given: Path, out: Path) -> None:
    """One library, in the process that this is; prints what it took."""
    torch.set_num_threads(1)
    model, made = problem.model(), torch.load(given)
    model.load_state_dict(made["weights"])
    library, _, alike = name.partition(", ")
    work = LIBRARIES[library] if not alike else lambda *each: crossfluence(*each, alike=True)
    started = time.process_time()
    scores = work(problem, model.eval(), made["samples"], made["tests"])
    seconds = time.process_time() - started
    torch.save(scores.detach(), out)
    print(json.dumps({"seconds": seconds, "version": version(library), "torch": torch.__version__}))


def run(name: str, python: str, problem: str, given: Path) -> tuple[dict[str, str], Tensor]:
    out = given.with_name(f"{name}.scores")
    command = [python, __file__, "--measure", name, "--problem", problem, "--given", str(given), "--out", str(out)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=alone)
    if done.returncode:  # -9 where memory ran out
        raise ChildProcessError(f"{name} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1]), torch.load(out)


def commit() -> str:
    """The code's, and whether it was changed since; results may have been."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", "../src", ":!results")
    return git("describe", "--always") + ("-dirty" if changed else "")


def side_by_side(libraries: list[str], peer_python: str, name: str, n: int) -> Iterator[dict[str, str]]:
    made, problem = commit(), PROBLEMS[name]
    samples, tests = problem.data(n, problem.questions)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given"
        torch.save({"weights": trained(problem, *samples), "samples": samples, "tests": tests}, given)
        ours, reference = run("crossfluence", sys.executable, name, given)
        for library in libraries:
            try:
                row, scores = (ours, reference) if library == "crossfluence" else run(library, peer_python, name, given)
            except ChildProcessError as error:
                print(error, flush=True)
                continue
            beside = run("crossfluence, alike", sys.executable, name, given)[1] if library == "dattri" else reference
            agreement = torch.corrcoef(torch.stack([beside.flatten(), scores.flatten()]).double())[0, 1]
            yield {
                "problem": name, "library": library, "version": row["version"], "n": str(n),
                "questions": str(problem.questions), "cpu seconds": f"{row['seconds']:.2f}",
                "times ours": f"{row['seconds'] / ours['seconds']:.1f}",
                "correlation with ours": f"{agreement:.5f}", "torch": row["torch"], "commit": made,
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="has kronfluence and dattri")
    parser.add_argument("--problem", default="perceptron", choices=PROBLEMS)
    parser.add_argument("--n", type=int)
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    for hidden in ("--measure", "--given", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure, PROBLEMS[chosen.problem], Path(chosen.given), Path(chosen.out))
        return
    rows, n = [], chosen.n or PROBLEMS[chosen.problem].n
    RESULTS.mkdir(exist_ok=True)
    for row in side_by_side(chosen.libraries, chosen.peer_python, chosen.problem, n):
        rows.append(row)
        print(row, flush=True)
        with (RESULTS / f"peers-{chosen.problem}-{n}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
