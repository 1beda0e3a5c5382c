"""The folder of a finished clustering: model, inverse, data, and how they are shown to a person."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._storage.archive import fitting, read_tensors, write_tensors
from ..._storage.atomic import write_atomically
from ...clustering import Settled
from ...errors import NewerFileError, ResultFileError
from ..options import ENDING, folder_beside
from ..report.page import Samples
from .words_result import FORMAT as WORDS
from .words_result import WordsResult, read_words

FORMAT, SHOWN, ABOUT = "crossfluence.result/1", "shown.safetensors", "result.json"


@dataclass(frozen=True, eq=False)
class Result:
    """A finished clustering.

    Attributes:
        folder: Where it is kept.
        found: The clustering.
        samples: The way its samples are shown.
        query: The row that was asked about.
        verdict: The first sentence of its page, which says how far scores can be relied on.
        level: "sizes", "order" or "unreliable".
        command: The command line that made it.
    """

    folder: Path
    found: Settled
    samples: Samples
    query: int
    verdict: str
    level: str
    command: str


def keep(result: Result) -> None:
    """Writes a result into its folder; the file that says what it is comes last.

    Args:
        result: What to keep.

    Raises:
        ResultFileError: If the folder cannot be written.
    """
    samples = result.samples
    about = result.folder / ABOUT
    about.unlink(missing_ok=True)  # an older result, whose parts are overwritten now
    result.found.save(result.folder)
    shape = None if samples.pictures is None else list(samples.pictures.shape[1:])
    shown = samples.values if samples.pictures is None else samples.pictures.flatten(1)
    assert shown is not None
    write_tensors(result.folder / SHOWN, FORMAT, {"values": shown})
    said: dict[str, Any] = {
        "format": FORMAT, "title": samples.title, "noun": samples.noun, "columns": list(samples.columns),
        "remarks": list(samples.remarks), "picture": shape, "query": result.query, "verdict": result.verdict,
        "level": result.level, "command": result.command,
    }  # fmt: skip
    write_atomically(about, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())


def read_result(path: Path) -> Result | WordsResult:
    """Reads a result.

    Args:
        path: Its folder, or the page beside it.

    Returns:
        The result, ready to be asked.

    Raises:
        ResultFileError: If there is none, or it is damaged.
        NewerFileError: If a newer version of this library wrote it.
    """
    folder = folder_beside(path) if path.suffix.lower() in {".html", ".htm"} else path
    about = folder / ABOUT
    if not about.is_file():
        raise ResultFileError(
            f"{path} is no finished result. Name a folder that ends in {ENDING}, as crossfluence clusters and words "
            f"write it beside a page, or that page."
        )
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        form = str(said["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ResultFileError(f"{about} is damaged. Run the command that made it again, with --force.") from error
    if form == WORDS:
        return read_words(folder, said)
    if form != FORMAT:
        raise NewerFileError(f"{about} has the format {form!r}; this version of crossfluence reads {FORMAT!r}.")
    values = read_tensors(folder / SHOWN, FORMAT).tensors["values"]
    found = Settled.load(folder)
    with fitting(about):
        shape = said["picture"]
        samples = Samples(
            said["title"], said["noun"], None if shape is None else values.reshape(len(values), *shape),
            tuple(said["columns"]), None if shape is not None else values, tuple(said["remarks"]),
        )  # fmt: skip
        query = _fitting_query(said, samples, len(values))
        return Result(folder, found, samples, query, said["verdict"], said["level"], said["command"])


def _fitting_query(said: dict[str, Any], samples: Samples, n: int) -> int:
    """The row that was asked about; an error that `fitting` words if it, or the names of columns, are of others."""
    width = len(samples.columns) if samples.values is None else samples.values.shape[1]
    if not 0 <= (query := int(said["query"])) < n or len(samples.columns) != width:
        raise ValueError(f"row {query} and {len(samples.columns)} columns are named; it holds {n} rows of {width}")
    return query
