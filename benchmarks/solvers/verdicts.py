"""One experiment, hence the length: how often a verdict was right, on trainings that its thresholds were not chosen on.

Run: OMP_NUM_THREADS=1 python -m benchmarks.solvers.verdicts    (eight minutes; writes benchmarks/results/verdicts.csv)
     python -m benchmarks.solvers.verdicts --table    (the table again, from that file)
Each training is asked for the mean loss of a test set, or for the losses of five of its samples; the truth is training
again without each of 20 groups of two samples. The thresholds in `crossfluence/_results/verdict.py` were chosen on
seeds 0 and 1; seed 2, which draws other data, models and questions, was run once they stood.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common import losses
from benchmarks.common.losses import Pair, classification
from benchmarks.common.models import perceptron, zeroed
from benchmarks.common.options import options
from benchmarks.common.results import kept, save
from benchmarks.data.digits import digits as all_digits
from crossfluence._solvers.base import AbstractSolver
from crossfluence._types import Objective
from crossfluence.clustering.dec import DEC, moving_target

N, GROUPS, SIZE, TEST = 150, 20, 2, 40
Loss = Callable[[nn.Module, Pair], Tensor]


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
    test: Pair


def squared(model: nn.Module, batch: Pair) -> Tensor:
    return losses.squared_error(model(batch[0]), batch[1])


def hinge(model: nn.Module, batch: Pair) -> Tensor:
    return (1 - batch[1] * model(batch[0])[:, 0]).clamp_min(0)


def absolute(model: nn.Module, batch: Pair) -> Tensor:
    return (model(batch[0]) - batch[1]).abs().sum(1)


def tokens(model: nn.Module, batch: Pair) -> Tensor:
    """As `classification`, but not split at the outputs."""
    return classification(model, batch)


def split(x: Tensor, y: Tensor, seed: int) -> tuple[Pair, Pair]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:N], order[N : N + TEST]
    return (x[train], y[train]), (x[test], y[test])


def digits(seed: int) -> tuple[Pair, Pair]:
    return split(*all_digits(), seed)


def standard(data: tuple, seed: int) -> tuple[Pair, Pair]:
    x, y = (torch.as_tensor(part, dtype=torch.float64) for part in data)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return split(x, y.unsqueeze(1), seed)


def signs(data: tuple, seed: int) -> tuple[Pair, Pair]:
    (x, y), (x_test, y_test) = standard(data, seed)
    return (x, y[:, 0].sign()), (x_test, y_test[:, 0].sign())


def markov(seed: int, words: int = 20, length: int = 8) -> tuple[Pair, Pair]:
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
    return lambda: perceptron(64, 12, 10, activation=activation)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(36, 10)
    )


def language() -> nn.Module:
    return nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 20))


def made(name: str, build: Callable[[], nn.Module], loss: Loss, data: tuple[Pair, Pair], seed: int, **how) -> Task:
    options = {"optimizer": cf.SGD(0.2, 0.9), "l2": 1e-2, "at_once": GROUPS + 1, "seed": seed, **how}
    split_up = {classification: losses.cross_entropy, squared: losses.squared_error}
    kind = losses.on_outputs(split_up[loss]) if loss in split_up else loss
    return Task(name, cf.Recipe(seeded(build, seed), kind, data[0], **options), loss, data[1])


def tasks(seed: int) -> Iterator[Task]:
    linear, one = lambda: zeroed(nn.Linear(64, 10)), lambda: zeroed(nn.Linear(10, 1))
    for epochs in (20, 200):
        yield made(f"logistic regression, {epochs} steps", linear, classification, digits(seed), seed, epochs=epochs)
    for epochs in (5, 200):
        data = standard(load_diabetes(return_X_y=True), seed)
        yield made(
            f"ridge regression, {epochs} steps", one, squared, data, seed, epochs=epochs, optimizer=cf.SGD(0.02, 0.9)
        )
    for l2, epochs in ((0.0, 50), (1e-3, 150), (1e-2, 300)):
        yield made(
            f"tanh network, l2 {l2:g}, {epochs} steps",
            mlp(nn.Tanh),
            classification,
            digits(seed),
            seed,
            epochs=epochs,
            l2=l2,
        )
    small = {"batch_size": 25, "l2": 1e-3}
    for epochs in (4, 20):
        yield made(
            f"ReLU network, Adam, {epochs} epochs",
            mlp(nn.ReLU),
            classification,
            digits(seed),
            seed,
            epochs=epochs,
            optimizer=cf.Adam(5e-3, eps_root=1e-6),
            **small,
        )
    yield made("ReLU network, l2 0.01, 300 steps", mlp(nn.ReLU), classification, digits(seed), seed, epochs=300)
    for epochs in (4, 30):
        yield made(
            f"convolutions, {epochs} epochs",
            convolutions,
            classification,
            digits(seed),
            seed,
            epochs=epochs,
            optimizer=cf.SGD(0.05, 0.9),
            **small,
        )
    (x, _), (x_test, _) = digits(seed)
    for epochs in (20, 100):
        yield made(
            f"autoencoder, {epochs} steps",
            lambda: perceptron(64, 6, 64),
            squared,
            ((x, x), (x_test, x_test)),
            seed,
            epochs=epochs,
            optimizer=cf.SGD(0.02, 0.9),
        )
    yield dec(seed)
    sick = signs(load_breast_cancer(return_X_y=True), seed)
    falling = {"schedule": cf.cosine, "epochs": 300, "optimizer": cf.SGD(0.2)}
    yield made("support vector machine", lambda: zeroed(nn.Linear(30, 1)), hinge, sick, seed, **falling)
    yield made(
        "median regression",
        one,
        absolute,
        standard(load_diabetes(return_X_y=True), seed),
        seed,
        **{**falling, "l2": 1e-3},
    )
    lm = {"batch_size": 25, "l2": 0.0}
    for name, optimizer in (("AdamW", cf.AdamW(5e-3)), ("AdamW, eps_root", cf.AdamW(5e-3, eps_root=1e-6))):
        for epochs in (4, 20):
            yield made(
                f"language model, {name}, {epochs} epochs",
                language,
                tokens,
                markov(seed),
                seed,
                epochs=epochs,
                optimizer=optimizer,
                **lm,
            )
    yield made(
        "language model, SGD, 200 steps",
        language,
        tokens,
        markov(seed),
        seed,
        epochs=200,
        optimizer=cf.SGD(0.5, 0.9),
        l2=3e-3,
    )


def dec(seed: int) -> Task:
    """Deep Embedded Clustering with its moving target, asked for the squared embeddings of other points."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    x = centres[torch.arange(N + TEST) % 3] + torch.randn(N + TEST, 4, generator=generator, dtype=torch.float64)
    start = DEC(seeded(lambda: nn.Linear(4, 2), seed), torch.randn(3, 2, generator=generator, dtype=torch.float64))
    options = {"optimizer": cf.SGD(0.2, 0.9), "epochs": 200, "l2": 1e-2, "at_once": GROUPS + 1}
    recipe = cf.Recipe(start, moving_target, x[:N], **options)
    return Task(
        "deep clustering, 200 steps", recipe, lambda m, batch: m.encoder(batch[0]).square().sum(1), (x[N:], x[N:])
    )


