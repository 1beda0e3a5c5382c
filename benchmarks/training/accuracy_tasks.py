"""The trainings of `accuracy.py`, and what is asked of each.

Logistic regression (trained until it stands still), a small MLP and an autoencoder on 1,000 images of MNIST; Deep
Embedded Clustering with its moving target on the mixture of Gaussians; in-batch contrastive training on noisy pairs of
the same images, asked for the loss of a linear probe that is fitted to the embedding in closed form; a transformer of
two layers on Shakespeare.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import crossfluence as cf
from benchmarks.common.losses import LOSSES, Pair, on_outputs
from benchmarks.common.models import Transformer, zeroed
from benchmarks.data.mnist import mnist
from benchmarks.data.shakespeare import shakespeare
from benchmarks.paper.mixture import CONVERGED, _start, gaussians
from benchmarks.peers.libraries import Problem
from crossfluence._solvers.base import AbstractSolver
from crossfluence.clustering.dec import encoder, moving_target
from crossfluence.clustering.objectives import log_assignment

N, QUESTIONS, SUBSETS = 1_000, 10, 50


@dataclass(frozen=True, eq=False)
class Task:
    """A training and what is asked of it.

    Attributes:
        recipe: The training.
        objective: The questions.
        solver: Of influence: damped where training did not end at a minimum.
        loss: A name in `LOSSES`, where other libraries know such a loss and such questions; else empty.
        test: Samples and targets that the questions are the losses of, for them.
        damping: For them, and for whatever of ours is not told one: that of the solver.
        left_out: Estimators that would take longer than all others together.
    """

    recipe: cf.Recipe
    objective: Callable[[nn.Module], Tensor]
    solver: AbstractSolver
    loss: str = ""
    test: Pair | None = None
    damping: float = 0.0
    left_out: tuple[str, ...] = ()

    def problem(self, model: nn.Module) -> Problem | None:
        """For other libraries, in float32 as they expect it; none where they cannot ask this."""
        if self.test is None:
            return None
        data = self.recipe.data
        pairs = (data if isinstance(data, tuple) else (data, data)), self.test
        train, test = (tuple(part.float() if part.is_floating_point() else part for part in pair) for pair in pairs)
        of = nn.Sequential(copy.deepcopy(model).float().eval())
        return Problem(of, self.loss, train, test, damping=self.damping + self.recipe.l2)


def losses_of(name: str, test: Pair) -> Callable[[nn.Module], Tensor]:
    """The loss of each test sample, as questions."""
    return lambda model: LOSSES[name](model(test[0]), test[1])


def plain(recipe: Callable[..., cf.Recipe], name: str, test: Pair, damping: float) -> Task:
    """Asked for losses like the one it was trained on."""
    return Task(recipe(on_outputs(LOSSES[name])), losses_of(name, test), cf.Auto(damping), name, test, damping)


def doubles(split: str, count: int) -> Pair:
    x, y = mnist(split, count)
    return x.double(), y


def logistic() -> Task:
    model = zeroed(nn.Linear(784, 10))
    made = partial(
        cf.Recipe, model, data=mnist("train", N), optimizer=cf.SGD(0.3, 0.97), epochs=600, l2=1e-3, at_once=SUBSETS
    )
    return plain(made, "cross entropy", mnist("test", QUESTIONS), damping=0.0)


def perceptron(epochs: int = 10) -> Task:
    made = partial(
        cf.Recipe, encoder([784, 32, 10]), data=doubles("train", N), optimizer=cf.SGD(0.05, 0.9), epochs=epochs,
        batch_size=50, l2=1e-3, schedule=cf.WarmUp(0.1), at_once=SUBSETS,
    )  # fmt: skip
    return plain(made, "cross entropy", doubles("test", QUESTIONS), damping=1e-2)


def autoencoder() -> Task:
    x, _ = doubles("train", N)
    made = partial(
        cf.Recipe, encoder([784, 32, 784]), data=(x, x), optimizer=cf.SGD(5e-4, 0.9), epochs=10, batch_size=50,
        l2=1e-3, schedule=cf.WarmUp(0.1), at_once=SUBSETS,
    )  # fmt: skip
    x, _ = doubles("test", QUESTIONS)
    return plain(made, "squared error", (x, x), damping=1e-2)


def transformer() -> Task:
    """Two layers that predict the next character of Shakespeare, asked for the loss of lines they have not seen."""
    torch.manual_seed(0)
    model = Transformer(length=32, width=32, heads=2, layers=2).double()
    samples, asked = shakespeare(N // 2, QUESTIONS, length=32)
    made = partial(
        cf.Recipe, model, data=samples, optimizer=cf.SGD(0.1, 0.9), epochs=10, batch_size=50, l2=1e-3,
        schedule=cf.WarmUp(0.1), at_once=10,
    )  # fmt: skip
    task = plain(made, "mean over characters", asked, damping=1e-2)
    solver = cf.CG(1e-2, max_steps=20, curvature=cf.GaussNewton())
    return replace(task, solver=solver, left_out=("source",))  # some hundred products of ten questions each


def clusters(eps_root: float) -> Task:
    x, _ = gaussians(0)
    x = (x - x.mean(0)) / x.std(0)
    recipe = cf.Recipe(
        _start(CONVERGED, x, 0), moving_target, x, optimizer=cf.Adam(1e-2, eps_root=eps_root), epochs=600, l2=1e-2,
        schedule=cf.cosine, at_once=SUBSETS,
    )  # fmt: skip
    rows = torch.arange(0, 150, 25)
    with torch.no_grad():
        names = recipe.init(x[rows]).argmax(1)
    return Task(recipe, log_assignment(x[rows], names), cf.Auto())


def info_nce(model: nn.Module, batch: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    first, second = (F.normalize(model(view), dim=1) for view in batch)
    alike = first @ second.T / 0.2  # (b, b)
    among = (alike.exp() @ weights).log()
    return weights @ (among - alike.diagonal())


def probe_loss(model: nn.Module, fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Tensor:
    """Squared errors of test images after ridge regression from embeddings to digits, differentiable throughout."""

    def embedded(x: Tensor) -> Tensor:
        z = F.normalize(model(x), dim=1)
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)

    a, targets = embedded(fit[0]), F.one_hot(fit[1], 10).double()
    head = torch.linalg.solve(a.T @ a + 1e-1 * torch.eye(a.shape[1], dtype=a.dtype), a.T @ targets)
    return (embedded(test[0]) @ head - F.one_hot(test[1], 10)).square().sum(1)


def probe() -> Task:
    (x, _), labelled, test = doubles("train", N), doubles("train", 2 * N), doubles("test", 500)
    generator = torch.Generator().manual_seed(0)
    views = tuple(x + 0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))
    recipe = cf.Recipe(
        encoder([784, 32, 16]), cf.WeightedLoss(info_nce), views, optimizer=cf.SGD(0.05, 0.9), epochs=10,
        batch_size=100, l2=1e-3, schedule=cf.WarmUp(0.1), at_once=SUBSETS,
    )  # fmt: skip
    fit = tuple(part[N:] for part in labelled)

    def questions(model: nn.Module) -> Tensor:
        losses = probe_loss(model, fit, test)
        return torch.stack([losses.mean(), *(losses[test[1] == digit].mean() for digit in range(QUESTIONS - 1))])

    return Task(recipe, questions, cf.GMRES(1e-2, max_steps=20))  # no minimum: the curvature has two signs


TASKS: dict[str, Callable[[], Task]] = {
    "LR": logistic,
    "MLP, 50 epochs": lambda: perceptron(50),
    "MLP": perceptron,
    "autoencoder": autoencoder,
    "probe": probe,
    "DEC": lambda: clusters(1e-8),
    "DEC, Adam without eps_root": lambda: clusters(0.0),
    "transformer": transformer,
}
