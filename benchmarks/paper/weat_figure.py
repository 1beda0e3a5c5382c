"""The picture of the experiment on bias: what every action made of each test, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crossfluence.app.report.page import PALETTE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

OPEN = "-open"  # random sentences


def label(row: dict[str, Any]) -> str:
    """An action as a short name.

    Args:
        row: Of the study.

    Returns:
        Its name, with how it differs from the others of that name.

    Example:
        >>> label({"action": "undo", "guarded": False, "debiased": False, "steps": 10})
        'undo, 10 free steps'
        >>> label({"action": "remove", "guarded": False, "debiased": True, "steps": 0})
        'remove, then hard debiasing'
    """
    name = str(row["action"])
    if row["steps"]:
        name += ", guarded" if row["guarded"] else f", {row['steps']} free steps"
    if row["debiased"]:
        name = f"{name}, then hard debiasing" if row["action"] == "remove" else f"hard debiasing, then {name}"
    return name


def weat_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Effect sizes after every action, and beside them the held-out loss.

    Args:
        rows: Means over seeds.

    Returns:
        One line of two pictures for each test; actions from top to bottom.
    """
    from plotly.subplots import make_subplots

    tests = list(dict.fromkeys(row["test"] for row in rows))
    titles = [title for test in tests for title in (f"{test}: effect size", "held-out loss of a pair (nats)")]
    figure = make_subplots(
        len(tests), 2, subplot_titles=titles, column_widths=[0.65, 0.35], shared_yaxes=True, horizontal_spacing=0.03,
        vertical_spacing=0.2 / len(tests),
    )  # fmt: skip
    kinds = [(trainer, random) for trainer in ("expected", "sampled") for random in (False, True)]
    for line, test in enumerate(tests, start=1):
        for number, (trainer, random) in enumerate(kinds):
            asked = (test, trainer, random)
            some = [row for row in rows if (row["test"], row["trainer"], row["of"] == "random") == asked]
            if some:
                name = f"{trainer} training{', random sentences' if random else ''}"
                _add(figure, some, line, name, number)
        order = list(dict.fromkeys(label(row) for row in rows if row["test"] == test))
        figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], row=line)
        figure.update_xaxes(type="log", row=line, col=2)
    height = 200 + 640 * len(tests)
    return figure.update_layout(
        title="Acting on the bias of word embeddings; the larger a dot, the more sentences; bars: sd over seeds",
        template="plotly_white", height=height, margin={"t": 140}, font={"family": "system-ui, sans-serif"},
        legend={"orientation": "h", "x": 0, "y": 1 + 45 / height, "yanchor": "bottom"},
    )  # fmt: skip


def _add(figure: Figure, rows: list[dict[str, Any]], line: int, name: str, number: int) -> None:
    shape = ("circle", "diamond")[number // 2]
    marker = {
        "symbol": shape + (OPEN if number % 2 else ""), "color": PALETTE[number // 2],
        "size": [5 + 3 * len(str(row["size"])) for row in rows],
    }  # fmt: skip
    texts = [
        f"{label(row)}, {row['size']} sentences<br>before {row['before']:.2f}, predicted {row['predicted']:.2f}, "
        f"after {row['after']:.2f}, p = {row['p after']:.3f}<br>held-out loss {row['held-out loss']:.3f}"
        for row in rows
    ]
    shared = {
        "y": [label(row) for row in rows], "mode": "markers", "marker": marker, "text": texts, "hoverinfo": "text",
        "legendgroup": name, "name": name, "row": line,
    }  # fmt: skip
    spread = {"array": [row["sd after"] for row in rows], "visible": any(row["seeds"] > 1 for row in rows)}
    figure.add_scatter(x=[row["after"] for row in rows], error_x=spread, showlegend=line == 1, **shared, col=1)
    figure.add_scatter(x=[row["held-out loss"] for row in rows], showlegend=False, **shared, col=2)
