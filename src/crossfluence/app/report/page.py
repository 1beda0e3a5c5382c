"""The page of a clustering explained: works offline, requests nothing."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup
from torch import Tensor

from ..._results.scores import Scores
from ..._types import Id
from .sheet import no_formula
from .svg import Picture
from .verdicts import of_clusters, smallest_that_moves

if TYPE_CHECKING:
    from ...clustering.explain import Explanation

PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d", "#ff9da6", "#79706e")
RAISES, LOWERS = "#c0392b", "#2c5f8a"


@dataclass(frozen=True, eq=False)
class Samples:
    """The way samples are shown to a person.

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


SHOWN = 8  # features of a row
MOST_ROWS, MOST_BYTES = 2_000, 500_000


def cluster_page(explanation: Explanation, samples: Samples, *, command: str, sheet: str = "scores.csv") -> str:
    """One HTML file with everything in it: map, strongest samples, check, settings, versions, seconds.

    Args:
        explanation: The answer and its check.
        samples: How to show a sample.
        command: The command line that made it.
        sheet: Name of the file with all scores.

    Returns:
        The text of the page; its script and pictures are inside, it requests nothing from the network.
    """
    rows = {label: row for row, label in enumerate(explanation.ids)}

    def cards(listed: list[tuple[Id, float]]) -> list[dict[str, Any]]:
        return [
            {"id": label, "score": value, **shown_row(samples, rows[label], explanation.query)}
            for label, value in listed
        ]

    return template("clusters.html").render(
        e=explanation,
        samples=samples,
        command=command,
        verdict=of_clusters(explanation, samples.noun),
        suffices=smallest_that_moves(explanation, samples.noun),
        query_id=explanation.ids[explanation.query],
        query=shown_row(samples, explanation.query),
        own=float(explanation.scores.values[explanation.query, 0]),
        probability=explanation.assignments[explanation.query].tolist(),
        raises=cards(explanation.strongest(20, raises=True)),
        lowers=cards(explanation.strongest(20, raises=False)),
        map=_map(explanation).drawn(),
        scatter=_scatter(explanation).drawn(),
        everything=all_samples(_rows(explanation, samples), sheet=sheet, clusters=True),
        settings=asdict(explanation.settings),
        report=explanation.scores.report,
        versions=versions(),
    )


def template(name: str) -> Template:
    """A page to be filled; everything put into it is escaped, and nothing may be missing."""
    loader = PackageLoader("crossfluence.app.report")
    return Environment(loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined).get_template(name)


