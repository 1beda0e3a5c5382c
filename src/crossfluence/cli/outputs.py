"""What every command does with what a person typed: options that many share, errors in one sentence, safe outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .._errors import CrossfluenceError, ResultFileError

Out = Annotated[Path, typer.Option(help="The page to write; the scores go beside it as .csv.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an output that exists already.")]
Plan = Annotated[bool, typer.Option("--plan", help="Only say how long it will take, and how much memory.")]
Seed = Annotated[int, typer.Option(help="Of the weights, k-means and random groups.", min=0)]
Check = Annotated[int, typer.Option(help="Samples to leave out one by one.", min=3)]


@contextmanager
def plainly() -> Iterator[None]:
    """One sentence and exit code 2 for what a person can mend."""
    try:
        yield
    except (CrossfluenceError, OSError) as error:
        typer.echo(f"crossfluence: {error}", err=True)
        raise typer.Exit(2) from error


def refuse_outputs(out: Path, sheet: Path, sources: list[Path], force: bool) -> None:
    """Makes sure, before the work, that a page and the scores beside it can be written.

    Args:
        out: The page.
        sheet: The scores.
        sources: Files that are read, and must not be overwritten.
        force: Whether other files may be.

    Raises:
        ResultFileError: If one of them cannot or must not be written.
    """
    if out.suffix.lower() not in {".html", ".htm"}:
        raise ResultFileError(f"--out {out} must end in .html; the scores go beside it as .csv.")
    for path in (out, sheet):
        refuse_output(path, sources, force)


def refuse_output(path: Path, sources: list[Path], force: bool, option: str = "--out") -> None:
    """Makes sure, before the work, that a file can be written; see `refuse_outputs`.

    Args:
        path: The file.
        sources: Files that are read, and must not be overwritten.
        force: Whether other files may be.
        option: What names it on the command line.

    Raises:
        ResultFileError: If it cannot or must not be written.
    """
    if path.is_dir():
        raise ResultFileError(f"{path} is a folder. Choose another {option}.")
    if path.exists() and any(path.samefile(source) for source in sources):
        raise ResultFileError(f"{path} is what is read. Choose another {option}.")
    if path.exists() and not force:
        raise ResultFileError(f"{path} exists already. Choose another {option}, or add --force to overwrite it.")
    if not path.parent.is_dir():
        raise ResultFileError(f"The folder {path.parent} does not exist. Make it first, or choose another {option}.")
