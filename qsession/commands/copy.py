"""``qsession copy``: copies the data of one database to another of any kind."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

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

from qsession.commands.target import above_zero, kind_of, url_of
from qsession.copying import copy as copy_database
from qsession.errors import CopyError
from qsession.sqlite.files.read_only import path_of

if TYPE_CHECKING:  # imported when something is copied, not by each command
    from qsession.transfer import Progress as Step
    from qsession.transfer import Report
    from qsession.transfer.events import Move

T = TypeVar("T")


def copy(
    source: Annotated[str, typer.Argument(help="The database to read: a file or a URL.")],
    target: Annotated[
        str, typer.Argument(help="The database to write to: a URL or a file.", show_default=False)
    ] = "",
    metadata: Annotated[
        str, typer.Option(help="Your models, as module:name. Default: the tables of SOURCE.")
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Commit each batch; continue where a copy stopped.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="First delete the rows in the tables of TARGET.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read TARGET again; compare counts and checksums.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; only check whether everything fits.")
    ] = False,
    zone: Annotated[
        str, typer.Option(help="The time zone of timestamps without one, for example UTC.")
    ] = "",
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Then copy what changes in SOURCE, a file, until Ctrl-C."),
    ] = False,
    switch: Annotated[
        bool,
        typer.Option(
            "--switch",
            help="With --follow: when TARGET is close behind, hold the writers, copy the last "
            "changes, run --switch-command, and have SOURCE refuse writes.",
        ),
    ] = False,
    switch_timeout: Annotated[
        float,
        typer.Option(callback=above_zero, help="Seconds that the last changes may take."),
    ] = 5,
    switch_command: Annotated[
        str,
        typer.Option(
            help="A command for the shell that gives the application the URL of TARGET, which is "
            "in QSESSION_URL. Writers wait for it. If it fails, they go on in SOURCE."
        ),
    ] = "",
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Only remove from SOURCE what --follow has put there, and allow writes again.",
        ),
    ] = False,
) -> None:
    """Copy the data of one database to another: SQLite, PostgreSQL, MySQL or MariaDB.

    SOURCE may be in use; the copy contains what was committed when it started. Values are converted
    to the types of TARGET. If some do not fit, they are listed and nothing is copied. Exit code 0:
    copied; 1: refused or failed, and TARGET is unchanged; 2: a database could not be opened, or
    wrong arguments; 130: stopped by Ctrl-C, with a message about what remains in TARGET.

    With --follow, TARGET also gets what changes in SOURCE meanwhile, whoever writes it. After a
    failure or Ctrl-C, SOURCE is as it was, and TARGET says that it is not complete.
    """
    if clean:
        _clean(source)
        return
    if not target:
        raise typer.BadParameter("Missing argument 'TARGET'.")
    if switch_command and not switch:
        raise typer.BadParameter("--switch-command needs --switch")
    if switch and not follow:
        raise typer.BadParameter("--switch needs --follow")
    columns = (
        TextColumn("{task.description}", markup=False),  # it has the name of a table
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    urls, console = (_url(source), _url(target)), Console(stderr=True)
    if metadata:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as bar:
            task = bar.add_task("opening", total=None)
            shown = _Shown(bar, task)
            if follow:
                from qsession.transfer.following.run import follow as follow_database
                from qsession.transfer.options import Options

                options = Options(
                    metadata or None, resume, replace, verify, check, zone or None, shown
                )
                command = _Command(switch_command, urls[1]) if switch_command else None
                following = follow_database(
                    *urls, options, switch=switch, pause=switch_timeout, switched=command
                )
                _print_move(asyncio.run(_until_interrupted(following, console)))
                return
            copying = copy_database(
                *urls,
                metadata=metadata or None,
                resume=resume,
                replace=replace,
                verify=verify,
                check=check,
                zone=zone or None,
                progress=shown,
            )
            report = asyncio.run(_until_interrupted(copying, console))
    except CopyError as error:
        typer.secho(error.message, err=True)
        raise typer.Exit(1) from None
    except (SQLAlchemyError, sqlite3.Error, ImportError, OSError) as error:
        typer.secho(f"Nothing was copied: {_told(error)}", err=True)
        raise typer.Exit(2) from None
    except _Interrupted as interrupted:
        typer.secho(f"Interrupted. {interrupted}", err=True)
        raise typer.Exit(128 + interrupted.number) from None  # as in a shell
    _print(report)


def _clean(source: str) -> None:
    from qsession.transfer.following.run import clean as clean_database

    try:
        found = asyncio.run(clean_database(_url(source)))
    except CopyError as error:
        typer.secho(error.message, err=True)
        raise typer.Exit(1) from None
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        typer.secho(f"Nothing was cleaned: {_told(error)}", err=True)
        raise typer.Exit(2) from None
    typer.echo("cleaned" if found else "nothing was there")


def _told(error: Exception) -> str:
    """Which database could not be opened, and why."""
    from qsession.transfer.notes import notes_of
    from qsession.transfer.wording import reason_of

    return ": ".join((*notes_of(error), reason_of(error)))


class _Command:
    """What gives the application its new URL, which is in its environment."""

    def __init__(self, command: str, target: URL) -> None:
        self._command = command
        self._target = target.render_as_string(hide_password=False)

    async def __call__(self) -> None:
        """Run it to its end. Raises `CopyError` if that is not 0."""
        typer.secho("Running the command. Writers wait.", err=True)
        process = await asyncio.create_subprocess_shell(
            self._command, env={**os.environ, "QSESSION_URL": self._target}
        )
        ended = await process.wait()
        if ended:
            told = f"ended with {ended}" if ended > 0 else f"was killed by signal {-ended}"
            raise CopyError(f"the command after the switch {told}")


class _Interrupted(Exception):
    """Ctrl-C or SIGTERM. The text says what remains in the target."""

    def __init__(self, left: str, number: int) -> None:
        super().__init__(left)
        self.number = number


async def _until_interrupted(copying: Coroutine[Any, Any, T], console: Console) -> T:
    """Run a copy. The first Ctrl-C lets it clean up; the second one ends the process at once.

    From Python 3.11 on ``asyncio.run`` would also cancel it, but lose the message of the copy.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    came: list[int] = []

    def interrupt(number: int) -> None:
        came.append(number)
        if len(came) == 1 and task is not None:
            typer.secho("Cleaning up. Ctrl-C again stops at once.", err=True)
            task.cancel()
            return
        console.show_cursor()
        typer.secho(f"Stopped during cleanup. {_IN_THE_MIDDLE}", err=True)
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError):  # Windows, or not the main thread
            loop.add_signal_handler(number, interrupt, number)
    try:
        return await copying
    except asyncio.CancelledError as cancelled:
        from qsession.transfer.notes import notes_of

        left = "; ".join(notes_of(cancelled)) or "Nothing was copied"
        raise _Interrupted(left, came[0] if came else signal.SIGINT) from None


