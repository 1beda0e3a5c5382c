"""Output of a command: the terminal, silence, or JSON; one run at a time for each output file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer

from ..errors import ResultFileError
from .report.terminal import console

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def quieten(quiet: bool, as_json: bool) -> None:
    """Leaves out everything but the first sentence, or everything but JSON.

    Args:
        quiet: Whether only the verdict shall be printed.
        as_json: Whether JSON shall be printed.
    """
    console.quiet = quiet or as_json


def say(sentence: str, *, quiet: bool, as_json: bool) -> None:
    """Prints the verdict where nothing else is printed.

    Args:
        sentence: The verdict.
        quiet: As in `quieten`.
        as_json: As in `quieten`.
    """
    if quiet and not as_json:
        typer.echo(sentence)


def print_json(value: Any) -> None:
    """One JSON object on standard output; numbers that are none become null."""
    typer.echo(json.dumps(plain(value), ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """A value of strings, finite numbers, lists and dictionaries.

    Args:
        value: Of these, and of tuples, paths and other numbers.

    Returns:
        NaN and infinities as None.

    Example:
        >>> plain({"p": float("nan"), "ids": (1, "b")})
        {'p': None, 'ids': [1, 'b']}
    """
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (bool, int, str, type(None))):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Makes sure that no other run writes the same output, and that its folder can be written.

    Args:
        out: The page.

    Yields:
        Nothing.

    Raises:
        ResultFileError: If another run has begun with it, or the folder cannot be written.
    """
    lock = out.with_name(f".{out.name}.lock")
    with _locked(lock, out):
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


@contextmanager
def _locked(lock: Path, out: Path) -> Iterator[None]:
    """Holds the lock; a lock file that its holder has just removed is opened anew."""
    while True:
        try:
            file = open(lock, "w")  # noqa: SIM115  # held until the run ends
        except OSError as error:
            raise ResultFileError(
                f"Cannot write into the folder {out.parent.absolute()}: {error.strerror}. Choose another --out."
            ) from error
        with file:
            if fcntl is None:
                yield
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ResultFileError(
                    f"Another run with --out {out} has not ended. Wait for it, or choose another --out."
                ) from error
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                yield
                return
