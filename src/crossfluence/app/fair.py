"""The command that narrows a gap between groups of a table by a few rows, and checks it by training again."""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
import typer

from ..errors import DataError
from .options import Force, Out, Seed, amount_of, exit_code, exit_on_error, refuse_outputs
from .report.terminal import console

if TYPE_CHECKING:
    from .fair_table import People

FEWEST = 200  # rows of which parts can be made


def fair(
    table: Annotated[Path, typer.Argument(help="A table: .csv, .tsv, .xlsx, .parquet, .jsonl and more; also packed.")],
    label: Annotated[str, typer.Option(help="The column to predict; it holds two values.")],
    group: Annotated[str, typer.Option(help="The column of the groups; or race=White, for one against all others.")],
    metric: Annotated[
        str, typer.Option(help="statistical-parity, equal-opportunity, equalised-odds, fpr, fnr or fdr.")
    ] = "equal-opportunity",
    budget: Annotated[str, typer.Option(help="How many rows at most: 1%, or a number.")] = "1%",
    actions: Annotated[str, typer.Option(help="Any of remove,relabel,add.")] = "remove",
    model: Annotated[str, typer.Option(help="logistic, or mlp (a network of 32 units; remove only).")] = "logistic",
    holdout: Annotated[Path | None, typer.Option(help="A table to test on; default: a fifth of the rows.")] = None,
    favourable: Annotated[
        str | None, typer.Option(help="The label whose rates are compared; default: the one that sorts last.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="The columns to predict from, such as age,sex.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Columns not to predict from.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="The column that names the rows.")] = None,
    header: Annotated[bool, typer.Option(help="Whether the first line holds column names.")] = True,
    encoding: Annotated[str | None, typer.Option(help="Of a text file, such as latin-1; default: told.")] = None,
    against_random: Annotated[int, typer.Option(help="Random choices that stand beside.", min=2)] = 10,
    out: Out = Path("crossfluence-fair.html"),
    force: Force = False,
    seed: Seed = 0,
) -> None:
    """Find the rows behind a gap between groups, remove or relabel or add some, and check it by training again."""
    from .._storage.atomic import write_atomically
    from ..tabular.fairness import FairSettings, explain_gap
    from .fair_encoding import Encoding
    from .fair_table import read_people
    from .report.fair import chosen_csv, fair_page, print_fair, verdict_of

    sheet = out.with_suffix(".csv")
    with exit_on_error():
        kinds = _actions(actions)
        settings = FairSettings(
            _metric(metric), kinds, amount_of(budget, "--budget"), cast('Literal["logistic", "mlp"]', _model(model)),
            draws=against_random, seed=seed,
        )  # fmt: skip
        refuse_outputs(out, sheet, [path for path in (table, holdout) if path is not None], force)
        if holdout is not None and holdout.exists() and table.exists() and holdout.samefile(table):
            raise DataError(f"--holdout {holdout} is the table that is trained on; needed other rows, or leave it out.")
        use, without = (None if names is None else _named(names) for names in (columns, exclude))
        people = read_people(
            table, label=label, group=group, favourable=favourable, columns=use, exclude=without or (),
            id_column=id_column, header=header, encoding=encoding,
        )  # fmt: skip
        other = None if holdout is None else read_people(
            holdout, label=label, group=group, id_column=id_column, header=header, encoding=encoding, like=people
        )  # fmt: skip
        people = people if other is None else people.with_remarks(other)
        rows = _split(people, "add" in kinds, other is None, seed)
        coded = Encoding.of(people, rows["train"])
        test = coded.part(people, rows["test"]) if other is None else coded.part(other, np.arange(len(other)))
        parts = {name: coded.part(people, held) for name, held in rows.items()}
        for remark in people.remarks:
            console.print(remark, soft_wrap=True)
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in (parts | {"test": test}).items())
        console.print(f"Rows: {sizes}.")
        answer = explain_gap(parts["train"], parts["validation"], test, settings, pool=parts.get("pool"))
        page = fair_page(answer, people, rows, table.name, command=f"crossfluence {shlex.join(sys.argv[1:])}")
        write_atomically(out, page.encode())
        write_atomically(sheet, chosen_csv(answer, people, rows))
    print_fair(answer, people, rows)
    console.print(f"Wrote {out} and {sheet}.")
    exit_code(verdict_of(answer).dependable)


def _split(people: People, pooled: bool, tested: bool, seed: int) -> dict[str, np.ndarray]:
    """Row numbers of each part, by its name."""
    from .fair_encoding import split

    if len(people) < FEWEST:
        raise DataError(f"The table has {len(people)} rows with label and group; needed at least {FEWEST} for parts.")
    shares = {"train": 0.6, "validation": 0.2}
    if pooled:
        shares = {"train": 0.5, "pool": 0.1, "validation": 0.2}
    if tested:
        shares["test"] = 0.2
    whole = sum(shares.values())
    return dict(zip(shares, split(people, [share / whole for share in shares.values()], seed), strict=True))


def _named(columns: str) -> list[str]:
    """Names between commas; in quotes one may hold a comma."""
    return [name.strip() for name in next(csv.reader([columns], skipinitialspace=True), [])]


def _actions(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not kinds or set(kinds) - {"remove", "relabel", "add"}:
        raise DataError(f"--actions {text} is not a list of remove, relabel and add. Type: --actions remove,relabel.")
    return kinds


def _metric(name: str) -> str:
    from ..tabular import METRICS

    spelt = name.replace("equalized", "equalised").replace("_", "-").lower()
    if spelt not in METRICS:
        raise DataError(f"There is no --metric {name}; there are {', '.join(METRICS)}.")
    return spelt


def _model(name: str) -> str:
    if name not in {"logistic", "mlp"}:
        raise DataError(f"There is no --model {name}; there are logistic and mlp.")
    return name