_IN_THE_MIDDLE = (
    "A server rolls back what was not committed. Check for tables that this copy created on MySQL "
    "or MariaDB, and for a new SQLite file. With --switch, run the same command again: it says "
    "whether the source is closed"
)


_SAID = {
    "following": "Following what changes in the source.",
    "comparing": "Comparing all rows. Nobody has to wait.",
    "switching": "Switching. Writers wait.",
    "going back": "The command failed. Comparing all rows. Writers wait.",
}


class _Shown:
    """Shows each step of a copy in a progress bar, which restarts at each stage."""

    def __init__(self, bar: Progress, task: Any) -> None:
        self._bar = bar
        self._task = task
        self._stage: Any = None
        self._unsaid = dict(_SAID)

    def __call__(self, step: Step) -> None:
        if step.stage is not self._stage:
            self._stage = step.stage
            if said := self._unsaid.pop(step.stage.value, ""):
                typer.secho(said, err=True)
            self._bar.reset(self._task, total=step.total)
        text = f"{step.stage.value} {step.table}"
        self._bar.update(self._task, description=text, completed=step.done, total=step.total)


class _Rate(ProgressColumn):
    """Rows per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} rows/s" if task.speed else "")


def _url(target: str) -> URL:
    url = url_of(target) or URL.create("sqlite+qsession", database=target)
    if url.get_backend_name() == "sqlite" and url.database:
        kind = kind_of(Path(path_of(url.database)))
        if kind is not None and not stat.S_ISREG(kind):  # SQLite would wait for a pipe
            raise typer.BadParameter(
                f"{url.database!r} is not a regular file: name the file of a database"
            )
    return url


def _print_move(move: Move) -> None:
    for note in move.notes:
        typer.echo(f"note: {note}")
    done = "The switch of an earlier run was completed"
    if move.rows is not None:
        done = f"{move.rows:,} rows compared, {move.changes:,} changes followed"
    typer.echo(
        f"{done}; writers waited for {move.waited:.2f} s. The source refuses writes from now on. "
        f"In all {move.seconds:,.1f} s"
    )


def _print(report: Report) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("table")
    table.add_column("rows", justify="right")
    if any(each.checksum for each in report.tables):
        table.add_column("checksum")
    for each in report.tables:
        row = Text(each.name), f"{each.rows:,}", each.checksum
        table.add_row(*row[: len(table.columns)])
    Console().print(table)
    for note in report.notes:
        typer.echo(f"note: {note}")
    done = "copied and verified" if report.verified else "copied"
    if not report.written:
        done = "checked: everything fits, and nothing was written"
    rate = report.rows / max(report.seconds, 1e-9)
    rows = "1 row" if report.rows == 1 else f"{report.rows:,} rows"
    typer.echo(f"{rows} {done}, in {report.seconds:,.1f} s ({rate:,.0f} rows/s)")
