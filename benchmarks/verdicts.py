"""One experiment, hence the length: how often a verdict was right, on trainings that its thresholds were not chosen on.

Run: OMP_NUM_THREADS=1 python benchmarks/verdicts.py    (eight minutes; writes benchmarks/results/verdicts.csv)
     python benchmarks/verdicts.py --table              (the table again, from that file)
Each training is asked for the mean loss of a test set, and for the loss of five of its samples; the truth is training
again without each of 20 groups of three samples. The thresholds in `crossfluence/_verdict.py` were chosen on seed 0; the
table counts the other seeds, which draw other data, models and questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import crossfluence as cf

N, GROUPS, SIZE, TEST = 300, 20, 3, 40
Data = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Data], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """A training and what its questions are losses of.

    Attributes:
        name: For the table.
        recipe: The training.
        loss: Of the test samples: `(model, batch) -> (b,)`.
        test: Samples that it did not train on.
    """

    name: str
    recipe: cf.Recipe
    loss: Loss
    test: Data


def cross_entropy(model: nn.Module, batch: Data) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def squared(model: nn.Module, batch: Data) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(1)


def hinge(model: nn.Module, batch: Data) -> Tensor:
    return (1 - batch[1] * model(batch[0])[:, 0]).clamp_min(0)


def absolute(model: nn.Module, batch: Data) -> Tensor:
    return (model(batch[0]) - batch[1]).abs().sum(1)


def tokens(model: nn.Module, batch: Data) -> Tensor:
    return (
        F.cross_entropy(model(batch[0]), batch[1], reduction="none").mean(1)
        if batch[1].ndim > 1
        else cross_entropy(model, batch)
    )


def split(x: Tensor, y: Tensor, seed: int) -> tuple[Data, Data]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:N], order[N : N + TEST]
    return (x[train], y[train]), (x[test], y[test])


def digits(seed: int) -> tuple[Data, Data]:
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    return split(x / 16, y, seed)


def standard(data: tuple, seed: int) -> tuple[Data, Data]:
    x, y = (torch.as_tensor(part, dtype=torch.float64) for part in data)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return split(x, y.unsqueeze(1), seed)


def signs(data: tuple, seed: int) -> tuple[Data, Data]:
    (x, y), (x_test, y_test) = standard(data, seed)
    return (x, y[:, 0].sign()), (x_test, y_test[:, 0].sign())


def markov(seed: int, words: int = 20, length: int = 8) -> tuple[Data, Data]:
    """Sentences of a random chain: the last three words and the next, as samples."""
    generator = torch.Generator().manual_seed(seed)
    chain = (2 * torch.randn(words, words, generator=generator)).softmax(1)
    at, text = torch.zeros(N + TEST, dtype=torch.long), []
    for _ in range(length):
        at = torch.multinomial(chain[at], 1, generator=generator)[:, 0]
        text.append(at)
    whole = torch.stack(text, 1)
    return split(whole[:, -4:-1], whole[:, -1], seed)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double()


def mlp(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(64, 12), activation(), nn.Linear(12, 10))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(36, 10)
    )


def language() -> nn.Module:
    return nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 20))


def blank(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model = build()
        _ = [nn.init.zeros_(parameter) for parameter in model.parameters()]
        return model

    return made


def task(name: str, build: Callable[[], nn.Module], loss: Loss, data: tuple[Data, Data], seed: int, **how) -> Task:
    options = {"optimizer": cf.SGD(0.2, 0.9), "l2": 1e-2, "at_once": GROUPS + 1, "seed": seed, **how}
    kind = on_outputs(loss) if loss in (cross_entropy, squared) else loss
    return Task(name, cf.Recipe(seeded(build, seed), kind, data[0], **options), loss, data[1])


def on_outputs(loss: Loss) -> cf.OnOutputs:
    return cf.OnOutputs(lambda model, batch: model(batch[0]), lambda z, batch: loss(lambda _: z, batch))


def tasks(seed: int) -> Iterator[Task]:
    linear, one = blank(lambda: nn.Linear(64, 10)), blank(lambda: nn.Linear(10, 1))
    for epochs in (20, 1000):
        yield task(f"logistic regression, {epochs} steps", linear, cross_entropy, digits(seed), seed, epochs=epochs)
    for epochs in (5, 600):
        data = standard(load_diabetes(return_X_y=True), seed)
        yield task(
            f"ridge regression, {epochs} steps", one, squared, data, seed, epochs=epochs, optimizer=cf.SGD(0.02, 0.9)
        )
    for l2, epochs in ((0.0, 50), (1e-3, 300), (1e-2, 2000)):
        yield task(
            f"tanh network, l2 {l2:g}, {epochs} steps",
            mlp(nn.Tanh),
            cross_entropy,
            digits(seed),
            seed,
            epochs=epochs,
            l2=l2,
        )
    small = {"batch_size": 20, "l2": 1e-3}
    for epochs in (5, 60):
        yield task(
            f"ReLU network, Adam, {epochs} epochs",
            mlp(nn.ReLU),
            cross_entropy,
            digits(seed),
            seed,
            epochs=epochs,
            optimizer=cf.Adam(5e-3, eps_root=1e-6),
            **small,
        )
    yield task("ReLU network, l2 0.01, 1500 steps", mlp(nn.ReLU), cross_entropy, digits(seed), seed, epochs=1500)
    for epochs in (10, 100):
        yield task(
            f"convolutions, {epochs} epochs",
            convolutions,
            cross_entropy,
            digits(seed),
            seed,
            epochs=epochs,
            optimizer=cf.SGD(0.05, 0.9),
            **small,
        )
    (x, _), (x_test, _) = digits(seed)
    for epochs in (20, 800):
        yield task(
            f"autoencoder, {epochs} steps",
            lambda: nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 64)),
            squared,
            ((x, x), (x_test, x_test)),
            seed,
            epochs=epochs,
            optimizer=cf.SGD(0.05, 0.9),
        )
    sick = signs(load_breast_cancer(return_X_y=True), seed)
    falling = {"schedule": cf.cosine, "epochs": 600, "optimizer": cf.SGD(0.2)}
    yield task("support vector machine", blank(lambda: nn.Linear(30, 1)), hinge, sick, seed, **falling)
    yield task(
        "median regression",
        one,
        absolute,
        standard(load_diabetes(return_X_y=True), seed),
        seed,
        **{**falling, "l2": 1e-3},
    )
    lm = {"batch_size": 20, "l2": 0.0}
    for name, optimizer in (("AdamW", cf.AdamW(5e-3)), ("AdamW, eps_root", cf.AdamW(5e-3, eps_root=1e-6))):
        for epochs in (4, 40):
            yield task(
                f"language model, {name}, {epochs} epochs",
                language,
                tokens,
                markov(seed),
                seed,
                epochs=epochs,
                optimizer=optimizer,
                **lm,
            )
    yield task(
        "language model, SGD, 1500 steps",
        language,
        tokens,
        markov(seed),
        seed,
        epochs=1500,
        optimizer=cf.SGD(0.5, 0.9),
        l2=3e-3,
    )


def solvers(split_: bool) -> list:
    gauss = [cf.CG(by, curvature=cf.GaussNewton(), max_steps=500) for by in (1e-3, 1e-2, 1e-1)] if split_ else []
    return [cf.Auto(), cf.Auto(1e-2), cf.Auto(1e-1), *gauss, cf.EKFAC(), cf.EKFAC(1e-2), cf.EKFAC(1.0), cf.Identity()]


def answers(each: Task, ask: cf.Objective) -> Iterator[tuple[str, cf.Scores]]:
    risk = each.recipe.risk(each.recipe.train())
    for solver in solvers(isinstance(each.recipe.loss, cf.OnOutputs)):
        try:
            yield repr(solver), cf.influence(risk, ask, solver)
        except cf.CrossfluenceError as error:
            print("refused", each.name, solver, str(error)[:100])
    yield "replay", cf.replay(each.recipe, ask)
    yield "tracin", cf.tracin(each.recipe, ask)
    yield "tracin, preconditioned", cf.tracin(each.recipe, ask, preconditioned=True)
    try:
        yield "source", cf.source(each.recipe, ask)
    except cf.CrossfluenceError:
        pass
