"""Where the benchmarks keep their figures: one CSV for each, with the versions that made it."""

import csv
from importlib.metadata import version
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "results"
MADE_BY = {"torch": torch.__version__, "crossfluence": version("crossfluence")}


def save(name: str, rows: list[dict]) -> None:
    """Writes rows of the same columns to `results/<name>.csv`."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *MADE_BY])
        writer.writeheader()
        writer.writerows(row | MADE_BY for row in rows)


def kept(name: str) -> list[dict[str, str]]:
    """Rows that an earlier run wrote, without its versions."""
    file = FOLDER / f"{name}.csv"
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [{key: value for key, value in row.items() if key not in MADE_BY} for row in csv.DictReader(lines)]
