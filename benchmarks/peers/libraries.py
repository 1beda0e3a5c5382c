"""Scores of other libraries: a benchmark runs this module with a Python that has them, in a process of its own.

    python -m venv peers && peers/bin/pip install -c constraints.txt torch
    peers/bin/pip install kronfluence==1.0.1 dattri==0.3.0 captum==0.9.0

Scores are `(n, m)` in the sign of crossfluence; CPU seconds are those of one thread after the problem was read.
Questions are the losses of single test samples. In `ESTIMATORS`, each library gets the damping of the problem in its
own unit; kronfluence and captum others, too, of which the benchmarks show all. `EKFAC` holds one algorithm of several
libraries, ours among them: EK-FAC of the empirical Fisher matrix, damped by a tenth of the mean eigenvalue.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.losses import LOSSES, Pair
from benchmarks.common.process import last_line, run_module
from benchmarks.common.timing import peak_of_program


@dataclass(frozen=True, eq=False)
class Problem:
    """A trained model, and what the others need to know of it.

    Attributes:
        model: Of PyTorch's own modules, or of one in `common/models.py`: it travels to the other Python.
        loss: A name in `LOSSES`.
        train: Samples and targets.
        test: The same.
        damping: Of the mean loss; its l2 term included.
        batch: Training samples in a pass, where a library reads them in batches.
        queries: Test samples in a pass.
    """

    model: nn.Module
    loss: str
    train: Pair
    test: Pair
    damping: float = 0.0
    batch: int = 500
    queries: int = 500


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


def dattri_ekfac(problem: Problem) -> Tensor:
    """EK-FAC read in batches, with one damping for all layers: a tenth of the mean eigenvalue of them all."""
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask

    task = AttributionTask(
        loss_func=functional_loss(problem), model=problem.model, checkpoints=problem.model.state_dict()
    )
    attributor = IFAttributorEKFAC(task=task, device="cpu")
    attributor.cache(DataLoader(TensorDataset(*problem.train), problem.batch))
    values = [torch.as_tensor(part).flatten() for part in attributor.cached_lambdas.values()]
    attributor.damping = 0.1 * float(torch.cat(values).mean())
    parts = (DataLoader(TensorDataset(*part), 1_000) for part in (problem.train, problem.test))  # tests again for each
    return -attributor.attribute(*parts)


HEADS = ("lm_head",)  # of language models: a factor of the vocabulary's size, which kronfluence's examples leave out


def layer_names(model: nn.Module) -> list[str]:
    """Linear layers, `transformers`' Conv1D among them, and convolutions."""
    kinds = ("Linear", "Conv2d", "Conv1D")
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in kinds and name.rpartition(".")[2] not in HEADS
    ]


def as_linear(model: nn.Module) -> nn.Module:
    """The same model with `transformers`' Conv1D as linear layers, which is what kronfluence knows."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module).__name__ == "Conv1D":
                found = module.state_dict()
                linear = nn.Linear(*found["weight"].shape)
                linear.load_state_dict({"weight": found["weight"].T, "bias": found["bias"]})
                setattr(parent, name, linear)
    return model


def crossfluence(
    problem: Problem, one_damping: bool = False, pilot: int | str | None = None, tolerance: float = 0.05
) -> Tensor:
    """EK-FAC of linear layers and convolutions; with `one_damping` for all of them, as dattri has it."""
    import crossfluence as cf

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        return LOSSES[problem.loss](model(batch[0]), batch[1])

    layers = layer_names(problem.model)
    data = cf.batches(*problem.train, size=problem.batch)
    risk = cf.Risk(problem.model, loss, data, params=[f"{name}.*" for name in layers])
    solver = cf.EKFAC(pilot=pilot, tolerance=tolerance)  # pyright: ignore[reportArgumentType]
    if one_damping:
        blocks = solver.invert(risk).blocks
        solver = cf.EKFAC(0.1 * float(torch.cat([block.values.flatten() for block in blocks]).mean()))
    return cf.influence(risk, cf.each_of(cf.batches(*problem.test, size=problem.queries), loss), solver).values


def log_odds(losses: Tensor) -> Tensor:
    """Of the probability that goes with a log loss, log p / (1 - p), on average."""
    log_p = -losses.clamp(min=1e-6)  # p = 1 has none
    return (log_p - (-log_p.exp()).log1p()).mean()


def sampled(loss: str, z: Tensor) -> Tensor:
    """Targets as the model itself expects them."""
    if loss == "squared error":
        return z + torch.randn_like(z) / 2**0.5
    return torch.distributions.Categorical(logits=z).sample()


def kronfluence(
    times: float | None, problem: Problem, empirical: bool = False, samples: int | None = None, rounded: bool = False
) -> Tensor:
    """Of EK-FAC, damped `times` the problem's damping, or with its own choice, a tenth of the mean eigenvalue.

    With `rounded`, its own settings for gradients and scores in bfloat16.
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Losses(Task):
        def compute_train_loss(self, batch, model, sample=False):
            z = model(batch[0])
            return LOSSES[problem.loss](z, sampled(problem.loss, z.detach()) if sample else batch[1]).sum()

        def compute_measurement(self, batch, model):
            return LOSSES[problem.loss](model(batch[0]), batch[1]).sum()

        def get_influence_tracked_modules(self):
            return layer_names(problem.model)

    task, train, test = Losses(), TensorDataset(*problem.train), TensorDataset(*problem.test)
    model = prepare_model(as_linear(problem.model), task)
    few = {"covariance_max_examples": samples} if samples else {}
    few |= {"lambda_max_examples": samples} if samples else {}
    names = ("score_dtype", "per_sample_gradient_dtype", "precondition_dtype")
    half = dict.fromkeys(names, torch.bfloat16) if rounded else {}
    factors = FactorArguments(strategy="ekfac", use_empirical_fisher=empirical, **few)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "peer", model, task, cpu=not next(model.parameters()).is_cuda, output_dir=folder, disable_tqdm=True
        )
        analyzer.fit_all_factors("factors", train, per_device_batch_size=problem.batch, factor_args=factors)
        analyzer.compute_pairwise_scores(
            "scores", "factors", test, train, per_device_query_batch_size=problem.queries,
            per_device_train_batch_size=problem.batch,
            score_args=ScoreArguments(damping_factor=times and times * problem.damping, **half),
        )  # fmt: skip
        return -analyzer.load_pairwise_scores("scores")["all_modules"].T.float()


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


