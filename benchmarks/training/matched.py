"""Is influence on a question that is not the training loss more accurate than on the loss itself?

Usage: OMP_NUM_THREADS=1 python -m benchmarks.training.matched [--seeds 3]

Silva, Chopra and Gombolay (AISTATS 2022) report that cross-loss estimates agree with training again better than
matched-objective ones. Here four trainings on digits are each asked both kinds of question about images that were not
trained on, and every estimate is set beside retraining without one image, pooled over questions and images:

  training     matched question               cross-loss question
  labels       cross-entropy of an image      distance between the hidden codes of two images
  autoencoder  reconstruction error           the same
  clusters     divergence from the target     log assignment of an image to its cluster (moving target, DEC)
  named        log assignment (DEC's model, trained on the names of its clusters)

"converged": 3,000 full-batch steps, a rate that falls along a cosine, l2. "stopped": 60 steps, where influence has no
claim and `replay` has. Writes benchmarks/results/matched.csv.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.losses import Pair, classification
from benchmarks.common.options import options
from benchmarks.common.results import line, save
from benchmarks.data.digits import digits
from crossfluence._training.schedules import constant
from crossfluence.clustering.dec import DEC, divergence, encoder, moving_target, pretrain, start_centres, target
from crossfluence.clustering.objectives import log_assignment

SAMPLES, ASKED, LEFT_OUT, HIDDEN, CLUSTERS = 300, 20, 30, 8, 10
STEPS = {"converged": 3_000, "stopped": 60}
Question = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Task:
    """A model before training, what is minimised over which data, and the two questions."""

    start: nn.Module
    loss: object
    data: Tensor | Pair
    questions: dict[str, Question]
    optimizer: cf.SGD | cf.Adam
    l2: float = 1e-2


def images(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, and those that are asked about, drawn anew for each seed."""
    x, y = digits()
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: SAMPLES + ASKED]
    x, y = x[rows], y[rows]
    return x[:SAMPLES], y[:SAMPLES], x[SAMPLES:], y[SAMPLES:]


def apart(code: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> Question:
    """Squared distances between the codes of neighbours in the list."""
    return lambda model: (code(model, x[::2]) - code(model, x[1::2])).square().sum(1)


def hidden(model: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(model, nn.Sequential)
    return model[:2](x)


def tasks(seed: int) -> dict[str, Task]:
    x, y, asked, names = images(seed)
    pretrained = pretrain(encoder([64, HIDDEN, 5], seed=seed), x, steps=300, seed=seed)
    dec = DEC(pretrained, start_centres(pretrained, x, CLUSTERS, seed=seed))
    with torch.no_grad():
        clusters, own = dec(x).argmax(1), dec(asked).argmax(1)

    def reconstruction(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - batch).square().sum(1)

    def named(model: nn.Module, batch: Pair) -> Tensor:
        return -model(batch[0]).gather(1, batch[1].unsqueeze(1))[:, 0].log()

    def spread(model: nn.Module) -> Tensor:
        """The divergence of each asked image from its target, which the training images set."""
        q, ones = torch.cat([model(x), model(asked)]), torch.ones(SAMPLES + ASKED).double()
        return divergence(target(q, ones), q)[SAMPLES:]

    def softly(model: nn.Module) -> Tensor:
        return -log_assignment(asked, own)(model)  # pyright: ignore[reportOperatorIssue]

    return {
        "labels": Task(
            encoder([64, HIDDEN, 10], seed=seed), classification, (x, y),
            {"matched": lambda model: classification(model, (asked, names)), "cross-loss": apart(hidden, asked)},
            cf.SGD(1.0, 0.9),
        ),
        "autoencoder": Task(
            encoder([64, HIDDEN, 64], seed=seed), reconstruction, x,
            {"matched": lambda model: reconstruction(model, asked), "cross-loss": apart(hidden, asked)},
            cf.Adam(1e-2, eps_root=1e-8), l2=1e-1,
        ),
        "clusters": Task(dec, moving_target, x, {"matched": spread, "cross-loss": softly}, cf.SGD(0.1, 0.9)),
        "named": Task(dec, named, (x, clusters), {"matched": softly}, cf.SGD(0.1, 0.9)),
    }  # fmt: skip


def rows(seed: int) -> Iterator[dict[str, object]]:
    drop = range(0, SAMPLES, SAMPLES // LEFT_OUT)
    for training, task in tasks(seed).items():
        for ended, steps in STEPS.items():
            recipe = cf.Recipe(
                task.start, task.loss, task.data, optimizer=task.optimizer, epochs=steps, l2=task.l2,
                schedule=cf.cosine if ended == "converged" else constant, at_once=LEFT_OUT + 1,
            )  # fmt: skip
            risk = recipe.risk(recipe.train())
            norm = float(risk.gradient.norm())
            for kind, question in task.questions.items():
                truth = cf.leave_out(recipe, question, drop)
                estimates = {"influence": lambda q=question, r=risk: cf.influence(r, q, cf.Exact())}
                if ended == "stopped":
                    estimates["replay"] = lambda q=question, r=recipe: cf.replay(r, q, groups=0)
                for estimate, work in estimates.items():
                    found = cf.compare(work(), truth)
                    yield {
                        "training": training, "ended": ended, "question": kind, "estimate": estimate, "seed": seed,
                        "pearson": f"{found.pearson:.3f}", "slope": f"{found.slope:.2f}",
                        "gradient norm": f"{norm:.1g}",
                    }  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", category=UserWarning)
    table = []
    for seed in range(asked.seeds):
        for row in rows(seed):
            table.append(row)
            print(line(row), flush=True)
    save("matched", table)


if __name__ == "__main__":
    main()
