"""The picture of the experiment on bias: what every action made of each test, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .page import PALETTE

OPEN = "-open"  # random sentences


def label(row: dict[str, Any]) -> str:
    """An action as a short name.

    Args:
        row: Of the study.

    Returns:
        Its name, with how it differs from the others of that name.

    Example:
        >>> label({"action": "undo", "guarded": False, "debiased": False, "steps": 10})
        'undo as in the paper, 10 steps'
        >>> label({"action": "remove", "guarded": False, "debiased": True, "steps": 0})
        'remove, then hard debiasing'
    """
    name = str(row["action"])
    if row["steps"]:
        name += ", guarded" if row["guarded"] else f" as in the paper, {row['steps']} steps"
    if row["debiased"]:
        name = f"{name}, then hard debiasing" if row["action"] == "remove" else f"hard debiasing, then {name}"
    return name


def weat_figure(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Effect sizes after every action, and beside them the held-out loss.

    Args:
        rows: Means over seeds.

    Returns:
        One line of two pictures for each test.
    """
    tests = list(dict.fromkeys(row["test"] for row in rows))
    titles = [title for test in tests for title in (f"{test}: after each action", f"{test}: what it cost")]
    figure = make_subplots(
        len(tests), 2, subplot_titles=titles, column_widths=[0.62, 0.38], horizontal_spacing=0.07,
        vertical_spacing=0.35 / len(tests),
    )  # fmt: skip
    for line, test in enumerate(tests, start=1):
        chosen = [row for row in rows if row["test"] == test]
        for number, (trainer, random) in enumerate(
            (trainer, random) for trainer in ("expected", "sampled") for random in (False, True)
        ):
            some = [row for row in chosen if row["trainer"] == trainer and (row["of"] == "random") == random]
            if some:
                _add(figure, some, line, f"{trainer}{', random sentences' if random else ''}", number)
        figure.update_yaxes(title_text="effect size", row=line)
        figure.update_xaxes(tickangle=-40, row=line, col=1)
        figure.update_xaxes(type="log", title_text="held-out loss of a pair (nats)", row=line, col=2)
    return figure.update_layout(
        title="Acting on the bias of word embeddings; the size of a dot tells the number of sentences",
        template="plotly_white", height=620 * len(tests), font={"family": "system-ui, sans-serif"},
    )  # fmt: skip


def _add(figure: go.Figure, rows: list[dict[str, Any]], line: int, name: str, number: int) -> None:
    shape = ("circle", "diamond")[number // 2]
    marker = {
        "symbol": shape + (OPEN if number % 2 else ""), "color": PALETTE[number // 2],
        "size": [6 + 3 * len(str(row["size"])) if row["size"] else 10 for row in rows],
    }  # fmt: skip
    texts = [
        f"{label(row)}, {row['size']} sentences<br>before {row['before']:.2f}, predicted {row['predicted']:.2f}, "
        f"after {row['after']:.2f}, p = {row['p after']:.3f}<br>held-out loss {row['held-out loss']:.3f}"
        for row in rows
    ]
    shared = {"mode": "markers", "marker": marker, "text": texts, "hoverinfo": "text", "legendgroup": name}
    after = [row["after"] for row in rows]
    spread = {"array": [row["sd after"] for row in rows], "visible": any(row["seeds"] > 1 for row in rows)}
    figure.add_scatter(
        x=[label(row) for row in rows], y=after, name=name, error_y=spread, showlegend=line == 1, **shared,
        row=line, col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=[row["held-out loss"] for row in rows], y=after, name=name, showlegend=False, **shared, row=line, col=2
    )
