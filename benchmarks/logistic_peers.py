"""Other libraries on the logistic regression of `logistic.py`, which runs this file with a Python that has them.

Writes scores `(n, m)` in the sign of crossfluence, and prints CPU seconds and the version. Each has the l2 term of the
training as its damping, in its own unit; kronfluence and captum also others, of which `logistic.py` shows all.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Model(nn.Module):
    """One linear layer that is an attribute, as captum wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, 10)`."""
        return self.linear(x)


def dattri_task(model: Model):
    from dattri.task import AttributionTask

    def loss(params, batch):
        return functional.cross_entropy(torch.func.functional_call(model, params, batch[0]), batch[1])

    return AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())


def dattri(kind: str, model: Model, train: TensorDataset, test: TensorDataset, l2: float) -> Tensor:
    """All data in one batch for the curvature: it would add up the inverses of several."""
    from dattri.algorithm import influence_function as attributors

    whole, tests = DataLoader(train, batch_size=len(train)), DataLoader(test, batch_size=len(test))
    if kind == "cg":
        attributor = attributors.IFAttributorCG(dattri_task(model), max_iter=30, regularization=l2)
    else:
        attributor = attributors.IFAttributorEKFAC(dattri_task(model), damping=l2)
    attributor.cache(whole)
    return -attributor.attribute(whole, tests)


def kronfluence(damping: float | None, model: Model, train: TensorDataset, test: TensorDataset, l2: float) -> Tensor:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0])
            labels = logits.detach().softmax(1).multinomial(1)[:, 0] if sample else batch[1]
            return functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    task = Classification()
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("lr", prepare_model(model, task), task, cpu=True, output_dir=folder, disable_tqdm=True)
        analyzer.fit_all_factors(
            "factors", train, per_device_batch_size=500, factor_args=FactorArguments(strategy="ekfac")
        )
        analyzer.compute_pairwise_scores(
            "scores", "factors", test, train, per_device_query_batch_size=500, per_device_train_batch_size=500,
            score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        return -analyzer.load_pairwise_scores("scores")["all_modules"].T


def captum(scale: float, model: Model, train: TensorDataset, test: TensorDataset, l2: float) -> Tensor:
    """Arnoldi with 100 eigenvectors; its damping is on the summed Hessian."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    attributor = ArnoldiInfluenceFunction(
        model, train, "", lambda *_: 0.0, loss_fn=nn.CrossEntropyLoss(reduction="none"), batch_size=1_000,
        projection_dim=100, arnoldi_dim=200, hessian_reg=l2 * scale,
    )  # fmt: skip
    return -attributor.influence(tuple(test.tensors)).T


LIBRARIES: dict[str, Callable[..., Tensor]] = {
    "dattri CG, 30 steps": partial(dattri, "cg"),
    "dattri EK-FAC": partial(dattri, "ekfac"),
    "kronfluence EK-FAC, .1 mean": partial(kronfluence, None),
    "kronfluence EK-FAC, l2": partial(kronfluence, 1e-3),
    "kronfluence EK-FAC, 10 l2": partial(kronfluence, 1e-2),
    "captum Arnoldi, l2": partial(captum, 1.0),
    "captum Arnoldi, n l2": partial(captum, 5_000.0),
}


def main() -> None:
    name, given, out = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    problem, model = torch.load(given), Model()
    model.load_state_dict({f"linear.{part}": tensor for part, tensor in problem["weights"].items()})
    train, test = TensorDataset(*problem["train"]), TensorDataset(*problem["test"])
    started = time.process_time()
    scores = LIBRARIES[name](model.eval(), train, test, problem["l2"])
    seconds = time.process_time() - started
    torch.save(scores.detach(), out)
    print(json.dumps({"seconds": seconds, "version": version(name.split()[0])}))


if __name__ == "__main__":
    main()
