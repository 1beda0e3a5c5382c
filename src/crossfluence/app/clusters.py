"""Commands that explain clusters: of digits, and of any table."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..clustering.settings import ClusterSettings
from .cluster_answers import Cleaned, Run, answer_all, expected_of, refuse_outs
from .options import (
    AsJson,
    Check,
    Encoding,
    Force,
    Header,
    Out,
    Plan,
    Quiet,
    Sample,
    Seed,
    Separator,
    WriteCleaned,
    exit_on_error,
    refuse_output,
    unfinished_beside,
)
from .output import print_json, quieten
from .report.terminal import console

if TYPE_CHECKING:
    from ..clustering.settings import CheckSettings
    from .tables import Table

DIGITS = (1797, 64)
"""Rows and columns of the digits of `demo`."""

MANY = 20_000
"""Rows beyond which some are drawn, if nothing else is asked for."""


def demo(
    out: Out = Path("crossfluence-demo.html"),
    force: Force = False,
    seed: Seed = 0,
    check: Check = 100,
    plan: Plan = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Cluster 1,797 handwritten digits, explain one that lies between two clusters, check the explanation."""
    quieten(quiet, as_json)
    run = Run(out, force=force, plan=plan, quiet=quiet, as_json=as_json)
    if plan:
        with exit_on_error():
            refuse_outs(run, 1)
            _foretell(*DIGITS, ClusterSettings(k=10, check=check), 1, as_json)
        return
    from ..clustering.digits import SETTINGS, digits
    from .report.page import Samples

    x = digits()
    samples = Samples("1,797 handwritten digits, clustered without labels", "image", pictures=x.reshape(-1, 8, 8))
    settings = replace(SETTINGS, seed=seed, check=check)
    answer_all(x - x.mean(0), tuple(range(len(x))), settings, samples, run)


