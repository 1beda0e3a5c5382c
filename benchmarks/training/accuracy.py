"""How far each estimate is from training again: the linear datamodelling score of estimators on eight trainings.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=<folder with mnist/, tinyshakespeare/> python -m benchmarks.training.accuracy
       [--tasks MLP DEC] [--peer-python <python with the libraries of peers/libraries.py>]

The trainings stand in `accuracy_tasks.py`. Ten questions each (six for the clusters). Two protocols, not to be compared
with each other: one seed, 1 % left out; halves, seeds mixed. Costs are CPU seconds of one thread over those of one
training, 4.0 meaning that ten questions took as long as four trainings; ours count the training itself, which others
are given. Other libraries stand beside where they know such a loss and such questions: not where samples are coupled,
targets move or a probe is fitted.
Retrained models and each estimator's rows are kept in --store: a run that was stopped goes on with the next estimator.
With all tasks, writes benchmarks/results/accuracy.csv and accuracy.html, of which docs/accuracy.png is a picture; with
some, prints them only.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import crossfluence as cf
from benchmarks.common.options import options
from benchmarks.common.results import FOLDER, line, save
from benchmarks.common.timing import seconds, timed
from benchmarks.peers.libraries import ESTIMATORS as PEERS
from benchmarks.peers.libraries import ask
from crossfluence._storage.atomic import write_atomically
from crossfluence.errors import CrossfluenceError, NotConvergedWarning, RoughTrainingWarning

from .accuracy_tasks import SUBSETS, TASKS, Task, clusters

Row = dict[str, str]
PROTOCOLS = ("leave out", "half")
SEEDS, STEPS = 5, 30


def influence(task: Task, solver: Callable[[Task], Any]) -> cf.Scores:
    return cf.influence(task.recipe.risk(task.recipe.train()), task.objective, solver(task))


def over_seeds(task: Task) -> cf.Scores:
    """The mean of EK-FAC over trainings that differ in their seeds."""
    recipes = [task.recipe.with_seed(seed) for seed in range(1, SEEDS + 1)]
    if recipes[0] is task.recipe:
        raise CrossfluenceError("Nothing in this training depends on a seed.")
    return cf.ensemble(influence(replace(task, recipe=recipe), lambda _: cf.EKFAC()) for recipe in recipes)


def stopped(task: Task) -> cf.CG:
    """Steps not taken are as good as damping, and dattri's conjugate gradients stop there, too."""
    curvature = cf.GaussNewton() if task.loss else cf.Hessian()
    return cf.CG(task.damping, max_steps=STEPS, curvature=curvature, truncate=True)


ESTIMATORS: dict[str, Callable[[Task], cf.Scores]] = {
    "replay": lambda task: cf.replay(task.recipe, task.objective, groups=0),
    "source": lambda task: cf.source(task.recipe, task.objective, groups=0),
    "source by layers": lambda task: cf.source(task.recipe, task.objective, curvature=cf.Fisher(), groups=0),
    "influence": partial(influence, solver=lambda task: task.solver),
    f"CG, {STEPS} steps": partial(influence, solver=stopped),
    "LowRank(50)": partial(influence, solver=lambda task: cf.LowRank(50, damping=task.damping)),
    "EK-FAC": partial(influence, solver=lambda _: cf.EKFAC()),
    f"EK-FAC, {SEEDS} seeds": over_seeds,
    "tracin": lambda task: cf.tracin(task.recipe, task.objective, groups=0),
    "tracin, preconditioned": lambda task: cf.tracin(task.recipe, task.objective, preconditioned=True, groups=0),
    "gradient similarity": partial(influence, solver=lambda _: cf.Identity()),
}


@dataclass(frozen=True)
class Store:
    """A folder of answers: each is worked out once, and read after that."""

    folder: Path

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returned, now or in an earlier run."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(work()).encode())
        return json.loads(path.read_text())


def about(task: Task, bank: cf.Bank) -> dict[str, float]:
    """CPU seconds of one training and of one question by `replay`, and whether first-order answers hold at all."""
    return {
        "training": min(seconds(task.recipe.train) for _ in range(2)),
        "question": seconds(lambda: cf.replay(task.recipe, lambda model: task.objective(model)[0], groups=0)),
        "smoothness": cf.smoothness(bank, task.objective, groups=16).pearson,
    }


def ours(task: Task, name: str) -> tuple[float, cf.Scores] | None:
    try:
        return timed(lambda: ESTIMATORS[name](task))
    except CrossfluenceError as refusal:
        print(f"{name}: {refusal}", flush=True)
        return None


def theirs(task: Task, name: str, python: str, names: tuple[str, ...]) -> tuple[float, cf.Scores] | None:
    problem = task.problem(task.recipe.train())
    answer = ask(python, name, problem) if problem else None
    if answer is None:
        return None
    values, method = answer.scores.double(), f"{name} ({answer.version})"
    return answer.seconds, cf.Scores(values, tuple(range(task.recipe.n)), names, method)