def versions() -> dict[str, str]:
    """Versions that a result was made with."""
    return {
        "crossfluence": version("crossfluence"),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def _rows(explanation: Explanation, samples: Samples) -> list[dict[str, Any]]:
    """All samples, strongest first, with their features as text."""
    values, cluster = explanation.scores.values[:, 0], explanation.assignments.argmax(1).tolist()
    order = values.abs().argsort(descending=True, stable=True).tolist()
    return [
        {"id": str(explanation.ids[row]), "score": float(values[row]), "cluster": cluster[row],
         "text": written_row(samples, row)} for row in order
    ]  # fmt: skip


def written_row(samples: Samples, row: int) -> str:
    """All features of a row as one line of text."""
    if samples.values is None:
        return ""
    return ", ".join(
        f"{name} {value:.4g}" for name, value in zip(samples.columns, samples.values[row].tolist(), strict=True)
    )


def shown_row(samples: Samples, row: int, beside: int | None = None) -> dict[str, Any]:
    """A row as a page shows it.

    Args:
        samples: All of them.
        row: Which.
        beside: The row asked about: of many features, those that differ most from it are shown.

    Returns:
        "cells", the grey values of a picture in lines, and "features", names with values.
    """
    if samples.pictures is not None:
        picture = samples.pictures[row]
        return {"cells": [[round(255 * (1 - float(value))) for value in line] for line in picture], "features": []}
    if samples.values is None:
        return {"cells": [], "features": []}
    values = samples.values[row].tolist()
    named = list(zip(samples.columns, values, strict=True))
    if len(named) > SHOWN and beside is not None:  # those that differ most from the question, in their deviations
        away = ((samples.values[row] - samples.values[beside]).abs() / samples.values.std(0)).nan_to_num()
        named = [named[place] for place in away.argsort(descending=True, stable=True)[:SHOWN].sort().values.tolist()]
    return {"cells": [], "features": named[:SHOWN]}


def plane_of(embedding: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> tuple[Tensor, Tensor]:
    """Embedding and centres on the embedding's first two principal axes."""
    middle = embedding.mean(0)
    _, _, axes = torch.linalg.svd(embedding - middle, full_matrices=False)
    plane = axes[: min(2, len(axes))].T
    flat = [(points - middle) @ plane for points in (embedding, centres)]
    return tuple(torch.nn.functional.pad(points, (0, 2 - points.shape[1])) for points in flat)  # pyright: ignore[reportReturnType]


def _map(explanation: Explanation) -> Picture:
    points, centres = plane_of(explanation.embedding, explanation.centres)
    cluster = explanation.assignments.argmax(1)
    picture = Picture(
        "Map of all samples in their clusters", "first principal axis of the embedding", "second principal axis"
    )
    for label in range(explanation.settings.k):
        rows = (cluster == label).nonzero().flatten().tolist()
        colour = PALETTE[label % len(PALETTE)]
        picture.points(*_dots(points, rows, explanation.ids), name=f"cluster {label}", colour=colour, size=2.5)
    at = [(x, y) for x, y in centres.tolist()]
    picture.points(at, [f"centre {label}" for label in range(len(at))], name="centres", colour="#777777", kind="cross")
    rows_of = {label: row for row, label in enumerate(explanation.ids)}
    for raises, colour, name in ((True, RAISES, "pulled it in"), (False, LOWERS, "pushed it out")):
        rows = [rows_of[label] for label, _ in explanation.strongest(20, raises=raises)]
        picture.points(*_dots(points, rows, explanation.ids), name=name, colour=colour, size=6, kind="ring")
    asked = _dots(points, [explanation.query], explanation.ids)
    picture.points(*asked, name="the question", colour="currentColor", size=11, kind="star")
    return picture


def _scatter(explanation: Explanation) -> Picture:
    found = explanation.agreement
    picture = Picture(
        "Predicted beside trained again",
        "predicted effect on the margin (nats)",
        "effect found by training again (nats)",
    )
    picture.diagonal(
        float(min(found.predicted.min(), found.actual.min())), float(max(found.predicted.max(), found.actual.max())),
        "equal",
    )  # fmt: skip
    pairs = [(float(x), float(y)) for x, y in zip(found.predicted[:, 0], found.actual[:, 0], strict=True)]
    names = [f"{label}: {x:.4g} predicted, {y:.4g} found" for label, (x, y) in zip(found.ids, pairs, strict=True)]
    picture.points(pairs, names, name="left out one by one", colour=PALETTE[0])
    return picture


def _dots(points: Tensor, rows: Sequence[int], ids: tuple[Id, ...]) -> tuple[list[tuple[float, float]], list[str]]:
    return [(x, y) for x, y in points[list(rows)].tolist()], [str(ids[row]) for row in rows]


def all_samples(
    rows: Sequence[dict[str, Any]], *, sheet: str, clusters: bool = False, sources: bool = False
) -> dict[str, Any]:
    """The strongest samples with their full texts, as the script of a page searches, sorts and pages through them.

    Args:
        rows: Strongest first: "id", "score", "text" and, where there are some, "cluster" and "source".
        sheet: Name of the file with all scores.
        clusters: Whether rows have a cluster.
        sources: Whether rows have a source.

    Returns:
        What the template `samples.html` needs; at most 2,000 rows and 600,000 characters.
    """
    held, size = list[dict[str, Any]](), 0
    for row in rows[:MOST_ROWS]:
        size += len(json.dumps(row, ensure_ascii=False).encode())
        if size > MOST_BYTES and held:
            break
        held.append(row)
    data = json.dumps(held, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return {
        "data": Markup(data), "shown": len(held), "count": len(rows), "sheet": sheet, "clusters": clusters,
        "sources": sources,
    }  # fmt: skip


def frame_csv(scores: Scores) -> bytes:
    """The scores as CSV, strongest first."""
    frame = scores.to_frame()
    order = frame.iloc[:, 0].abs().sort_values(ascending=False, kind="stable").index
    strongest = frame.loc[order]
    strongest.index = strongest.index.map(no_formula)
    return strongest.to_csv(lineterminator="\n").encode()
