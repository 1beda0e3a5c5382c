"""The command line: bad input gets one sentence and exit code 2, and nothing is written; 3 is no dependable answer."""

from __future__ import annotations

import warnings

from ..errors import MissingExtraError, UnreliableWarning

try:
    import typer

    from .clusters import clusters, demo
    from .fair import fair
    from .options import EXIT_CODES
    from .words import words
except ImportError as error:
    raise SystemExit(str(MissingExtraError("The command line", "typer", "app"))) from error

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (demo, clusters, words, fair):
    app.command(epilog=EXIT_CODES)(command)


@app.callback()
def describe() -> None:
    """Which training samples made a model behave as it does, checked by training again."""
    warnings.filterwarnings("ignore", category=UnreliableWarning)  # every command says it in its first sentence


def main(argv: list[str] | None = None) -> None:
    """The console script."""
    app(argv)
