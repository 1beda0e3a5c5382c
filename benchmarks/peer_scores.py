"""Scores of other libraries: a benchmark runs this file with a Python that has them, in a process of its own.

    python -m venv peers && peers/bin/pip install -c constraints.txt torch
    peers/bin/pip install kronfluence==1.0.1 dattri==0.3.0 captum==0.9.0

Scores are `(n, m)` in the sign of crossfluence; CPU seconds are counted after the imports. Each library gets the
damping of the problem in its own unit; kronfluence and captum others, too, of which the benchmarks show all. Questions
are the losses of single test samples.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from shakespeare import summed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Data = tuple[Tensor, Tensor]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross entropy": summed,
    "mean over characters": lambda z, y: summed(z, y) / y.shape[1],
    "squared error": lambda z, y: (z - y).square().sum(1),
}  # each of outputs and targets, `(b,)`


@dataclass(frozen=True, eq=False)
class Problem:
    """A trained model, and what the others need to know of it.

    Attributes:
        model: Of PyTorch's own modules, or of one in this folder: it travels to the other Python.
        loss: A name in `LOSSES`.
        train: Samples and targets.
        test: The same.
        damping: Of the mean loss; its l2 term included.
    """

    model: nn.Module
    loss: str
    train: Data
    test: Data
    damping: float


def functional_loss(problem: Problem, of_losses: Callable[[Tensor], Tensor] = torch.mean):
    """Of parameters and a batch, or a sample alone, as dattri calls it."""
    shapes = [part.shape[1:] for part in problem.train]

    def loss(params, batch):
        x, y = (part.reshape(-1, *shape) for part, shape in zip(batch, shapes, strict=True))
        return of_losses(LOSSES[problem.loss](torch.func.functional_call(problem.model, params, x), y))

    return loss


def dattri(kind: str, problem: Problem) -> Tensor:
    """All data in one batch for the curvature: it would add up the inverses of several."""
    from dattri.algorithm import influence_function as attributors
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    whole, tests = (DataLoader(TensorDataset(*part), len(part[0])) for part in (problem.train, problem.test))
    of_losses = log_odds if kind == "TRAK" else torch.mean  # TRAK asks for these, and weighs samples by 1 - p
    loss = functional_loss(problem, of_losses)
    task = AttributionTask(loss_func=loss, model=problem.model, checkpoints=problem.model.state_dict())
    if kind == "TRAK":
        p = functional_loss(problem, lambda losses: (-losses).exp().mean())
        attributor = TRAKAttributor(task, p, projector_kwargs={"proj_dim": 512, "device": "cpu"})
        attributor.cache(whole)
        return -attributor.attribute(tests)
    if kind == "CG":
        attributor = attributors.IFAttributorCG(task, max_iter=30, regularization=problem.damping)
    else:
        attributor = attributors.IFAttributorEKFAC(task, damping=problem.damping)
    attributor.cache(whole)
    return -attributor.attribute(whole, tests)


def log_odds(losses: Tensor) -> Tensor:
    """Of the probability that goes with a log loss, log p / (1 - p), on average."""
    log_p = -losses.clamp(min=1e-6)  # p = 1 has none
    return (log_p - (-log_p.exp()).log1p()).mean()


def sampled(loss: str, z: Tensor) -> Tensor:
    """Targets as the model itself expects them."""
    if loss == "squared error":
        return z + torch.randn_like(z) / 2**0.5
    return torch.distributions.Categorical(logits=z).sample()


def kronfluence(times: float | None, problem: Problem) -> Tensor:
    """Of EK-FAC, damped `times` the problem's damping, or with its own choice, a tenth of the mean eigenvalue."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Losses(Task):
        def compute_train_loss(self, batch, model, sample=False):
            z = model(batch[0])
            return LOSSES[problem.loss](z, sampled(problem.loss, z.detach()) if sample else batch[1]).sum()

        def compute_measurement(self, batch, model):
            return LOSSES[problem.loss](model(batch[0]), batch[1]).sum()

    task, train, test = Losses(), TensorDataset(*problem.train), TensorDataset(*problem.test)
    model = prepare_model(problem.model, task)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("peer", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        analyzer.fit_all_factors(
            "factors", train, per_device_batch_size=500, factor_args=FactorArguments(strategy="ekfac")
        )
        analyzer.compute_pairwise_scores(
            "scores", "factors", test, train, per_device_query_batch_size=500, per_device_train_batch_size=500,
            score_args=ScoreArguments(damping_factor=times and times * problem.damping),
        )  # fmt: skip
        return -analyzer.load_pairwise_scores("scores")["all_modules"].T


def captum(summed_over_samples: bool, problem: Problem) -> Tensor:
    """Arnoldi with 100 eigenvectors; its damping is on the summed Hessian."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    train = TensorDataset(*problem.train)
    damping = problem.damping * (len(train) if summed_over_samples else 1)
    attributor = ArnoldiInfluenceFunction(
        problem.model, train, "", lambda *_: 0.0, loss_fn=LOSSES[problem.loss], batch_size=1_000,
        projection_dim=100, arnoldi_dim=200, hessian_reg=damping,
    )  # fmt: skip
    return -attributor.influence(problem.test).T


LIBRARIES: dict[str, Callable[[Problem], Tensor]] = {
    "dattri CG, 30 steps": partial(dattri, "CG"),
    "dattri EK-FAC": partial(dattri, "EK-FAC"),
    "dattri TRAK, 512 directions": partial(dattri, "TRAK"),
    "kronfluence EK-FAC, .1 mean": partial(kronfluence, None),
    "kronfluence EK-FAC, same damping": partial(kronfluence, 1.0),
    "kronfluence EK-FAC, 10 times": partial(kronfluence, 10.0),
    "captum Arnoldi, same damping": partial(captum, False),
    "captum Arnoldi, n times": partial(captum, True),
}


def ask(python: str, name: str, problem: Problem) -> tuple[float, str, Tensor] | None:
    """CPU seconds, version and scores of another library, or nothing where it fails; its last words are printed."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "given"), Path(folder, "out")
        torch.save(vars(problem), given)
        done = subprocess.run(
            [python, __file__, name, str(given), str(out)],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            return None
        said = json.loads(done.stdout.splitlines()[-1])
        return said["seconds"], said["version"], torch.load(out)


def main() -> None:
    name, given, out = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    problem = Problem(**torch.load(given, weights_only=False))
    started = time.process_time()
    scores = LIBRARIES[name](problem)
    seconds = time.process_time() - started
    torch.save(scores.detach(), out)
    print(json.dumps({"seconds": seconds, "version": version(name.split()[0])}))


if __name__ == "__main__":
    main()
