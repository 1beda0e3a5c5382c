"""The answers that the commands about clusters compute, print and write."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..clustering.settings import ClusterSettings
from .options import (
    exit_code,
    exit_on_error,
    folder_beside,
    refuse_folder,
    refuse_outputs,
    stop_unfinished,
    unfinished_beside,
)
from .output import alone, print_json, say
from .report.terminal import console, print_clusters, print_first

if TYPE_CHECKING:
    from torch import Tensor

    from ..clustering.explain import Explanation, First, Settled
    from ..clustering.settings import CheckSettings
    from .forecast import Forecast
    from .report.page import Samples
    from .tables import Table

SOON = 15.0
"""Seconds within which the verdict comes, so that nothing need be said before it."""


@dataclass(frozen=True, eq=False)
class Cleaned:
    """The file for the table without the rows that were found.

    Attributes:
        path: What is written.
        source: The table's file.
        table: What was read of it.
        reading: How.
    """

    path: Path
    source: Path
    table: Table = field(repr=False)
    reading: dict[str, Any]

    def write(self, gone: Sequence[Hashable]) -> None:
        """Writes it.

        Args:
            gone: Labels of the rows that are left out.
        """
        from .cleaned import write_table

        of_file = dict(zip(self.table.ids, self.table.rows, strict=True))
        write_table(self.source, {of_file[label] for label in gone}, self.path, **self.reading)


@dataclass(frozen=True, eq=False)
class Run:
    """The files that a command reads and writes, and its printed lines.

    Attributes:
        out: The page; scores and the result go beside it.
        source: What is read.
        force: Whether to write over what is there.
        plan: Whether only to foretell.
        quiet: Whether only the verdict is printed.
        as_json: Whether JSON is printed in place of tables.
        cleaned: The table without the rows that were found.
    """

    out: Path
    source: Path | None = None
    force: bool = False
    plan: bool = False
    quiet: bool = False
    as_json: bool = False
    cleaned: Cleaned | None = None


def refuse_outs(run: Run, questions: int) -> None:
    """Makes sure, before the work, that all that is written can be.

    Args:
        run: What is written.
        questions: Rows that are asked about; each has a page.

    Raises:
        ResultFileError: If not.
    """
    sources, force = [] if run.source is None else [run.source], run.force or run.plan
    force = force or unfinished_beside(run.out).is_dir()  # what is there may be of the run that goes on now
    for out in _outs(run.out, questions):
        refuse_outputs(out, out.with_suffix(".csv"), sources, force)
    refuse_folder(folder_beside(run.out), force)


def expected_of(n: int, columns: int, settings: CheckSettings, questions: int) -> Forecast:
    """The time and memory of a clustering and its check, by its method.

    Args:
        n: Rows.
        columns: Columns.
        settings: Of the method.
        questions: Rows that are asked about.

    Returns:
        For this machine.
    """
    from .estimator_settings import EstimatorSettings, forecast_estimator
    from .forecast import forecast_clusters

    if isinstance(settings, EstimatorSettings):
        return forecast_estimator(n, columns, settings, questions)
    return forecast_clusters(n, columns, cast(ClusterSettings, settings), questions=questions)


def answer_all(
    x: Tensor,
    ids: tuple[Hashable, ...],
    settings: CheckSettings,
    samples: Samples,
    run: Run,
    rows: Sequence[int | None] = (None,),
) -> None:
    """Foretells, explains, prints, writes pages and scores; a stopped run goes on when it is started again.

    Args:
        x: Features.
        ids: n labels.
        settings: Of the clustering and its check.
        samples: How they are shown.
        run: What is written.
        rows: That are asked about; None: one that lies between two clusters.
    """
    outs = _outs(run.out, len(rows))
    with exit_on_error(run.out):
        refuse_outs(run, len(rows))
        expected = expected_of(len(x), x.shape[1], settings, len(rows))
        console.print(str(expected))
        with alone(run.out):
            answers = _explained(x, ids, settings, samples, run, rows, outs, expected)
            if run.cleaned is not None:
                run.cleaned.write([label for answer in answers for label in _chosen(answer)])
                console.print(f"Wrote {run.cleaned.path}, without the rows that pulled most.")
            shutil.rmtree(unfinished_beside(run.out), ignore_errors=True)  # last: a run killed before it goes on
    _finish(answers, outs, samples, run)


def _explained(
    x: Tensor, ids: tuple[Hashable, ...], settings: CheckSettings, samples: Samples, run: Run,
    rows: Sequence[int | None], outs: Sequence[Path], expected: Forecast,
) -> list[Explanation]:  # fmt: skip
    """The answer for each row, printed and written."""
    from ..clustering.explain import explain, settled
    from .cluster_estimators import explain_estimator
    from .estimator_settings import EstimatorSettings
    from .whole import whole

    if isinstance(settings, EstimatorSettings):
        tell = partial(print_first, ids=ids, noun=samples.noun) if expected.seconds > SOON else None
        answers = explain_estimator(x, ids, settings, rows, tell)
        for answer, out in zip(answers, outs, strict=True):
            _write(answer, settings, samples, out)
        return answers
    deep = cast(ClusterSettings, settings)
    unfinished, answers = unfinished_beside(run.out), list["Explanation"]()
    try:
        with whole(expected, lambda: len(list(unfinished.glob("*.json")))) as aside:

            def told(first: First) -> None:
                with aside():
                    print_first(first, ids, samples.noun)

            found = settled(x, ids, deep, store=unfinished)
            for row, out in zip(rows, outs, strict=True):
                answer = explain(
                    x, ids, deep, query=row, store=unfinished, found=found, processes=expected.processes,
                    tell=told if expected.seconds > SOON else None,
                )  # fmt: skip
                with aside():
                    _write(answer, settings, samples, out)
                answers.append(answer)
    except KeyboardInterrupt:
        stop_unfinished(unfinished, "computes the scores")
    _keep(folder_beside(run.out), found, samples, answers[0])
    return answers


def _write(answer: Explanation, settings: CheckSettings, samples: Samples, out: Path) -> None:
    """The page and the scores of one row."""
    from .._storage.atomic import write_atomically
    from .report.page import cluster_page, frame_csv

    page = cluster_page(
        answer, samples, command=f"crossfluence {shlex.join(sys.argv[1:])}", sheet=out.with_suffix(".csv").name
    )
    write_atomically(out, page.encode())
    write_atomically(out.with_suffix(".csv"), frame_csv(answer.scores))
    print_clusters(answer, settings, samples)
    console.print(f"Wrote {out} and {out.with_suffix('.csv')}.")


def _keep(folder: Path, found: Settled, samples: Samples, answer: Explanation) -> None:
    """Keeps what the explorer needs."""
    from .explore.result import Result, keep
    from .report.verdicts import of_clusters

    verdict, command = of_clusters(answer, samples.noun), f"crossfluence {shlex.join(sys.argv[1:])}"
    keep(Result(folder, found, samples, answer.query, str(verdict), verdict.level, command))
    console.print(
        f"To ask about other {samples.noun}s, type: crossfluence explore {shlex.quote(str(folder))}", soft_wrap=True
    )


def _finish(answers: Sequence[Explanation], outs: Sequence[Path], samples: Samples, run: Run) -> None:
    from .report.as_json import of_explanation
    from .report.verdicts import of_clusters

    verdicts = [of_clusters(answer, samples.noun) for answer in answers]
    for verdict in verdicts:
        say(str(verdict), quiet=run.quiet, as_json=run.as_json)
    if run.as_json:
        told = [of_explanation(answer, samples, out) for answer, out in zip(answers, outs, strict=True)]
        print_json(told[0] if len(told) == 1 else told)
    exit_code(all(verdict.dependable for verdict in verdicts))


def _chosen(answer: Explanation) -> tuple[Hashable, ...]:
    """The smallest group that moves the row to another cluster, or else the largest that was removed."""
    groups = [one for one in answer.removals if not one.name.startswith("random")]
    enough = [one for one in groups if answer.margin + one.achieved < 0]
    return min(enough, key=lambda one: len(one.ids)).ids if enough else max(groups, key=lambda one: len(one.ids)).ids


def _outs(out: Path, count: int) -> list[Path]:
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]
