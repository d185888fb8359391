"""The arguments of commands: files, URLs and numbers, and messages for system errors."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from qsession.sqlite.files.read_only import path_of
from qsession.urls import place_of, with_driver

Database = Annotated[
    str, typer.Argument(help="The database: a file or its URL.", metavar="DATABASE")
]


LARGEST = 1_000_000.0

_REMEDIES = {
    errno.EACCES: "Run this as a user with that permission, or choose another path.",
    errno.EPERM: "Run this as a user with that permission, or choose another path.",
    errno.EROFS: "Choose a path on another file system.",
    errno.ENOSPC: "Free some space, or choose a path on another disk.",
    errno.EDQUOT: "Free some space, or choose a path on another disk.",
    errno.ENOTDIR: "A part of that path is a file: choose another path.",
    errno.EEXIST: "Choose another path.",
}


def in_words(error: OSError) -> str:
    """A system error in words: the reason, the file, and advice."""
    what = error.strerror or str(error)
    if error.filename is not None:
        what = f"{what}: {str(error.filename)!r}"
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{what}. {remedy}" if remedy else what


def above_zero(value: float) -> float:
    """Check the number of an option. Raises ``typer.BadParameter``."""
    if not 0 < value <= LARGEST:  # nan is neither
        raise typer.BadParameter(f"{value:g} is not a number above 0 and up to {LARGEST:,.0f}")
    return value


def url_of(target: str) -> URL | None:
    """`target` as a URL with a driver; None for a path. Raises ``typer.BadParameter``."""
    if "://" not in target:
        return None
    try:
        return with_driver(target)
    except ArgumentError as error:
        raise typer.BadParameter(f"this is not a database URL: {error}") from None
    except ValueError:
        raise typer.BadParameter("this is not a database URL: check its host and port") from None


def file_of(target: str) -> Path:
    """The existing file that `target` names, links followed. Raises ``typer.BadParameter``."""
    url = url_of(target)
    if url is None:
        file = Path(target)
    elif url.get_backend_name() != "sqlite":
        raise typer.BadParameter(f"{place_of(url)} is not a file: this command needs SQLite")
    elif not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
        raise typer.BadParameter(f"{target!r} is a memory database: it has no file")
    else:
        file = Path(path_of(url.database))
    if not target:
        raise typer.BadParameter("the name of the database is empty")
    kind = kind_of(file)
    if kind is None:
        raise typer.BadParameter(f"there is no file {str(file)!r}")
    if stat.S_ISDIR(kind):
        raise typer.BadParameter(f"{str(file)!r} is a folder: name the file of the database")
    if not stat.S_ISREG(kind):
        raise typer.BadParameter(f"{str(file)!r} is not a regular file, so it is not a database")
    return file.resolve()  # the other files of the database lie beside the file, not the link


def kind_of(file: Path) -> int | None:
    """The mode of a file, links followed; None if it does not exist. Raises ``BadParameter``."""
    try:
        return file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise typer.BadParameter(f"{str(file)!r} cannot be opened: {error.strerror}") from None
