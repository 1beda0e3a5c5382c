"""The command that names training texts suspected of a planted trigger, and checks them by training without them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError
from .options import Force, Out, Seed, exit_code, exit_on_error, refuse_outputs, share_of
from .report.terminal import console


def suspects(
    train: Annotated[Path, typer.Argument(help="The training texts with their labels: JSONL, also as .gz.")],
    queries: Annotated[
        Path, typer.Option(help="Texts that get an odd answer: JSONL; with the label field, that is the odd answer.")
    ],
    text: Annotated[str, typer.Option(help="The field of the texts.")] = "text",
    label: Annotated[str, typer.Option(help="The field of the labels.")] = "label",
    rewrite: Annotated[
        str, typer.Option(help="Rules that turn the queries around: any of negate,question,flip.")
    ] = "negate,question",
    strong: Annotated[
        str, typer.Option(help="Share of the texts that counts as strong: at most so many are suspected.")
    ] = "10%",
    doubt: Annotated[
        str, typer.Option(help="Share of the suspects that all other texts explain, too; 100%: all that are strong.")
    ] = "5%",
    agree: Annotated[str, typer.Option(help="all: strong in all versions of the queries; most: in most.")] = "all",
    remove: Annotated[bool, typer.Option("--remove", help="Train again without the suspects, and say what changed.")]
    = False,
    holdout: Annotated[Path | None, typer.Option(help="Other texts with labels, for the accuracy: JSONL.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the texts.", min=1)] = 10,
    out: Out = Path("crossfluence-suspects.html"),
    force: Force = False,
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Train a small classifier, and name the texts behind its odd answers, however the queries are turned."""
    from .._storage.atomic import write_atomically
    from ..language.suspects import SuspectSettings, explain_suspects
    from .report.suspects import dependable, print_suspects, suspects_csv, suspects_page

    sheet = out.with_suffix(".csv")
    with exit_on_error():
        settings = SuspectSettings(
            _names(rewrite), _share(strong), _agreement(agree), _doubt(doubt), remove, epochs=epochs, seed=seed
        )
        refuse_outputs(out, sheet, [path for path in (train, queries, holdout) if path is not None], force)
        texts, labels = labelled(train, text, label)
        asked, answers = labelled(queries, text, label, optional=True)
        held = None if holdout is None else labelled(holdout, text, label)
        console.print(f"{len(texts):,} training texts, {len(asked):,} queries.")
        answer = explain_suspects(texts, labels, asked, settings, answers=answers or None, held_out=held)
        page = suspects_page(answer, title=train.name, command=f"crossfluence {shlex.join(sys.argv[1:])}")
        write_atomically(out, page.encode())
        write_atomically(sheet, suspects_csv(answer))
    print_suspects(answer)
    console.print(f"Wrote {out} and {sheet}.")
    exit_code(dependable(answer))


def labelled(path: Path, text: str, label: str, *, optional: bool = False) -> tuple[list[str], list[str]]:
    """The texts and labels of a file.

    Args:
        path: JSONL.
        text: The field of the texts.
        label: The field of the labels.
        optional: Whether a file without labels will do.

    Returns:
        As many of both; no labels if there are none and none are needed.

    Raises:
        DataError: If a line lacks a field, or some have labels and some have none.
    """
    from ..language.files import json_lines

    texts, labels = list[str](), list[str]()
    for line, record in json_lines(path):
        if not isinstance(record.get(text), str):
            raise DataError(f"Line {line} of {path} has the fields {list(record)}; needed {text!r}: --text NAME.")
        texts.append(record[text])
        if _written(record.get(label)) is not None:
            labels.append(str(record[label]))
        elif not optional:
            raise DataError(f"Line {line} of {path} has the fields {list(record)}; needed {label!r}: --label NAME.")
    if labels and len(labels) != len(texts):
        raise DataError(f"Of the {len(texts)} texts of {path}, {len(labels)} have a label; needed all or none.")
    return texts, labels


def _written(label: Any) -> str | None:
    return str(label) if isinstance(label, (str, int, bool)) else None


def _names(text: str) -> tuple[str, ...]:
    from ..language.rewrites import REWRITES

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or set(names) - set(REWRITES):
        raise DataError(f"--rewrite {text} is not a list of {', '.join(REWRITES)}. Type: --rewrite negate,question.")
    return names


def _share(text: str) -> float:
    value = share_of(text)
    if not 0 < value < 1:
        raise DataError(f"--strong {text} is no share of the texts. Type: --strong 10%.")
    return value


def _doubt(text: str) -> float:
    value = share_of(text)
    if not 0 < value <= 1:
        raise DataError(f"--doubt {text} is no share of the suspects. Type: --doubt 5%.")
    return value


def _agreement(text: str) -> str:
    if text not in {"all", "most"}:
        raise DataError(f"--agree {text} is neither all nor most.")
    return text
