"""The page of a clustering explained: works offline, requests nothing."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from plotly import graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs
from torch import Tensor

from ..._results.scores import Scores
from ..._types import Id
from .verdicts import of_clusters

if TYPE_CHECKING:
    from ...clustering.explain import Explanation

PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d", "#ff9da6", "#79706e")
RAISES, LOWERS = "#c0392b", "#2c5f8a"


@dataclass(frozen=True, eq=False)
class Samples:
    """How samples are shown to a person.

    Attributes:
        title: What the data is, as a heading.
        noun: What one sample is called.
        pictures: Grey values in [0, 1], shape `(n, height, width)`, if samples are pictures.
        columns: Names of the features shown in lists otherwise.
        values: Shape `(n, f)`, the features as the user knows them.
        remarks: Sentences about the data: which columns are used, and what may be wrong.
    """

    title: str
    noun: str
    pictures: Float[Tensor, "n h w"] | None = field(default=None, repr=False)
    columns: tuple[str, ...] = ()
    values: Float[Tensor, "n f"] | None = field(default=None, repr=False)
    remarks: tuple[str, ...] = ()


def cluster_page(explanation: Explanation, samples: Samples, *, command: str) -> str:
    """One HTML file with everything in it: map, strongest samples, check, settings, versions, seconds.

    Args:
        explanation: The answer and its check.
        samples: How to show a sample.
        command: The command line that made it.

    Returns:
        The text of the page; its script and pictures are inside, it requests nothing from the network.
    """
    rows = {label: row for row, label in enumerate(explanation.ids)}

    def cards(listed: list[tuple[Id, float]]) -> list[dict[str, Any]]:
        return [{"id": label, "score": value, **_shown(samples, rows[label])} for label, value in listed]

    return template("clusters.html").render(
        e=explanation,
        samples=samples,
        command=command,
        verdict=of_clusters(explanation, samples.noun),
        script=get_plotlyjs(),
        query_id=explanation.ids[explanation.query],
        query=_shown(samples, explanation.query),
        own=float(explanation.scores.values[explanation.query, 0]),
        probability=explanation.assignments[explanation.query].tolist(),
        raises=cards(explanation.strongest(20, raises=True)),
        lowers=cards(explanation.strongest(20, raises=False)),
        map=embedded(_map(explanation)),
        scatter=embedded(_scatter(explanation)),
        settings=asdict(explanation.settings),
        report=explanation.scores.report,
        versions=versions(),
    )


def template(name: str) -> Template:
    """A page to be filled; everything put into it is escaped, and nothing may be missing."""
    loader = PackageLoader("crossfluence.app.report")
    return Environment(loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined).get_template(name)


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {
        "crossfluence": version("crossfluence"),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def _shown(samples: Samples, row: int) -> dict[str, Any]:
    if samples.pictures is not None:
        picture = samples.pictures[row]
        return {"cells": [[round(255 * (1 - float(value))) for value in line] for line in picture], "features": []}
    if samples.values is None:
        return {"cells": [], "features": []}
    values = samples.values[row].tolist()
    return {"cells": [], "features": list(zip(samples.columns, values, strict=True))[:8]}


def _plane(explanation: Explanation) -> tuple[Tensor, Tensor]:
    """Embedding and centres on the embedding's first two principal axes."""
    middle = explanation.embedding.mean(0)
    _, _, axes = torch.linalg.svd(explanation.embedding - middle, full_matrices=False)
    plane = axes[: min(2, len(axes))].T
    flat = [(points - middle) @ plane for points in (explanation.embedding, explanation.centres)]
    return tuple(torch.nn.functional.pad(points, (0, 2 - points.shape[1])) for points in flat)  # pyright: ignore[reportReturnType]


def _map(explanation: Explanation) -> go.Figure:
    points, centres = _plane(explanation)
    cluster = explanation.assignments.argmax(1)
    figure = go.Figure(layout=layout("first principal axis of the embedding", "second principal axis"))
    for label in range(explanation.settings.k):
        rows = (cluster == label).nonzero().flatten().tolist()
        colour = PALETTE[label % len(PALETTE)]
        figure.add_scatter(
            **_dots(points, rows, explanation.ids), mode="markers", name=f"cluster {label}",
            marker={"size": 5, "color": colour, "opacity": 0.55},
        )  # fmt: skip
    figure.add_scatter(
        x=centres[:, 0].tolist(), y=centres[:, 1].tolist(), mode="markers", name="centres", hoverinfo="skip",
        marker={"symbol": "x", "size": 9, "color": "#222222"},
    )  # fmt: skip
    rows_of = {label: row for row, label in enumerate(explanation.ids)}
    for raises, colour, name in ((True, RAISES, "pulled it in"), (False, LOWERS, "pushed it out")):
        rows = [rows_of[label] for label, _ in explanation.strongest(20, raises=raises)]
        figure.add_scatter(
            **_dots(points, rows, explanation.ids), mode="markers", name=name,
            marker={"symbol": "circle-open", "size": 11, "color": colour, "line": {"width": 2}},
        )  # fmt: skip
    figure.add_scatter(
        **_dots(points, [explanation.query], explanation.ids), mode="markers", name="the question",
        marker={"symbol": "star", "size": 18, "color": "#000000", "line": {"width": 1, "color": "#ffffff"}},
    )  # fmt: skip
    return figure


def _scatter(explanation: Explanation) -> go.Figure:
    found = explanation.agreement
    ends = [
        float(min(found.predicted.min(), found.actual.min())),
        float(max(found.predicted.max(), found.actual.max())),
    ]
    figure = go.Figure(layout=layout("predicted effect on the margin (nats)", "effect found by retraining (nats)"))
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line={"dash": "dot", "color": "#888888"})
    figure.add_scatter(
        x=found.predicted[:, 0].tolist(), y=found.actual[:, 0].tolist(), mode="markers", name="left out one by one",
        text=[str(label) for label in found.ids], hovertemplate="%{text}: %{x:.4g} predicted, %{y:.4g} found",
        marker={"size": 6, "color": PALETTE[0]},
    )  # fmt: skip
    return figure


def _dots(points: Tensor, rows: Sequence[int], ids: tuple[Id, ...]) -> dict[str, Any]:
    chosen = points[list(rows)]
    text = [str(ids[row]) for row in rows]
    return {"x": chosen[:, 0].tolist(), "y": chosen[:, 1].tolist(), "text": text, "hoverinfo": "text"}


def layout(x: str, y: str) -> go.Layout:
    """The look of all pictures."""
    return go.Layout(
        template="plotly_white", xaxis_title=x, yaxis_title=y, height=520, margin={"l": 60, "r": 10, "t": 20, "b": 50},
        legend={"itemsizing": "constant"}, font={"family": "system-ui, sans-serif"},
    )  # fmt: skip


def embedded(figure: go.Figure) -> str:
    """A picture as part of a page that holds the script."""
    config = {"displaylogo": False, "responsive": True}
    return to_html(figure, full_html=False, include_plotlyjs=False, config=config)


def frame_csv(scores: Scores) -> bytes:
    """The scores as CSV, strongest first."""
    frame = scores.to_frame()
    order = frame.iloc[:, 0].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].to_csv(lineterminator="\n").encode()
