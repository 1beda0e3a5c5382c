"""An answer about a gap between groups: its first sentence, its tables in the terminal, its page and its rows."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import Any

import numpy as np
from rich.table import Table as RichTable

from ...tabular.fairness import FairAnswer
from ...tabular.measured import Interval, Measured
from ..fair_table import People
from .page import template, versions
from .reliability import Finding, Reliability, Removed, foretold, judged, predictions, share_of
from .sheet import no_formula
from .terminal import console

SHOWN = 10  # rows in the terminal
MEANINGS = {
    "statistical-parity": "the share of a group that is predicted {good}",
    "equal-opportunity": "the share predicted {good} of those of a group who are {good}",
    "equalised-odds": "the shares predicted {good} of those of a group who are {good}, and of those who are {bad}",
    "fpr": "the share predicted {good} of those of a group who are {bad}",
    "fnr": "the share predicted {bad} of those of a group who are {good}",
    "fdr": "the share of those of a group predicted {good} who are {bad}",
}
"""Rates that are compared between groups, by the metric's name."""

FIGURES = ("change", "change of held-out loss")
DONE = {"remove": "removed", "relabel": "relabelled", "add": "added"}


def verdict_of(answer: FairAnswer) -> Reliability:
    """A judgement of the predicted effects of rows: by training again, beside random rows.

    Args:
        answer: With its check.

    Returns:
        Level, reasons, and what to type where they cannot be.
    """
    assert answer.outcome.random is not None
    linear, newton, achieved = (
        float(part[0]) for part in (answer.found.linear, answer.found.predicted, answer.outcome.achieved)
    )
    chosen = Removed("the chosen rows", linear, newton, achieved)
    noise = float(answer.outcome.random[:, 0].abs().max())
    figures = (
        f"training again changed the gap it was asked to narrow by {achieved:+.3f}, predicted {predictions(chosen)}"
    )
    beside = f"as many random rows changed it by up to {noise:.3f}"
    found: list[Finding] = [(foretold(chosen, abs(achieved), noise), figures), (share_of(noise, achieved), beside)]
    return judged(found, advice=["--budget with fewer rows", "--actions remove"])


def result_of(answer: FairAnswer) -> str:
    """A sentence about the gap on test rows; it is called halved only where a paired interval supports that."""
    before, after = answer.before.gap.value, answer.after.gap.value
    change = f"{_plain(answer.change)} (95 % interval, paired)"
    share = f"from {before:.3f} to {after:.3f}, {after / before:.2f} of it" if before else f"from 0 to {after:.3f}"
    if answer.halved:
        return f"The gap on test rows was halved: {share}; a change of {change}."
    if answer.reduced:
        return f"The gap on test rows was reduced: {share}; a change of {change}."
    return f"The gap on test rows went {share}; that it fell is not supported: a change of {change}."


def _plain(interval: Interval) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def meaning_of(answer: FairAnswer, people: People) -> str:
    """A sentence about the rates that the metric compares."""
    bad, good = people.labels
    rates = MEANINGS[answer.settings.metric].format(good=good, bad=bad)
    return f"The gap: {rates}, in one group less in another (the largest difference; 0 is none)."


def lines_of(answer: FairAnswer) -> list[dict[str, str]]:
    """Rows of the table: what was trained, the gap on test rows, the share of it, accuracy."""
    base = answer.before
    kinds = Counter(action.kind for action in answer.found.chosen)
    acted = ", ".join(f"{count} {DONE[kind]}" for kind, count in kinds.items())
    random = answer.random
    gaps, accuracies = [one.gap.value for one in random], [one.accuracy for one in random]
    beside = Measured(Interval(float(np.mean(gaps)), min(gaps), max(gaps)), float(np.mean(accuracies)), {})
    listed = [
        ("all rows as they are", base), ("predicted by one Newton step", answer.predicted), (acted, answer.after),
        (f"as many at random (mean and range of {len(random)})", beside), ("reweighing", answer.reweighed),
    ]  # fmt: skip
    return [
        {
            "name": name, "gap": f"{one.gap.value:.3f}", "interval": f"{one.gap.low:.3f} to {one.gap.high:.3f}",
            "share": f"{one.gap.value / base.gap.value:.2f}" if base.gap.value else "",
            "accuracy": f"{100 * one.accuracy:.2f}", "points": f"{100 * (one.accuracy - base.accuracy):+.2f}",
        }
        for name, one in listed
    ]  # fmt: skip


