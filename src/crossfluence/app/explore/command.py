"""The command that opens a finished result in a browser."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import ResultFileError, import_optional
from ..options import STOPPED, exit_on_error

if TYPE_CHECKING:
    from .jobs import Jobs
    from .result import Result
    from .server import Application
    from .words_result import WordsResult
    from .words_server import WordsApplication

ADDRESS = "127.0.0.1"  # of this machine, reached from no other


def explore(
    result: Annotated[Path, typer.Argument(help="A folder that ends in .result, or the page beside it.")],
    port: Annotated[int, typer.Option(help="0: a free one.", min=0, max=65535)] = 0,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
) -> None:
    """Open a finished result in your browser: ask about any row, test or word, remove samples, train again."""
    from filelock import FileLock, Timeout

    from .result import read_result

    with exit_on_error():
        uvicorn = import_optional("uvicorn", "The explorer", "explore")
        import_optional("starlette", "The explorer", "explore")
        found = read_result(result)
        lock = FileLock(found.folder / ".explore.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ResultFileError(
                f"{found.folder} is open already. Use that window, or end the other crossfluence explore first."
            ) from None
        except OSError as error:
            raise ResultFileError(f"Cannot write into {found.folder}: {error.strerror}.") from error
        from .guard import Guard
        from .jobs import Jobs

        jobs = Jobs()
        application = _application(found, jobs)
        tried = application.tried
        listening = _listening(port)
    number, token = listening.getsockname()[1], secrets.token_urlsafe(24)
    hosts = {f"{name}:{number}" for name in (ADDRESS, "localhost")}
    server = uvicorn.Server(
        uvicorn.Config(Guard(application.routes(), hosts, token), log_level="warning", access_log=False)
    )
    address = f"http://{ADDRESS}:{number}/{token}/"
    typer.echo(f"Open in a browser of this machine: {address}\nTo end it, press Ctrl-C.")
    if show and _has_screen():
        typer.launch(address)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        jobs.close()
        lock.release()
    kept = f" What was tried is in {found.folder / 'tried.md'}." if tried.entries else ""
    typer.echo(f"\nStopped.{kept}", err=True)
    raise typer.Exit(STOPPED)


def _application(found: Result | WordsResult, jobs: Jobs) -> Application | WordsApplication:
    """The explorer of a clustering, or of words."""
    from .tried import TriedList
    from .words_result import WordsResult

    if isinstance(found, WordsResult):
        from .words_engine import WordsEngine
        from .words_server import WordsApplication

        return WordsApplication(WordsEngine(found), jobs, TriedList(found.folder, found.title, "sentence"))
    from .engine import Engine
    from .server import Application

    return Application(Engine(found), jobs, TriedList(found.folder, found.samples.title, found.samples.noun))


def _listening(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name != "nt":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
        listening.listen()  # who opens the address at once waits, and is not refused
    except OSError as error:
        listening.close()
        raise ResultFileError(f"Port {port} cannot be used: {error.strerror}. Leave out --port.") from error
    return listening


def _has_screen() -> bool:
    return sys.platform in {"darwin", "win32"} or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