ESTIMATORS: dict[str, Callable[[Problem], Tensor]] = {
    "dattri CG, 30 steps": partial(dattri, "CG"),
    "dattri EK-FAC": partial(dattri, "EK-FAC"),
    "dattri TRAK, 512 directions": partial(dattri, "TRAK"),
    "kronfluence EK-FAC, .1 mean": partial(kronfluence, None),
    "kronfluence EK-FAC, same damping": partial(kronfluence, 1.0),
    "kronfluence EK-FAC, 10 times": partial(kronfluence, 10.0),
    "captum Arnoldi, same damping": partial(captum, False),
    "captum Arnoldi, n times": partial(captum, True),
}
EKFAC: dict[str, Callable[[Problem], Tensor]] = {
    "crossfluence": crossfluence,
    "crossfluence, tolerance of 0": partial(crossfluence, tolerance=0.0),
    "crossfluence, one damping": partial(crossfluence, one_damping=True),
    "crossfluence, pilot of 100": partial(crossfluence, pilot=100),
    "crossfluence, pilot of 200": partial(crossfluence, pilot=200),
    "crossfluence, pilot auto": partial(crossfluence, pilot="auto"),
    "kronfluence": partial(kronfluence, None, empirical=True),
    "kronfluence, 140 samples": partial(kronfluence, None, empirical=True, samples=140),
    "kronfluence, 140 samples, bfloat16": partial(kronfluence, None, empirical=True, samples=140, rounded=True),
    "crossfluence, pilot of 100, tolerance of 0": partial(crossfluence, pilot=100, tolerance=0.0),
    "dattri": dattri_ekfac,
}


class Answer(NamedTuple):
    """CPU seconds, megabytes at the peak over those at the start, versions and scores of a library."""

    seconds: float
    megabytes: float
    version: str
    torch: str
    scores: Tensor


def ask(python: str, name: str, problem: Problem) -> Answer | None:
    """The answer of a library, from a process with that Python; none where it fails: the reason is printed."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "given"), Path(folder, "out")
        torch.save(vars(problem), given)
        done = run_module("benchmarks.peers.libraries", name, str(given), str(out), python=python, OMP_NUM_THREADS="1")
        try:
            said = json.loads(last_line(done))
        except ChildProcessError as error:
            print(f"{name} failed: {error}", flush=True)
            return None
        return Answer(**said, scores=torch.load(out))


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    name, given, out = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    problem = Problem(**torch.load(given, weights_only=False))
    problem.model(problem.test[0][:1])
    started, before = time.process_time(), peak_of_program()
    scores = (ESTIMATORS | EKFAC)[name](problem)
    seconds, megabytes = time.process_time() - started, 1024 * (peak_of_program() - before)
    torch.save(scores.detach(), out)
    library = name.replace(",", " ").split()[0]
    found = {"seconds": seconds, "megabytes": megabytes, "version": version(library), "torch": torch.__version__}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
