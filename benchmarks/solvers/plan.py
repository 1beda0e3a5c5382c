"""Forecasts of `plan` beside the runs that follow: ratios of what was measured to what was foreseen.

Run: OMP_NUM_THREADS=1 python -m benchmarks.solvers.plan    (prints a table and writes benchmarks/results/plan.csv)
Both count CPU seconds on one thread here, so that other processes do not matter.
"""

from __future__ import annotations

import time

import torch

import crossfluence as cf
from benchmarks.common.losses import on_outputs
from benchmarks.common.models import perceptron
from benchmarks.common.options import options
from benchmarks.common.results import save
from benchmarks.common.timing import timed
from crossfluence._attribution import plan as _plan

SAMPLES, FEATURES, CLASSES, QUESTIONS = 4_000, 64, 10, 100
SOLVERS = [
    cf.CG(1e-2, rtol=1e-3), cf.CG(1e-2, rtol=1e-3, preconditioner=cf.Nystrom(100, 1e-2)), cf.GMRES(1e-2, rtol=1e-3),
    cf.LowRank(50, 1e-2), cf.Nystrom(200, 1e-2), cf.LiSSA(1e-1, rtol=1e-1), cf.Exact(1e-2),
    cf.EKFAC(1e-2), cf.CG(1e-2, rtol=1e-3, curvature=cf.GaussNewton(), preconditioner=cf.EKFAC(1e-2)),
]  # fmt: skip


def main() -> None:
    options(__doc__).parse_args()
    _plan.CLOCK = time.process_time
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, labels = torch.randn(SAMPLES, FEATURES), torch.randint(CLASSES, (SAMPLES,))
    model = perceptron(FEATURES, 16, CLASSES)
    loss = on_outputs()
    recipe = cf.Recipe(model, loss, (x, labels), optimizer=cf.SGD(0.5, 0.9), epochs=100, l2=1e-2)
    risk = recipe.risk(recipe.train())
    question = cf.each_of(cf.batches(x[:QUESTIONS], labels[:QUESTIONS]), loss.losses)
    rows = []
    for solver in SOLVERS:
        helper = getattr(solver, "preconditioner", None)
        looked, plan = timed(lambda solver=solver: cf.plan(risk, solver, QUESTIONS))
        seconds, scores = timed(lambda solver=solver: cf.influence(risk, question, solver))
        report = scores.report
        with _plan.PeakMemory() as tally:
            cf.influence(risk, question, solver)
        assert report is not None
        row = {
            "solver": type(solver).__name__ + (f" with {type(helper).__name__}" if helper else ""),
            "seconds, measured": f"{seconds:.1f}",
            "foreseen": f"{plan.seconds:.1f}",
            "seconds / foreseen": f"{seconds / plan.seconds:.2f}",
            "memory / foreseen": f"{tally.peak / plan.memory:.2f}",
            "steps": max(report.steps, default=0),
            "seconds of looking": f"{looked:.1f}",
        }
        rows.append(row)
        print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
    save("plan", rows)


if __name__ == "__main__":
    main()