def compared(task: Task, bank: cf.Bank, answer: tuple[float, cf.Scores] | None, training: float) -> list[Row]:
    """A row for each protocol; none where there is no answer."""
    if answer is None:
        return []
    spent, scores = answer
    found = [cf.lds(scores, bank, task.objective, protocol=name, subsets=SUBSETS) for name in PROTOCOLS]
    return [
        {
            "questions": str(len(scores.objectives)), "trainings": f"{spent / training:.1f}", "protocol": name,
            "lds": f"{one.score:.3f}", "low": f"{one.score.low:.3f}", "high": f"{one.score.high:.3f}",
            "ceiling": f"{float(one.ceiling):.3f}",
        }
        for name, one in zip(PROTOCOLS, found, strict=True)
    ]  # fmt: skip


def measured(name: str, folder: Path, python: str | None) -> Iterator[Row]:
    """Rows of one task, each estimator's as soon as it is there."""
    task, store = TASKS[name](), Store(folder / name)
    bank = cf.Bank(task.recipe, store.folder)
    known = store.once("about", lambda: about(task, bank))
    names = cf.influence(task.recipe.risk(task.recipe.init), task.objective, cf.Identity()).objectives
    shared = {
        "task": name, "n": str(task.recipe.n), "steps": str(len(task.recipe.course())),
        "smoothness": f"{known['smoothness']:.3f}",
        "replay of one question": f"{known['question'] / known['training']:.1f}",
    }  # fmt: skip
    work = {one: partial(ours, task, one) for one in ESTIMATORS if one not in task.left_out}
    if python and task.loss:
        work |= {one: partial(theirs, task, one, python, names) for one in PEERS}
    for estimator, answer in work.items():
        rows = store.once(estimator, lambda answer=answer: compared(task, bank, answer(), known["training"]))
        for row in rows:
            yield shared | {"estimator": estimator} | row


def at_once() -> str:
    """CPU seconds of 150 small models one after another, over those of all at once."""
    recipe = replace(clusters(1e-8).recipe, at_once=150)
    weights = torch.ones(150, recipe.n) - torch.eye(150, recipe.n)
    together = seconds(lambda: list(recipe.retrain(weights)))
    alone = seconds(lambda: [recipe.train(row) for row in weights[:15]]) * 10
    return f"{alone / together:.1f} times faster than one by one"


def figure(rows: list[Row]) -> None:
    """A panel for each task and protocol: estimators from the best down, the ceiling dotted."""
    from plotly.subplots import make_subplots

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    titles = [f"{task}: {protocol}" for task in tasks for protocol in PROTOCOLS]
    picture = make_subplots(len(tasks), 2, subplot_titles=titles, horizontal_spacing=0.25, vertical_spacing=0.03)
    for place, (task, protocol) in enumerate((task, protocol) for task in tasks for protocol in PROTOCOLS):
        chosen = sorted(
            (row for row in rows if (row["task"], row["protocol"]) == (task, protocol)),
            key=lambda row: float(row["lds"]),
        )
        at = {"row": place // 2 + 1, "col": place % 2 + 1}
        score, low, high = ([float(row[key]) for row in chosen] for key in ("lds", "low", "high"))
        picture.add_scatter(
            x=score, y=[f"{row['estimator']} ({row['trainings']})" for row in chosen], mode="markers",
            marker_color=["#2c5f8a" if row["estimator"] in ESTIMATORS else "#c0392b" for row in chosen],
            error_x={
                "array": [b - a for a, b in zip(score, high, strict=True)], "color": "#aaaaaa",
                "arrayminus": [a - b for a, b in zip(score, low, strict=True)],
            }, **at,
        )  # fmt: skip
        picture.add_vline(float(chosen[0]["ceiling"]), line_dash="dot", **at)
    picture.update_xaxes(range=[-0.2, 1.05])
    picture.update_yaxes(dtick=1, tickfont_size=10)
    picture.update_layout(
        template="plotly_white", showlegend=False, width=1250, height=300 * len(tasks), margin={"t": 70, "l": 230},
        title="LDS, and in brackets the cost of all questions in trainings; blue: crossfluence, red: others",
    )  # fmt: skip
    picture.write_html(FOLDER / "accuracy.html")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--peer-python")
    parser.add_argument("--store", type=Path, default=Path("runs", "accuracy"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", NotConvergedWarning)  # influence stops at its limit where training did not end
    warnings.simplefilter("ignore", RoughTrainingWarning)  # the figure is in the table
    started, rows = time.perf_counter(), []
    for name in asked.tasks:
        for row in measured(name, asked.store, asked.peer_python):
            rows.append(row)
            print(line(row), flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s since the start", flush=True)
    if asked.tasks == list(TASKS):
        save("accuracy", rows)
        figure(rows)
        print(f"150 small models at once: {at_once()}")


if __name__ == "__main__":
    main()
