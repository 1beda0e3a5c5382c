"""Solvers on logistic regression for MNIST: agreement with training again, and CPU seconds for 500 questions.

Usage: CROSSFLUENCE_DATA=<folder with mnist/> OMP_NUM_THREADS=1 python -m benchmarks.solvers.logistic [--exact]
       [--peer-python <python with the libraries of peers/libraries.py>]

5,000 training and 500 test images, float32, l2 1e-3. A question is the loss of one test image. Two protocols:
  leave one out: 100 training images, each left out alone; mean over the questions of Pearson's r
  half subsets:  50 random halves left out together; mean over the questions of Spearman's r with summed scores (LDS)
Every retraining follows Newton steps in float64 from the whole model to a gradient norm below 1e-7: no noise is left.
Writes benchmarks/results/logistic.csv. CPU seconds are of this process, on one thread.
"""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import crossfluence as cf
from benchmarks.common.losses import on_outputs
from benchmarks.common.options import options
from benchmarks.common.results import line, save
from benchmarks.common.timing import timed
from benchmarks.data.mnist import mnist
from benchmarks.peers.libraries import ESTIMATORS, Problem, ask
from crossfluence._solvers.base import AbstractSolver
from crossfluence.errors import NotConvergedWarning

TRAIN, TEST, CLASSES, L2 = 5_000, 500, 10, 1e-3
ALONE, HALVES, AT_ONCE, TOLERANCE = 100, 50, 50, 1e-7


class Truth:
    """Training again with other weights, many at once: Newton steps with the curvature at the whole model."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)  # (n, 785)
        self.targets = F.one_hot(y, CLASSES).double()
        self.theta = self._nearly_trained()
        self.factor = torch.linalg.cholesky(self._curvature())
        self.theta = self.retrained(torch.ones(1, len(x), dtype=torch.float64))[0][0]

    def _nearly_trained(self) -> Tensor:
        theta = torch.zeros(CLASSES, self.x.shape[1], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=200, history_size=50, tolerance_grad=1e-4, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(self.x @ theta.T, self.targets) + L2 / 2 * theta.square().sum()
            value.backward()
            return value

        optimizer.step(closure)
        return theta.detach()

    def _curvature(self) -> Tensor:
        p = (self.x @ self.theta.T).softmax(1)
        blocks = [
            [(self.x * (p[:, a] * (float(a == b) - p[:, b])).unsqueeze(1)).T @ self.x / TRAIN for b in range(CLASSES)]
            for a in range(CLASSES)
        ]
        return torch.cat([torch.cat(row, dim=1) for row in blocks]) + L2 * torch.eye(self.theta.numel()).double()

    def gradients(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Of every model at its own sample weights, `(r, 10, 785)`."""
        logits = (self.x @ theta.flatten(0, 1).T).reshape(TRAIN, *theta.shape[:2])  # (n, r, 10)
        errors = (logits.softmax(2) - self.targets.unsqueeze(1)) * weights.T.unsqueeze(2)
        return (errors.flatten(1).T @ self.x / TRAIN).reshape(theta.shape) + L2 * theta

    def retrained(self, weights: Tensor) -> tuple[Tensor, float]:
        """Models `(r, 10, 785)`, and the largest gradient norm left."""
        theta = self.theta.repeat(len(weights), 1, 1)
        for _ in range(200):
            gradient = self.gradients(theta, weights).flatten(1)
            left = float(gradient.norm(dim=1).max())
            if left < TOLERANCE:
                break
            theta = theta - torch.cholesky_solve(gradient.T, self.factor).T.reshape(theta.shape)
        return theta, left

    def effects(self, weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
        """Loss of each test image with all samples, minus that with these weights, `(r, m)`; and gradient left."""
        test = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)

        def losses(theta: Tensor) -> Tensor:
            return torch.stack([F.cross_entropy(test @ one.T, y, reduction="none") for one in theta])

        parts = [self.retrained(chunk) for chunk in weights.double().split(AT_ONCE)]
        return losses(self.theta[None]) - torch.cat([losses(theta) for theta, _ in parts]), max(g for _, g in parts)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r down the rows, mean over the columns."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float(((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0))).mean())


def ranks(values: Tensor) -> Tensor:
    return values.argsort(0).argsort(0).double()


def exact_fisher(damping: float | cf.Relative) -> cf.EKFAC:
    return cf.EKFAC(damping, curvature=cf.Fisher(samples=None))


