"""The command that names training texts suspected of a planted trigger, and checks them by training without them."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError
from .options import Force, Out, Seed, exit_code, exit_on_error, refuse_outputs, share_of
from .report.terminal import console
from .texts import refuse_unspaced


def suspects(
    train: Annotated[Path, typer.Argument(help="The training texts with their labels: JSONL or a table; also packed.")],
    queries: Annotated[
        Path, typer.Option(help="Texts that get an odd answer; with the label field, that is the odd answer.")
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
    holdout: Annotated[Path | None, typer.Option(help="Other texts with labels, for the accuracy.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the texts.", min=1)] = 10,
    out: Out = Path("crossfluence-suspects.html"),
    force: Force = False,
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Train a small classifier, and name the texts behind its odd answers, however the queries are turned."""
    from .._storage.atomic import write_atomically
    from ..language.bag_of_words import words_of
    from ..language.suspects import SuspectSettings, explain_suspects
    from .records import guessed, read_labelled
    from .report.suspects import dependable, print_suspects, suspects_csv, suspects_page

    sheet = out.with_suffix(".csv")
    with exit_on_error():
        settings = SuspectSettings(
            _names(rewrite), _share(strong), _agreement(agree), _doubt(doubt), remove, epochs=epochs, seed=seed
        )
        refuse_outputs(out, sheet, [path for path in (train, queries, holdout) if path is not None], force)
        texts, written = read_labelled(train, text, label)
        asked, answers = read_labelled(queries, text, label, optional=True)
        held = None if holdout is None else read_labelled(holdout, text, label)
        labels, remarks = one_spelling(written)
        answers = spelt_as(labels, answers)
        held = None if held is None else (held[0], spelt_as(labels, held[1]))
        refuse_unspaced(Counter(word for one in texts for word in words_of(one)))
        remarks += [*guessed(train, queries, holdout), *read_in_part(texts, asked)]
        console.print(f"{len(texts):,} training texts, {len(asked):,} queries.")
        for remark in remarks:
            console.print(remark, soft_wrap=True)
        answer = explain_suspects(texts, labels, asked, settings, answers=answers or None, held_out=held)
        command = f"crossfluence {shlex.join(sys.argv[1:])}"
        page = suspects_page(answer, title=train.name, command=command, remarks=remarks)
        write_atomically(out, page.encode())
        write_atomically(sheet, suspects_csv(answer))
    print_suspects(answer)
    console.print(f"Wrote {out} and {sheet}.")
    exit_code(dependable(answer))


def one_spelling(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Labels that differ in capitals alone as one, and a sentence about them.

    Args:
        labels: As written.

    Returns:
        As many, with the most frequent spelling of each, and at most one sentence.
    """
    import pandas as pd

    from .categories import joined
    from .table_files import listed

    cells, alike = joined(pd.Series(labels, dtype=object))
    shown = "; ".join(map(listed, alike))
    return list(cells), [f"Read as one label each: {shown}."] if alike else []


def spelt_as(labels: Sequence[str], others: Sequence[str]) -> list[str]:
    """Labels of other texts, spelt as those of the training texts.

    Args:
        labels: Of these.
        others: Of those.

    Returns:
        As many as there are others; what no training text is labelled stays.
    """
    known = {label.casefold(): label for label in labels}
    exact = set(labels)
    return [label if label in exact else known.get(label.casefold(), label) for label in others]


def read_in_part(texts: Sequence[str], asked: Sequence[str]) -> list[str]:
    """A sentence about texts that are longer than the classifier reads.

    Args:
        texts: To train on.
        asked: The queries.

    Returns:
        At most one.
    """
    from ..language.bag_of_words import LONGEST, words_of

    long, queries = (sum(len(words_of(one)) > LONGEST for one in some) for some in (texts, asked))
    if not long + queries:
        return []
    return [
        f"Only the first {LONGEST} words of a text are read: {long:,} training texts and {queries:,} queries are "
        f"longer. A trigger further back is not found; cut the texts into parts that hold it."
    ]


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
