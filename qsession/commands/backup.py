"""``qsession backup``: a checked copy of a database that is in use."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from qsession.commands.target import Database, file_of, in_words
from qsession.errors import SQLITE_CANTOPEN, SQLITE_NOTADB, sqlite_code
from qsession.tools.backup import back_up
from qsession.tools.doctor import in_bytes


def backup(
    source: Database,
    target: Annotated[
        Path,
        typer.Argument(
            help="The file to write. In a folder, a file named by date and time.", metavar="COPY"
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace COPY if it exists.")] = False,
) -> None:
    """Copy a database while it is in use, and check the copy.

    The application can read and write during the copy. The copy contains what was committed when
    it started, and is either complete or absent. A database that it replaces must not be open in
    any program. Exit code 0: copied; 1: not copied; 2: DATABASE cannot be opened.
    """
    file = file_of(source)
    try:
        if target.is_dir():
            now = datetime.now().astimezone()
            target = target / f"{file.stem}-{now:%Y%m%d-%H%M%S}{file.suffix}"
        unchecked = _copy(file, target, force)
    except FileExistsError as error:
        remedy = "" if force or _same(target, file) else ", or replace it with --force"
        typer.secho(f"Nothing was copied: {error}{remedy}.", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.secho(f"Nothing was copied: {in_words(error)}", err=True)
        raise typer.Exit(1) from None
    except sqlite3.Error as error:
        typer.secho(f"Nothing was copied: {error}.", err=True)
        opened = sqlite_code(error) not in (SQLITE_CANTOPEN, SQLITE_NOTADB)
        raise typer.Exit(1 if opened else 2) from None
    typer.echo(f"{target}: {in_bytes(target.stat().st_size)}, checked")
    if unchecked:
        typer.echo(
            f"The content of {', '.join(unchecked)} could not be fully checked: indexes or "
            "constraints use functions or collations that the application registers."
        )


def _copy(file: Path, target: Path, force: bool) -> tuple[str, ...]:
    columns = (
        TextColumn("{task.description}", markup=False),  # it has the name of a file
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(f"copying {file.name}")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return back_up(file, target, replace=force, progress=show)


def _same(target: Path, file: Path) -> bool:
    return target.exists() and target.samefile(file)
