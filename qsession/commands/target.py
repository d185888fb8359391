"""What a command is pointed at: a file, or the URL of one."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from qsession.sqlite.files.read_only import path_of
from qsession.urls import with_driver

Database = Annotated[
    str, typer.Argument(help="The database: a file or its URL.", metavar="DATABASE")
]


def url_of(target: str) -> URL | None:
    """The URL that `target` is, with a driver; None for a path. Raises ``typer.BadParameter``."""
    if "://" not in target:
        return None
    try:
        return with_driver(target)
    except (ArgumentError, ValueError) as error:  # of a port that is no number, a ValueError
        raise typer.BadParameter(f"this is no URL of a database: {error}") from None


def file_of(target: str) -> Path:
    """The existing file that `target` names, links followed. Raises ``typer.BadParameter``."""
    url = url_of(target)
    if url is None:
        file = Path(target)
    elif url.get_backend_name() != "sqlite":
        raise typer.BadParameter(f"{url.render_as_string()} is not a file: this is for SQLite")
    elif not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
        raise typer.BadParameter(f"{target!r} is a database in memory: it has no file")
    else:
        file = Path(path_of(url.database))
    try:
        there = stat.S_ISREG(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError as error:
        raise typer.BadParameter(f"{str(file)!r} cannot be opened: {error.strerror}") from None
    if not there:
        raise typer.BadParameter(f"there is no file {str(file)!r}")
    return file.resolve()  # what lies beside it lies beside the file, not beside a link to it
