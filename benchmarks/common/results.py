"""CSV files of measured figures: one for each benchmark, with the versions that made it."""

import csv
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parents[1] / "results"
MADE_BY = {"torch": torch.__version__, "crossfluence": version("crossfluence")}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of the same columns."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def save(name: str, rows: Sequence[dict[str, Any]], made_by: Mapping[str, str] = MADE_BY) -> None:
    """Writes rows of the same columns, each with the versions that made it, to `results/<name>.csv`."""
    FOLDER.mkdir(exist_ok=True)
    write(FOLDER / f"{name}.csv", [{**row, **made_by} for row in rows])


def kept(name: str) -> list[dict[str, str]]:
    """Rows that an earlier run wrote, without its versions."""
    file = FOLDER / f"{name}.csv"
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [{key: value for key, value in row.items() if key not in MADE_BY} for row in csv.DictReader(lines)]


def line(row: Mapping[str, Any]) -> str:
    """A row as one line of text."""
    return "  ".join(f"{key} {value}" for key, value in row.items())
