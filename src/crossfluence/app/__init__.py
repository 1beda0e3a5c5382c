"""The command line: bad input gets one sentence and exit code 2, and nothing is written; 3 is no dependable answer."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Annotated

from ..clustering.processes import keep_memory
from ..errors import MissingExtraError, UnreliableWarning

try:
    import typer

    from .clusters import clusters, demo
    from .explore.command import explore
    from .fair import fair
    from .index import index
    from .language import language
    from .options import EXIT_CODES
    from .suspects import suspects
    from .words import words
except ImportError as error:
    raise SystemExit(str(MissingExtraError("The command line", "typer", "app"))) from error

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, context_settings=HELP)
for command in (demo, clusters, explore, words, language, fair, suspects):
    app.command(epilog=EXIT_CODES, context_settings=HELP)(command)
app.add_typer(index, name="index")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"crossfluence {version('crossfluence')}")
        raise typer.Exit


@app.callback()
def describe(
    shown: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Which training samples made a model behave as it does, checked by training again."""
    warnings.filterwarnings("ignore", category=UnreliableWarning)  # every command says it in its first sentence


def main(argv: list[str] | None = None) -> None:
    """The console script."""
    keep_memory()
    app(argv)