def comparison_of(answer: FairAnswer) -> str:
    """A sentence about reweighing: where it does better, and where it does not."""
    ours, theirs = answer.after, answer.reweighed
    gap = "a smaller gap" if theirs.gap.value < ours.gap.value else "a larger gap"
    points = 100 * (theirs.accuracy - ours.accuracy)
    accuracy = (
        f"{abs(points):.2f} points {'more' if points > 0 else 'less'} accuracy" if points else "the same accuracy"
    )
    return f"Reweighing (Kamiran and Calders) ends with {gap} and {accuracy}."


def print_fair(answer: FairAnswer, people: People, rows: dict[str, np.ndarray]) -> None:
    """Verdict first; then the result, the table, and the first rows."""
    console.print(f"\n{verdict_of(answer)}", soft_wrap=True)
    console.print(result_of(answer), soft_wrap=True)
    console.print(meaning_of(answer, people), soft_wrap=True)
    shown = RichTable(title=f"{answer.settings.metric} on test rows")
    for place, name in enumerate(("trained with", "gap", "95 % interval", "of it", "accuracy, %", "change")):
        shown.add_column(name, justify="right" if place else "left")
    for line in lines_of(answer):
        shown.add_row(*line.values())
    console.print(shown)
    console.print(comparison_of(answer), soft_wrap=True)
    listed = RichTable(title=f"The first of {len(answer.found.chosen)} rows")
    for name in ("action", "row", "label", "change"):
        listed.add_column(name, justify="right" if name == "change" else "left")
    for line in chosen_rows(answer, people, rows)[:SHOWN]:
        listed.add_row(line["action"], line["id"], _labels(line), f"{float(line['change']):+.5f}")
    console.print(listed)
    console.print(answer.found.stopped)


def _labels(line: dict[str, str]) -> str:
    return f"{line['label']} -> {line['new label']}" if line["new label"] else line["label"]


def chosen_rows(answer: FairAnswer, people: People, rows: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """The chosen actions with the cells of their rows.

    Args:
        answer: With its choice.
        people: The table.
        rows: Row numbers of each part.

    Returns:
        One mapping for each action: action, id, label, new label, group, first-order change, and the features.
    """
    found = list[dict[str, str]]()
    for action in answer.found.chosen:
        place = int(rows["pool" if action.kind == "add" else "train"][action.id])  # pyright: ignore
        label = int(people.y[place])
        cells = {str(name): str(cell) for name, cell in people.frame.iloc[place].items()}
        new = people.labels[1 - label] if action.kind == "relabel" else ""
        head = {
            "action": action.kind, "id": people.ids[place], "label": people.labels[label], "new label": new,
            "group": str(people.groups[place]), "change": f"{action.change:.8g}",
            "change of held-out loss": f"{action.keep:.8g}",
        }  # fmt: skip
        found.append(head | {name if name not in head else f"{name} (table)": cell for name, cell in cells.items()})
    return found


def chosen_csv(answer: FairAnswer, people: People, rows: dict[str, np.ndarray]) -> bytes:
    """The chosen actions as CSV, in the order in which they were chosen."""
    lines, text = chosen_rows(answer, people, rows), io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: no_formula(cell) for name, cell in line.items()} for line in lines)
    return text.getvalue().encode()


def fair_page(answer: FairAnswer, people: People, rows: dict[str, np.ndarray], title: str, *, command: str) -> str:
    """One HTML file: the verdict, the gap before and after, rates of groups, the rows, how it was made.

    Args:
        answer: With its check.
        people: The table.
        rows: Row numbers of each part.
        title: What the table is called.
        command: The command line that made it.

    Returns:
        The text of the page; it requests nothing from the network.
    """
    lines = chosen_rows(answer, people, rows)
    settings: dict[str, Any] = {**vars(answer.settings), "actions": ", ".join(answer.settings.actions)}
    return template("fair.html").render(
        a=answer, title=title, command=command, verdict=verdict_of(answer), result=result_of(answer),
        meaning=meaning_of(answer, people),
        lines=lines_of(answer), comparison=comparison_of(answer), chosen=lines, remarks=people.remarks,
        rates=_rates(answer), settings=settings, versions=versions(), names=list(lines[0]),
        figures=FIGURES,
        sizes={name: len(held) for name, held in rows.items()},
    )  # fmt: skip


def _rates(answer: FairAnswer) -> list[tuple[str, str, float, float]]:
    """Rate, group, before, after."""
    return [
        (rate, group, value, answer.after.rates[rate][group])
        for rate, groups in answer.before.rates.items()
        for group, value in groups.items()
    ]
