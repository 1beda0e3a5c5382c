"""Options that commands share, errors in one sentence, outputs that overwrite nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..errors import CrossfluenceError, DataError, ResultFileError
from .advice import as_typed

Out = Annotated[Path, typer.Option(help="The page to write; the scores go beside it as .csv.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an output that exists already.")]
Plan = Annotated[bool, typer.Option("--plan", help="Only say how long it will take, and how much memory.")]
Seed = Annotated[int, typer.Option(help="Of the weights, k-means and random groups.", min=0)]
Check = Annotated[int, typer.Option(help="Samples to leave out one by one.", min=3)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the verdict.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of tables.")]
Header = Annotated[bool, typer.Option(help="Whether the first line of a text file or sheet holds column names.")]
Encoding = Annotated[str | None, typer.Option(help="Of a text file; default: told from its bytes.")]
Separator = Annotated[str | None, typer.Option(help="Of cells: ; or | or tab and the like; default: told.")]
Sample = Annotated[
    int | None,
    typer.Option(help="Use this many rows, drawn at random; default: all of up to 20,000 rows. 0: all.", min=0),
]
WriteCleaned = Annotated[
    Path | None, typer.Option(help="Write the data again without what was found, ready to train on.")
]

EXIT_CODES = "Exit codes: 0 dependable, 3 printed and not dependable, 2 bad input, 130 stopped."
"""The last line of every command's help."""

UNDEPENDABLE, STOPPED = 3, 130
ENDING = ".result"
"""Of the folder beside a page that `explore` opens."""


@contextmanager
def exit_on_error(page: Path | None = None) -> Iterator[None]:
    """One sentence and exit code 2 for what a person can mend; exit code 130 for a run that is stopped.

    Args:
        page: Of the answer: what the run kept beside it is removed with a refusal, as the same command meets it again.

    Yields:
        Nothing.

    Raises:
        Exit: With one of these codes.
    """
    kept = None if page is None or unfinished_beside(page).exists() else unfinished_beside(page)
    try:
        yield
    except KeyboardInterrupt:
        stop("Nothing was written.")
    except (CrossfluenceError, OSError) as error:
        typer.echo(f"crossfluence: {as_typed(str(error))}", err=True)
        if kept is not None and isinstance(error, CrossfluenceError):
            shutil.rmtree(kept, ignore_errors=True)
        raise typer.Exit(2) from error


def stop(sentence: str) -> NoReturn:
    """Ends a run that was stopped from the keyboard.

    Args:
        sentence: What is kept of it.

    Raises:
        Exit: With code 130.
    """
    typer.echo(f"\nStopped. {sentence}", err=True)
    raise typer.Exit(STOPPED)


def stop_unfinished(store: Path, again: str) -> NoReturn:
    """Ends a run that was stopped, and says exactly what is kept and what the same command does again.

    Args:
        store: The folder of what is finished; removed if it is empty.
        again: What is computed again in any case.

    Raises:
        Exit: With code 130.
    """
    from ..words.resume import what_is_kept

    if kept := what_is_kept(store):
        stop(f"{' and '.join(kept)} are kept in {store}; the same command goes on from there, but {again} again.")
    if store.is_dir() and not any(store.iterdir()):
        store.rmdir()
    stop("Nothing is kept, so the same command starts from the beginning.")


def share_of(text: str) -> float:
    """The number that an option's text says: a hundredth for "1%".

    Args:
        text: As it was typed.

    Returns:
        0 if it is no number.
    """
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return 0.0


def amount_of(text: str, option: str) -> float:
    """A share from "1%", a number from "300".

    Args:
        text: As it was typed.
        option: That took it, such as "--remove".

    Returns:
        Below 1 for a share.

    Raises:
        DataError: If it is neither.
    """
    value = share_of(text)
    share = text.endswith("%") and 0 < value < 1
    number = not text.endswith("%") and value >= 1 and value == round(value)
    if not (share or number):
        raise DataError(f"{option} {text} is not a share such as 1% or a number such as 300.")
    return value


def exit_code(dependable: bool) -> None:
    """Ends a command whose answer was printed.

    Args:
        dependable: Whether the answer can be relied on, at least in its order.

    Raises:
        Exit: With code 3 if not.
    """
    if not dependable:
        raise typer.Exit(UNDEPENDABLE)


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
    if path.parent.is_file():
        raise ResultFileError(f"{path.parent} is a file, and no folder. Choose another {option}.")
    if not path.parent.is_dir():
        raise ResultFileError(f"The folder {path.parent} does not exist. Make it first, or choose another {option}.")


def unfinished_beside(page: Path) -> Path:
    """The folder that keeps what a run has finished, until all of it is; where it is, the same command goes on.

    Args:
        page: Ends in .html.

    Returns:
        The same name with .unfinished.
    """
    return page.with_name(f"{page.name}.unfinished")


def refuse_folder(path: Path, force: bool) -> None:
    """Makes sure, before the work, that the folder of a result can be written; see `refuse_outputs`.

    Args:
        path: The folder.
        force: Whether an older result in it may be replaced.

    Raises:
        ResultFileError: If there is something else, or an older result.
    """
    if path.exists() and not path.is_dir():
        raise ResultFileError(f"{path} is a file, and no folder for the result. Choose another --out.")
    if path.is_dir() and not force:
        raise ResultFileError(f"{path} exists already. Choose another --out, or add --force to overwrite it.")


def folder_beside(page: Path) -> Path:
    """The folder that belongs to a page.

    Args:
        page: Ends in .html.

    Returns:
        The same name with .result.
    """
    return page.with_suffix(ENDING)
