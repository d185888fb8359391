"""The ``qsession`` command. It needs the ``cli`` extra: ``pip install 'qsession[cli]'``."""

from __future__ import annotations

import errno
import io
import sys
from typing import Annotated, Any

try:
    import typer
    from typer.core import TyperGroup
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"The qsession command needs {missing.name}. Install it with: pip install 'qsession[cli]'"
    ) from None

from qsession import __version__
from qsession.commands.backup import backup
from qsession.commands.bench import bench
from qsession.commands.copy import copy
from qsession.commands.doctor import doctor
from qsession.commands.init import init
from qsession.commands.target import in_words
from qsession.commands.top import top
from qsession.commands.who import who

RUNNING = "While applications run"
FILES = "Look after a file"
PROJECT = "Start a project, and measure"


class Commands(TyperGroup):
    """Reports an error of the system, such as a folder without permission, in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Exit with code 1, or 130 after Ctrl-C. Click itself handles a closed pipe."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.secho("Stopped.", err=True)
            raise typer.Exit(130) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            typer.secho(in_words(error), err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # without it the line breaks of docstrings are kept
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command, panel in (
    (who, RUNNING), (top, RUNNING), (doctor, FILES), (backup, FILES), (copy, FILES),
):  # fmt: skip
    app.command(rich_help_panel=panel)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(epilog="For example:  qsession who app.db  |  qsession doctor app.db --json")
def about(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Inspect and maintain SQLite databases used with qsession.

    Name a database by its file or its URL. Exit code 0: success; 1: refused or failed, or a
    problem was found; 2: wrong arguments, or the database cannot be opened; 130: stopped by
    Ctrl-C.
    """


@app.command(rich_help_panel=PROJECT)
def version() -> None:
    """Print the version."""
    _print_version(True)


app.command(rich_help_panel=PROJECT)(init)
app.command(rich_help_panel=PROJECT)(bench)


def main() -> None:
    """Run the command; the console script calls this."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may have what its encoding lacks
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
