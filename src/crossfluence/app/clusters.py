"""Commands that explain clusters: of digits, and of any table."""

from __future__ import annotations

import csv
import shlex
import shutil
import sys
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from torch import Tensor

from .options import Check, Force, Out, Plan, Seed, exit_code, plainly, refuse_outputs, stop_unfinished
from .report.terminal import console, print_clusters

if TYPE_CHECKING:
    from ..clustering.explain import ClusterSettings
    from .report.page import Samples


def demo(
    out: Out = Path("crossfluence-demo.html"),
    force: Force = False,
    seed: Seed = 0,
    check: Check = 100,
    plan: Plan = False,
) -> None:
    """Cluster 1,797 handwritten digits, explain one that lies between two clusters, check the explanation."""
    from ..clustering.digits import SETTINGS, digits
    from .report.page import Samples

    x = digits()
    samples = Samples("1,797 handwritten digits, clustered without labels", "image", pictures=x.reshape(-1, 8, 8))
    settings = replace(SETTINGS, seed=seed, check=check)
    _answer(x - x.mean(0), tuple(range(len(x))), settings, samples, out=out, force=force, plan=plan)


def clusters(
    table: Annotated[Path, typer.Argument(help="A .csv or .tsv with a header, a .parquet, or a two-dimensional .npy.")],
    k: Annotated[int, typer.Option("--k", help="How many clusters.", min=2)],
    query: Annotated[str, typer.Option(help="The row to explain: its id, or its number from 0 without --id.")],
    id_column: Annotated[str | None, typer.Option("--id", help="The column that names the rows.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="The columns to use, such as height,weight; default: all that hold quantities.")
    ] = None,
    header: Annotated[bool, typer.Option(help="Whether the first line of a .csv or .tsv holds column names.")] = True,
    encoding: Annotated[str, typer.Option(help="Of a .csv or .tsv.")] = "utf-8",
    anchor: Annotated[
        float | None,
        typer.Option(help="How firmly clusters are held near their start; 0.03, raised where too weak.", min=1e-3),
    ] = None,
    out: Out = Path("crossfluence-clusters.html"),
    force: Force = False,
    seed: Seed = 0,
    check: Check = 100,
    plan: Plan = False,
) -> None:
    """Explain why a row of your table sits in its cluster, and check the explanation by training again."""
    from ..clustering.explain import ClusterSettings
    from .report.page import Samples
    from .tables import TableError, read_table

    with plainly():
        use = None if columns is None else [name.strip() for name in next(csv.reader([columns]), [])]
        data = read_table(table, id_column=id_column, use=use, header=header, encoding=encoding)
        row = data.row(query)
        if k > len(data.ids):
            raise TableError(f"--k {k} is more than the {len(data.ids)} rows of {table.name}.")
        if len(data.ids) < 8:
            raise TableError(f"{table.name} has {len(data.ids)} rows; needed at least 8 to leave some out.")
    remarks = (*(f"Warning: {sentence}" for sentence in data.warnings), *data.used())
    for remark in remarks:
        console.print(remark, soft_wrap=True)
    samples = Samples(
        f"{table.name}: {len(data.ids):,} rows", "row", columns=data.columns, values=data.values, remarks=remarks
    )
    settings = ClusterSettings(k=k, seed=seed, check=check)
    settings = settings if anchor is None else replace(settings, anchor=anchor)
    _answer(data.standardised(), data.ids, settings, samples, query=row, source=table, out=out, force=force, plan=plan)


def _answer(
    x: Tensor,
    ids: tuple[Hashable, ...],
    settings: ClusterSettings,
    samples: Samples,
    *,
    query: int | None = None,
    source: Path | None = None,
    out: Path,
    force: bool,
    plan: bool,
) -> None:
    """Foretells, explains, prints the table, writes page and scores; a stopped run goes on when it is started again."""
    from .._storage.atomic import write_atomically
    from ..clustering.explain import explain
    from .forecast import forecast_clusters
    from .report.page import cluster_page, frame_csv
    from .report.verdicts import of_clusters

    sheet = out.with_suffix(".csv")
    unfinished = out.with_name(f"{out.name}.unfinished")
    with plainly():
        refuse_outputs(out, sheet, [] if source is None else [source], force or plan)
        console.print(str(forecast_clusters(x, settings)))
        if plan:
            return
        try:
            found = explain(x, ids, settings, query=query, store=unfinished)
        except KeyboardInterrupt:
            stop_unfinished(unfinished, "trains the clustering and computes the scores")
        page = cluster_page(found, samples, command=f"crossfluence {shlex.join(sys.argv[1:])}")
        write_atomically(out, page.encode())
        write_atomically(sheet, frame_csv(found.scores))
    shutil.rmtree(unfinished, ignore_errors=True)
    print_clusters(found, settings, samples)
    console.print(f"Wrote {out} and {sheet}.")
    exit_code(of_clusters(found, samples.noun).dependable)
