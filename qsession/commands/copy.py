"""``qsession copy``: the data of one database in another one, of any kind."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from qsession.commands.target import kind_of, url_of
from qsession.copying import copy as copy_database
from qsession.errors import CopyError
from qsession.sqlite.files.read_only import path_of

if TYPE_CHECKING:  # imported when something is copied, not by each command
    from qsession.transfer import Progress as Step
    from qsession.transfer import Report


def copy(
    source: Annotated[str, typer.Argument(help="The database to read: a file or a URL.")],
    target: Annotated[str, typer.Argument(help="The database to write to: a URL or a file.")],
    metadata: Annotated[
        str, typer.Option(help="Your models, as module:name; else tables as SOURCE has them.")
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Commit each batch; go on where a copy stopped.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete the rows that are in the tables of TARGET.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read TARGET again; compare counts and checksums.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: only look whether everything fits.")
    ] = False,
    zone: Annotated[
        str, typer.Option(help="The zone of timestamps that do not say theirs, as UTC.")
    ] = "",
) -> None:
    """Copy the data of one database to another one: SQLite, PostgreSQL, MySQL or MariaDB.

    SOURCE may be in use; what is committed when the copy begins is copied. Values are converted to
    the types of TARGET; those that do not fit are listed, and nothing is copied. Exit code 0: it is
    done; 1: it was refused or failed, and TARGET is as it was; 2: one of the two could not be
    opened, or the arguments make no sense.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    addresses = _url(source), _url(target)
    console = Console(stderr=True)
    if metadata:
        sys.path.insert(0, str(Path.cwd()))  # where `python -m` would look for the models
    try:
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as bar:
            task = bar.add_task("opening", total=None)
            report = asyncio.run(
                copy_database(
                    *addresses,
                    metadata=metadata or None,
                    resume=resume,
                    replace=replace,
                    verify=verify,
                    check=check,
                    zone=zone or None,
                    progress=_Shown(bar, task),
                )
            )
    except CopyError as error:
        typer.secho(error.message, err=True)
        raise typer.Exit(1) from None
    except (SQLAlchemyError, sqlite3.Error, ImportError, OSError) as error:
        from qsession.transfer.loading import reason_of

        typer.secho(f"Nothing was copied: {reason_of(error)}", err=True)
        raise typer.Exit(2) from None
    _print(report)


class _Shown:
    """Shows each step of a copy on a bar; a new stage begins it anew."""

    def __init__(self, bar: Progress, task: Any) -> None:
        self._bar = bar
        self._task = task
        self._stage: Any = None

    def __call__(self, step: Step) -> None:
        if step.stage is not self._stage:
            self._stage = step.stage
            self._bar.reset(self._task, total=step.total)
        text = f"{step.stage.value} {step.table}"
        self._bar.update(self._task, description=text, completed=step.done, total=step.total)


class _Rate(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} rows/s" if task.speed else "")


def _url(target: str) -> URL:
    url = url_of(target) or URL.create("sqlite+qsession", database=target)
    if url.get_backend_name() == "sqlite" and url.database:
        kind = kind_of(Path(path_of(url.database)))
        if kind is not None and not stat.S_ISREG(kind):  # SQLite would wait for a pipe
            raise typer.BadParameter(f"{url.database!r} is no file: name that of a database")
    return url


def _print(report: Report) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("table", "rows", "checksum"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    for each in report.tables:
        table.add_row(Text(each.name), f"{each.rows:,}", each.checksum)
    Console().print(table)
    for note in report.notes:
        typer.echo(f"note: {note}")
    done = "copied and verified" if report.verified else "copied"
    if not report.written:
        done = "looked at: everything fits, and nothing was written"
    rate = report.rows / max(report.seconds, 1e-9)
    typer.echo(f"{report.rows:,} rows {done}, in {report.seconds:,.1f} s ({rate:,.0f} rows/s)")
