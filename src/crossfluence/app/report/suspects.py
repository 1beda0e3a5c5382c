"""The page, the table and the terminal's lines about training texts suspected of a planted trigger."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from .page import template, versions
from .reliability import Reliability, judged
from .sheet import no_formula
from .terminal import console

if TYPE_CHECKING:
    from ...language.suspects import State, SuspectAnswer

LISTED, SHOWN = 200, 300  # suspects on the page, and characters of each
BEYOND = 3.0  # times as far as any random set of texts moves the answer, for suspects to be relied on


def reliability_of(answer: SuspectAnswer) -> Reliability:
    """A judgement of the suspects, by training without them and without as many random texts.

    Args:
        answer: All that was found.

    Returns:
        "order" at best: a suspect is no proof; sizes are not checked.
    """
    if answer.after is None:
        advice = [] if answer.settings.remove else ["--remove, which trains again without them"]
        nobody = "no text stands out in all versions of the queries" if not answer.flagged else "nothing was removed"
        if answer.before.share < answer.settings.shown:
            nobody = (
                f"the classifier gives the odd answer to {answer.before.share:.0%} of the queries, fewer than "
                f"{answer.settings.shown:.0%}: there is hardly anything to suspect texts of"
            )
        return judged([("unreliable", nobody)], advice=advice)
    fell = answer.before.answer - answer.after.answer
    beside = max(abs(answer.before.answer - one.answer) for one in answer.random)
    said = (
        f"without the {len(answer.flagged)} suspects the odd answer falls by {fell:.2f} nats, without as many random "
        f"texts it moves by at most {beside:.2f}"
    )
    return judged([("order" if fell > BEYOND * beside else "unreliable", said)])


def dependable(answer: SuspectAnswer) -> bool:
    """True if training again agreed."""
    return reliability_of(answer).dependable


def print_suspects(answer: SuspectAnswer) -> None:
    """The judgement, the suspects, their words, and what removing them did."""
    console.print(f"\n{reliability_of(answer)}", soft_wrap=True)
    for sentence in sentences(answer):
        console.print(sentence, soft_wrap=True)


def sentences(answer: SuspectAnswer) -> list[str]:
    """All that was found, a sentence each."""
    count, n = len(answer.flagged), len(answer.texts)
    found = [
        f"Suspects: {count} of {n:,} texts ({count / n:.1%}) are strong in every version that has to agree, and stand "
        f"out of the tail of all others."
    ]
    if answer.flagged:
        listed = "; ".join(f"“{answer.texts[row][:60]}” ({answer.labels[row]})" for row in answer.flagged[:3])
        found.append(f"First of them: {listed}.")
    if answer.words:
        said = ", ".join(
            f"“{word}” ({inside} of {count}; {other} of the others)" for word, inside, other in answer.words
        )
        found.append(f"Words they hold more often: {said}.")
    found.append(f"As trained: {_said(answer.before)}.")
    if answer.after is not None:
        found.append(f"Trained again without them: {_said(answer.after)}.")
        found += [f"Trained again without {count} random texts: {_said(one)}." for one in answer.random]
    return found


def suspects_csv(answer: SuspectAnswer) -> bytes:
    """One row for each text, the strongest first.

    Args:
        answer: All that was found.

    Returns:
        UTF-8.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "suspect", *answer.found.objectives, *answer.versions, "label", "content"])
    flagged, values = set(answer.flagged), answer.found.values
    columns = [scores.values[:, 0].tolist() for scores in answer.versions.values()]
    for row in values[:, 0].argsort(descending=True, stable=True).tolist():
        numbers = [*values[row].tolist(), *(column[row] for column in columns)]
        written = [f"{value:.6g}" for value in numbers]
        shown = [no_formula(cell) for cell in (answer.labels[row], answer.texts[row])]
        writer.writerow([row + 1, int(row in flagged), *written, *shown])
    return out.getvalue().encode()


def suspects_page(answer: SuspectAnswer, *, title: str, command: str, remarks: Sequence[str] = ()) -> str:
    """One HTML file with everything in it; it requests nothing from the network.

    Args:
        answer: All that was found.
        title: What the texts are called.
        command: The command line that made it.
        remarks: Sentences about the texts.

    Returns:
        The text of the page.
    """
    rows = [
        {"number": row + 1, "label": answer.labels[row], "value": float(answer.found.values[row, 0]),
         "text": answer.texts[row][:SHOWN]}
        for row in answer.flagged[:LISTED]
    ]  # fmt: skip
    return template("suspects.html").render(
        title=title, command=command, verdict=reliability_of(answer), sentences=[*sentences(answer), *remarks],
        rows=rows, more=max(0, len(answer.flagged) - LISTED), settings=asdict(answer.settings), versions=versions(),
    )  # fmt: skip


def _said(state: State) -> str:
    right = "" if state.accuracy != state.accuracy else f", accuracy on held-out texts {state.accuracy:.1%}"
    return f"{state.share:.1%} of the queries get the odd answer, log-odds {state.answer:+.2f} nats{right}"