def solvers(split_up: bool) -> list[AbstractSolver]:
    gauss = [cf.CG(by, curvature=cf.GaussNewton(), max_steps=500) for by in (1e-3, 1e-2)] if split_up else []
    return [cf.Auto(), cf.Auto(1e-2), *gauss, cf.EKFAC(), cf.EKFAC(1.0), cf.Identity()]


def estimates(task: Task, ask: Objective) -> Iterator[cf.Scores]:
    """The answers of all estimators; those that refuse are left out."""
    risk = task.recipe.risk(task.recipe.train())
    split_up = isinstance(task.recipe.loss, cf.OnOutputs)
    verbs = [partial(cf.influence, risk, ask, solver) for solver in solvers(split_up)]
    verbs += [partial(verb, task.recipe, ask) for verb in (cf.replay, cf.tracin, cf.source)]
    for verb in verbs:
        with contextlib.suppress(cf.CrossfluenceError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield verb()


def rows(task: Task, seed: int, single: bool) -> Iterator[dict]:
    """Verdict beside correlation and slope, for each estimator; of one question, the mean loss, or of five losses."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    groups = {f"group {k}": order[SIZE * k : SIZE * (k + 1)].tolist() for k in range(GROUPS)}
    few = tuple(part[:5] for part in task.test)

    def ask(model: nn.Module) -> Tensor:
        return task.loss(model, task.test).mean() if single else task.loss(model, few)

    truth = cf.leave_out(task.recipe, ask, groups)
    for scores in estimates(task, ask):
        found = cf.compare(scores.sum_by(groups), truth)
        assert scores.verdict is not None
        yield {
            "seed": seed, "training": task.name, "question": "mean loss" if single else "five losses",
            "method": scores.method, "verdict": scores.verdict.level, "pearson": f"{found.pearson:.3f}",
            "slope": f"{found.slope:.3g}", "reason": scores.verdict.reasons[0],
        }  # fmt: skip


def right(row: dict) -> bool:
    """Whether retraining confirms a verdict."""
    r, slope = float(row["pearson"]), float(row["slope"])
    fits = 0.67 <= slope <= 1.5
    return {"sizes": r > 0.9 and fits, "order": r > 0.6, "unreliable": not (r > 0.6 and fits)}[row["verdict"]]


def similarity(row: dict) -> bool:
    """Whether scores are those of gradient similarity, or so strongly damped that they nearly are."""
    return row["method"].startswith(("Identity", "EKFAC(damping=1.0", "tracin"))


def table(found: Sequence[dict]) -> None:
    """Prints how often each verdict was right, on the seeds that thresholds were chosen on and on the others."""
    print(f"{'verdict':32}   chosen on 0 and 1  counted on the others")
    for level, name, chosen in (
        ("sizes", "sizes", lambda row: True),
        ("order", "order, with a curvature", lambda row: not similarity(row)),
        ("order", "order, by gradient similarity", similarity),
        ("unreliable", "unreliable", lambda row: True),
    ):
        cells = []
        for first in (True, False):
            rows = [row for row in found if row["verdict"] == level and chosen(row)]
            some = [right(row) for row in rows if (int(row["seed"]) < 2) is first]
            cells.append(f"{sum(some):3} of {len(some):3} ({sum(some) / max(len(some), 1):4.0%})")
        print(f"{name:32}   {cells[0]}   {cells[1]}")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--table", action="store_true", help="print the table of the last run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    if not asked.table:
        torch.set_num_threads(1)
        for seed in asked.seeds:
            found = []
            for number, task in enumerate(tasks(seed)):
                started = time.perf_counter()
                found += rows(task, seed, single=(number + seed) % 2 == 0)
                print(f"seed {seed}, {task.name}: {time.perf_counter() - started:.1f} s", flush=True)
            others = [row for row in kept("verdicts") if int(row["seed"]) != seed]
            save("verdicts", [*others, *found])
    table(kept("verdicts"))


if __name__ == "__main__":
    main()
