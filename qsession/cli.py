"""The ``qsession`` command. It needs the ``cli`` extra: ``pip install 'qsession[cli]'``."""

from __future__ import annotations

import errno
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Any

try:
    import typer
    from typer.core import TyperGroup
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"The qsession command needs {missing.name}, which is in the extra 'cli': "
        "pip install 'qsession[cli]'"
    ) from None

from qsession import __version__
from qsession.commands.backup import backup
from qsession.commands.bench import bench
from qsession.commands.copy import copy
from qsession.commands.doctor import doctor
from qsession.commands.top import top
from qsession.commands.who import who

RUNNING = "While applications run"
FILES = "Look after a file"
PROJECT = "Begin, and measure"
NO_MODELS = "qsession:Base"
"""A base that knows only the models whose modules somebody imports."""


class Commands(TyperGroup):
    """Tells what the system refuses, a folder that may not be entered for instance, in a line."""

    def invoke(self, ctx: Any) -> Any:
        """Exit code 1. A pipe that was closed is Click's own business."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            typer.secho(str(error), err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # else the line breaks of the docstrings are kept
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command, panel in (
    (who, RUNNING), (top, RUNNING), (doctor, FILES), (backup, FILES), (copy, FILES),
):  # fmt: skip
    app.command(rich_help_panel=panel)(command)


@app.callback(epilog="For example:  qsession who app.db  |  qsession doctor app.db --json")
def about() -> None:
    """SQLite behind a fair write queue: see who holds it up, look after the file.

    A database is named by its file or by its URL.
    """


@app.command(rich_help_panel=PROJECT)
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command(rich_help_panel=PROJECT)
def init(
    directory: Annotated[Path, typer.Argument(help="The top folder of the project.")] = Path(),
    url: Annotated[
        str, typer.Option(help="The database that alembic.ini names.")
    ] = "sqlite+qsession:///app.db",
    models: Annotated[
        str,
        typer.Option(help="The declarative base, as module:name."),
    ] = NO_MODELS,
) -> None:
    """Write alembic.ini and migrations/, ready for `alembic revision --autogenerate`."""
    module, _, name = models.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise typer.BadParameter(
            f"{models!r} is not of the form module:name", param_hint="--models"
        )
    imports = f"from {module} import {name}"
    if models == NO_MODELS:
        imports += "  # import the modules of your models here, too"
    contents = {
        "alembic.ini": _template("alembic.ini.txt").substitute(url=url.replace("%", "%%")),
        "migrations/env.py": _template("env.py.txt").substitute(
            imports=imports, metadata=f"{name}.metadata"
        ),
        "migrations/script.py.mako": _template("script.py.mako").template,
    }
    for existing in [each for each in contents if (directory / each).exists()]:
        typer.secho(f"{directory / existing} exists already: nothing was written.", err=True)
        raise typer.Exit(1)
    (directory / "migrations" / "versions").mkdir(parents=True, exist_ok=True)
    for each, text in contents.items():
        (directory / each).write_text(text, encoding="utf-8")
        typer.echo(f"wrote {directory / each}")
    next_steps = 'alembic revision --autogenerate -m "first"  &&  alembic upgrade head'
    if models == NO_MODELS:
        next_steps = (
            f"import the modules of your models in {directory / 'migrations' / 'env.py'}.\n"
            "       Without them the first migration is empty. (--models module:name does it.)\n"
            f"       Then: {next_steps}"
        )
    typer.echo(f"\nNext:  {next_steps}")


app.command(rich_help_panel=PROJECT)(bench)


def _template(name: str) -> Template:
    return _IniTemplate((files("qsession") / "templates" / name).read_text(encoding="utf-8"))


class _IniTemplate(Template):
    """A template that leaves ``${...}``, which is Mako's, alone."""

    braceidpattern = "(?!)"


def main() -> None:
    """Run the command; the console script calls this."""
    app()


if __name__ == "__main__":
    main()
