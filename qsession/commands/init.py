"""``qsession init``: the files that Alembic needs, for a new project."""

from __future__ import annotations

from contextlib import suppress
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from qsession.commands.target import url_of

NO_MODELS = "qsession:Base"
"""A base that has only those models whose modules are imported."""
_IMPORT_MODELS = (
    "\n# Import the modules of your models here. Without them the first migration is empty."
)
_NEXT = 'alembic revision --autogenerate -m "first"  &&  alembic upgrade head'


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
    """Write alembic.ini and migrations/, ready for `alembic revision --autogenerate`.

    Exit code 0: written; 1: a file already exists or could not be written; 2: wrong arguments.
    """
    module, _, name = models.partition(":")
    parts = [*module.split("."), name]
    if not all(part.isidentifier() and not iskeyword(part) for part in parts):
        raise typer.BadParameter(
            f"{models!r} does not have the form module:name", param_hint="--models"
        )
    if url_of(url) is None:
        raise typer.BadParameter(
            f"{url!r} is not a database URL; use for example sqlite+qsession:///app.db",
            param_hint="--url",
        )
    imports = f"from {module} import {name}"
    contents = {
        "alembic.ini": _template("alembic.ini.txt").substitute(url=url.replace("%", "%%")),
        "migrations/env.py": _template("env.py.txt").substitute(
            imports=imports + (_IMPORT_MODELS if models == NO_MODELS else ""),
            metadata=f"{name}.metadata",
        ),
        "migrations/script.py.mako": _template("script.py.mako").template,
    }
    try:
        _write_all({directory / each: text for each, text in contents.items()})
    except FileExistsError as error:
        typer.secho(f"{error.filename} already exists: nothing was written.", err=True)
        raise typer.Exit(1) from None
    for each in contents:
        typer.echo(f"wrote {directory / each}")
    steps = _NEXT
    if models == NO_MODELS:
        steps = (
            f"import the modules of your models in {directory / 'migrations' / 'env.py'}.\n"
            "       Without them the first migration is empty. (Or use --models module:name.)\n"
            f"       Then: {steps}"
        )
    typer.echo(f"\nNext:  {steps}")


def _write_all(contents: dict[Path, str]) -> None:
    """Write new files and the folder `versions`. After an error all of them are removed."""
    folder = next(reversed(contents)).parent / "versions"
    made: list[Path] = []
    try:
        for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
            missing.mkdir()
            made.append(missing)
        for path, text in contents.items():
            with path.open("x", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
        raise


def _template(name: str) -> Template:
    return _IniTemplate((files("qsession") / "templates" / name).read_text(encoding="utf-8"))


class _IniTemplate(Template):
    """A template that does not replace ``${...}``, which belongs to Mako."""

    braceidpattern = "(?!)"
