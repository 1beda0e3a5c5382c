"""The time that `--plan` foretells of a command beside the time that it takes, and how long it takes to say so.

Tables of some clusters of normal rows; FOLDER of public data adds real tables and corpora.

Usage: python -m benchmarks.foretold [--rows 1000 10000 100000 1000000] [--columns 6] [--folder FOLDER]
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.options import options
from benchmarks.common.results import line, save

REAL = (
    "clusters FOLDER/adult/adult.data.gz --no-header --sample 1000",
    "clusters FOLDER/compas/compas-scores-two-years.csv.gz --id id --columns age,priors_count,decile_score "
    "--sample 1000",
    "clusters FOLDER/adult/adult.data.gz --no-header --method kmeans --sample 2000",
    "words FOLDER/movie_plots/tagged_plots_movielens.csv.xz --column plot --split sentences --vocabulary 1000 "
    "--dimensions 10",
    "words FOLDER/wnc_parts/neutral.tsv.gz --column sentence --word american --vocabulary 1000 --dimensions 10",
)
RUN = "import sys; from crossfluence.app import main; main(sys.argv[1:])"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="of public data")
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lines = [f"clusters {table(folder, rows, asked.columns, asked.groups)}" for rows in asked.rows]
        if asked.folder:
            lines += [one.replace("FOLDER", str(asked.folder.resolve())) for one in REAL]
        for command in lines:
            row = compared(command, folder)
            print(line(row), flush=True)
            found.append(row)
    save("foretold", found)


def table(folder: Path, rows: int, columns: int, groups: int) -> Path:
    """A CSV file of rows around some centres."""
    draw, file = np.random.default_rng(rows), folder / f"{rows}-rows-{columns}-columns.csv"
    centres = 3 * draw.normal(size=(groups, columns))
    x = centres[draw.integers(groups, size=rows)] + draw.normal(size=(rows, columns))
    names = ",".join(f"c{column}" for column in range(columns))
    np.savetxt(file, x, "%.4f", ",", header=names, comments="")
    return file


def compared(command: str, folder: Path) -> dict[str, Any]:
    """Seconds to foretell, foretold and taken."""
    shown = " ".join(Path(part).name if "/" in part else part for part in shlex.split(command))
    saying = time.perf_counter()
    told = run(command, folder, "--plan", "--json")
    saying = time.perf_counter() - saying
    began, used = time.perf_counter(), os.times()
    run(command, folder, "--force", "--out", "page.html")
    took, after = time.perf_counter() - began, os.times()
    processor = sum(after[2:4]) - sum(used[2:4])
    said = json.loads(told)["seconds"]
    return {
        "command": shown, "foretold in s": round(saying, 1), "foretold": round(said), "took": round(took),
        "of processors": round(processor), "took per foretold": round(took / said, 2),
    }  # fmt: skip


def run(command: str, folder: Path, *more: str) -> str:
    """The standard output of a command that ended well, dependable or not."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *shlex.split(command), *more], cwd=folder, capture_output=True, text=True
    )
    if done.returncode not in {0, 3}:
        raise ChildProcessError(f"{command} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
