"""Where the benchmarks keep their figures: one CSV for each, with the versions that made it."""

import csv
from importlib.metadata import version
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "results"


def save(name: str, rows: list[dict]) -> None:
    """Writes rows of the same columns to `results/<name>.csv`."""
    FOLDER.mkdir(exist_ok=True)
    made_by = {"torch": torch.__version__, "crossfluence": version("crossfluence")}
    with (FOLDER / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *made_by])
        writer.writeheader()
        writer.writerows(row | made_by for row in rows)