def solvers(exact: bool) -> dict[str, AbstractSolver]:
    found = {
        "Identity": cf.Identity(),
        "CG, 5 steps": cf.CG(max_steps=5),
        "CG and Nystrom(200), 3 steps": cf.CG(max_steps=3, preconditioner=cf.Nystrom(200)),
        "CG and Nystrom(600), 3 steps": cf.CG(max_steps=3, preconditioner=cf.Nystrom(600)),
        "CG and Nystrom(600), 5 steps": cf.CG(max_steps=5, preconditioner=cf.Nystrom(600)),
        "Nystrom(200) alone": cf.Nystrom(200),
        "CG and EK-FAC, 5 steps": cf.CG(max_steps=5, curvature=cf.GaussNewton(), preconditioner=exact_fisher(0.0)),
        "CG and EK-FAC, 7 steps": cf.CG(max_steps=7, curvature=cf.GaussNewton(), preconditioner=exact_fisher(0.0)),
        "EK-FAC, damping .1 mean": exact_fisher(cf.Relative(0.1)),
        "EK-FAC, no damping": exact_fisher(0.0),
        "EK-FAC, sampled, .1 mean": cf.EKFAC(),
        "EK-FAC, sampled, no damping": cf.EKFAC(0.0),
        "LowRank(100)": cf.LowRank(100),
        "LiSSA, drawn batches, 12 steps": cf.LiSSA(max_steps=12, batches=1),
    }
    return found | ({"Exact": cf.Exact()} if exact else {})


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--peer-python")
    parser.add_argument("--only", default="", help="rows whose names hold this; the table is then only printed")
    parser.add_argument("--exact", action="store_true", help="the dense matrix, too: 7,850 squared, some minutes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    (x, y), (test_x, test_y) = mnist("train", TRAIN), mnist("test", TEST)
    started = time.process_time()
    truth = Truth(x, y)
    generator = torch.Generator().manual_seed(0)
    alone = torch.randperm(TRAIN, generator=generator)[:ALONE]
    halves = torch.stack([torch.randperm(TRAIN, generator=generator)[: TRAIN // 2] for _ in range(HALVES)])
    loo, left_loo = truth.effects(torch.ones(ALONE, TRAIN).scatter(1, alone[:, None], 0), test_x, test_y)
    half, left_half = truth.effects(torch.ones(HALVES, TRAIN).scatter(1, halves, 0), test_x, test_y)
    seconds, left = time.process_time() - started, max(left_loo, left_half)
    print(f"{ALONE + HALVES} retrainings: {seconds:.0f} s, gradient norm {left:.1g} at most", flush=True)
    model = nn.Linear(784, CLASSES)
    nn.utils.vector_to_parameters(
        torch.cat([truth.theta[:, :-1].flatten(), truth.theta[:, -1]]).float(), model.parameters()
    )

    loss = on_outputs()
    risk = cf.Risk(model, loss, cf.batches(x, y, size=1000), l2=L2)
    question = cf.each_of(cf.batches(test_x, test_y), loss.losses)

    def row(name: str, values: Tensor, seconds: float, steps: object = "", residual: object = "") -> dict[str, object]:
        sums = torch.stack([values[rows].sum(0) for rows in halves])
        found = {
            "solver": name,
            "leave one out": f"{correlation(values[alone], loo):.3f}",
            "half subsets": f"{correlation(ranks(sums), ranks(half)):.3f}",
            "slope": f"{float((values[alone] * loo).sum() / values[alone].square().sum()):.2f}",
            "steps": steps,
            "residual": residual,
            "CPU seconds": f"{seconds:.1f}",
        }
        print(line(found), flush=True)
        return found

    table = []
    for name, solver in solvers(asked.exact).items():
        if asked.only not in name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)  # to stop early is the point
            seconds, scores = timed(lambda solver=solver: cf.influence(risk, question, solver))
        report = scores.report
        assert report is not None
        residual = f"{max(report.residuals, default=float('nan')):.1g}"
        table.append(row(name, scores.values.double(), seconds, max(report.steps, default=0), residual))
    for name in ESTIMATORS if asked.peer_python else ():
        problem = Problem(nn.Sequential(model), "cross entropy", (x, y), (test_x, test_y), damping=L2)
        if asked.only in name and (answer := ask(asked.peer_python, name, problem)) is not None:
            table.append(row(f"{name} ({answer.version})", answer.scores.double(), answer.seconds))
    if not asked.only:
        save("logistic", table)


if __name__ == "__main__":
    main()
