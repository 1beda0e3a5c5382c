"""Tables of the paper's experiments in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table as RichTable

from crossfluence.app.report.terminal import console

from .scifi import SciFiResult
from .weat_figure import label


def print_weat(rows: Sequence[dict[str, Any]], notes: Sequence[str]) -> None:
    """What had to be left out, then for each test every action on the most sentences."""
    for note in notes:
        console.print(note)
    most = max(row["size"] for row in rows)
    measures = [name for name in ("WordSim-353", "SimLex-999", "MEN", "analogies", "held-out loss") if name in rows[0]]
    for trainer, test in dict.fromkeys((row["trainer"], row["test"]) for row in rows):
        chosen = [row for row in rows if (row["trainer"], row["test"]) == (trainer, test) and row["size"] in {0, most}]
        shown = RichTable(
            title=f"{test}, {trainer} training: {most} sentences, effect size {_spread(chosen[0], 'before')}"
        )
        for place, name in enumerate(["action", "of", "predicted", "after", "p", *measures]):
            shown.add_column(name, justify="right" if place > 1 else "left")
        for row in chosen:
            figures = [f"{row[name]:.3f}" for name in ("p after", *measures)]
            shown.add_row(label(row), row["of"], f"{row['predicted']:.2f}", _spread(row, "after"), *figures)
        console.print(shown)


def _spread(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f}" + (f" ± {row[f'sd {name}']:.2f}" if row["seeds"] > 1 else "")


def print_scifi(found: SciFiResult) -> None:
    """The clusters, what each action did, and how well determined both questions are."""
    for row in found.clusters:
        console.print(f"Cluster {row['cluster']}, {row['words']} words{_asked(row['asked'])}: {row['nearest']}.")
    console.print(f"Silhouette {found.silhouette:.3f}.")
    titles = {
        "moved": "Squared distance from the initial vector (the paper's question)",
        "margin": "Margin to the next cluster, in nats",
    }
    for question, title in titles.items():
        shown = RichTable(title=title)
        names = ["word", "action", "sentences", "steps", "summed scores", "Newton step", "after", "cluster"]
        for place, name in enumerate(names):
            shown.add_column(name, justify="right" if place > 1 else "left")
        for row in found.rows:
            if row["question"] == question:
                numbers = [
                    f"{row[name]:+.4f}" if row[name] == row[name] else "" for name in ("summed", "newton", "after")
                ]
                counts = [str(row[name] or "") for name in ("sentences", "steps")]
                left = f"{row['cluster']}{' (left)' if row['left'] else ''}"
                shown.add_row(row["word"], row["action"], *counts, *numbers, left)
        console.print(shown)
    shown = RichTable(title="The same questions, however it was trained")
    for place, name in enumerate(["word", "trained", "moved", "margin", "squared length"]):
        shown.add_column(name, justify="right" if place > 1 else "left")
    for row in sorted(found.determined, key=lambda row: row["word"]):
        shown.add_row(row["word"], row["trained"], *[_signed(row[name]) for name in ("moved", "margin", "length")])
    console.print(shown)


def _asked(words: str) -> str:
    return f", with {words.replace(' ', ', ')}" if words else ""


def _signed(value: float) -> str:
    return "" if value != value else f"{value:+.4f}"