def clusters(
    table: Annotated[
        Path,
        typer.Argument(
            help="A table: .csv, .tsv, .txt, .xlsx, .parquet, .jsonl, .json, .npy, .npz; also as .gz, .xz, .bz2, .zip."
        ),
    ],
    method: Annotated[
        str,
        typer.Option(help="dec: deep embedded clustering; kmeans or mixture: as scikit-learn fits them."),
    ] = "dec",
    k: Annotated[int | None, typer.Option("--k", help="How many clusters; default: suggested, with a reason.", min=2)]
    = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help="The row to explain: its id, or its number from 0 without --id; default: auto, a row between "
                     "two clusters. May be repeated."),
    ] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="The column that names the rows.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="The columns to use, such as height,weight; default: all that hold quantities.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="Columns not to use, such as year,code.")] = None,
    categories: Annotated[
        str, typer.Option(help="Text of few values: drop, or onehot (a column of 0 and 1 for each value).")
    ] = "drop",
    missing: Annotated[
        str, typer.Option(help="Cells without a number: refuse, drop (the rows), or mean (of the column).")
    ] = "refuse",
    header: Header = True,
    encoding: Encoding = None,
    separator: Separator = None,
    sample: Sample = None,
    anchor: Annotated[
        float | None,
        typer.Option(help="How firmly clusters are held near their start; 0.03, raised where too weak.", min=1e-3),
    ] = None,
    remove: Annotated[
        str | None, typer.Option(help="How many rows to remove together, such as 20 or 5,20,50; default: at most 20.")
    ] = None,
    write_cleaned: WriteCleaned = None,
    out: Out = Path("crossfluence-clusters.html"),
    force: Force = False,
    seed: Seed = 0,
    check: Check = 100,
    plan: Plan = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Explain why a row of your table sits in its cluster, and check the explanation by training again."""
    from .cleaned import TABLES, refuse_cleaned
    from .estimator_settings import METHODS
    from .suggest import suggested_k
    from .table_files import share_in_head
    from .tables import TableError, read_table

    quieten(quiet, as_json)
    reading: dict[str, Any] = {"header": header, "encoding": encoding, "separator": separator}
    with exit_on_error():
        _one_of(method, "--method", METHODS)
        if method != "dec" and anchor is not None:
            raise TableError(f"--anchor holds the clusters of --method dec; {method} has none. Leave it out.")
        if write_cleaned is not None:
            refuse_cleaned(write_cleaned, TABLES)
            again = force or plan or unfinished_beside(out).is_dir()
            refuse_output(write_cleaned, [table], again, "--write-cleaned")
        share = share_in_head(table) if plan else 1.0
        data = read_table(
            table, id_column=id_column, use=None if columns is None else _listed(columns),
            exclude=_listed(exclude or ""), categories=_one_of(categories, "--categories", ("drop", "onehot")),
            missing=_one_of(missing, "--missing", ("refuse", "drop", "mean")),
            beginning=share < 1, **reading,
        )  # fmt: skip
        asked = [None if one == "auto" else one for one in query or ["auto"]]
        run = Run(out, table, force, plan, quiet, as_json)
        if plan and share < 1:
            refuse_outs(run, len(asked))
            n, most = round(len(data.ids) / share), MANY if sample is None else sample
            if 0 < most < n:
                console.print(f"A random {most:,} of about {n:,} rows will be used. All rows: --sample 0.")
                n = most
            _foretell(n, len(data.columns), _settings(method, k or 3, n, data, check=check), len(asked), as_json)
            return
        keep = [data.row(one) for one in asked if one is not None]
        data = data.sampled(MANY if sample is None else sample, seed, keep=keep)
        rows = [None if one is None else data.row(one) for one in asked]
        if k is not None and k > len(data.ids):
            raise TableError(f"--k {k} is more than the {len(data.ids)} rows of {table.name}.")
        if k is not None and (different := data.different_rows(k)) < k:
            raise TableError(
                f"--k {k} is more than the {different} different rows of {table.name}. Type --k {max(2, different)}."
            )
        if len(data.ids) < 8:
            raise TableError(f"{table.name} has {len(data.ids)} rows; needed at least 8 to leave some out.")
        sizes = _sizes(remove, len(data.ids))
        remarks = (*(f"Warning: {sentence}" for sentence in data.warnings), *data.used())
        if plan:
            for remark in remarks:
                console.print(remark, soft_wrap=True)
            refuse_outs(run, len(rows))
            foretold = _settings(method, k or 3, len(data.ids), data, check=check, sizes=sizes)
            _foretell(len(data.ids), len(data.columns), foretold, len(rows), as_json)
            return
        k, why = (k, None) if k is not None else suggested_k(data.standardised(), seed)
    remarks = (*remarks, *([why] if why else []))
    for remark in remarks:
        console.print(remark, soft_wrap=True)
    from .report.page import Samples

    samples = Samples(
        f"{table.name}: {len(data.ids):,} rows", "row", columns=data.columns, values=data.values, remarks=remarks
    )
    settings = _settings(method, k, len(data.ids), data, check=check, sizes=sizes, seed=seed)
    settings = settings if anchor is None else replace(settings, anchor=anchor)
    cleaned = None if write_cleaned is None else Cleaned(write_cleaned, table, data, reading)
    run = replace(run, cleaned=cleaned)
    answer_all(data.standardised(), data.ids, settings, samples, run, rows)


def _settings(method: str, k: int, n: int, data: Table, **check: Any) -> CheckSettings:
    """Those of a method."""
    from .estimator_settings import estimator_settings

    return ClusterSettings(k, **check) if method == "dec" else estimator_settings(
        method, k, n, len(data.columns), **check
    )  # fmt: skip


def _foretell(n: int, columns: int, settings: CheckSettings, questions: int, as_json: bool) -> None:
    """Prints time and memory, from numbers alone."""
    expected = expected_of(n, columns, settings, questions)
    console.print(str(expected))
    if as_json:
        print_json({"seconds": expected.seconds, "gigabytes": expected.gigabytes})


def _listed(names: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([names]), []) if name.strip()]


def _one_of(value: str, option: str, known: tuple[str, ...]) -> Any:
    from .tables import TableError

    if value not in known:
        raise TableError(f"{option} {value} is none of {', '.join(known)}.")
    return value


def _sizes(remove: str | None, n: int) -> tuple[int, ...]:
    """Numbers of rows from "20" or "5,20,50"."""
    from .tables import TableError

    if remove is None:
        return ()
    sizes = [part.strip() for part in remove.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= n // 2 for part in sizes):
        raise TableError(f"--remove {remove} must be numbers from 1 to {n // 2}, half of the rows, such as 5,20.")
    return tuple(dict.fromkeys(int(part) for part in sizes))
