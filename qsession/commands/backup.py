"""``qsession backup``: a checked copy of a database that is in use."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from qsession.commands.target import Database, file_of
from qsession.tools.backup import back_up


def backup(
    source: Database,
    target: Annotated[
        Path,
        typer.Argument(
            help="The copy; for a folder, a file in it named by date and time.", metavar="COPY"
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace COPY if it exists.")] = False,
) -> None:
    """Copy a database while it is in use, and check the copy.

    The application goes on reading and writing. The copy holds what was committed when it began.
    It is there whole or not at all. A database that it replaces must not be open anywhere. Exit
    code 1: it was not made.
    """
    file = file_of(source)
    if target.is_dir():
        now = datetime.now().astimezone()
        target = target / f"{file.stem}-{now:%Y%m%d-%H%M%S}{file.suffix}"
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    try:
        with Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
        ) as progress:
            copying = progress.add_task(f"copying {file.name}")
            unchecked = back_up(
                file,
                target,
                replace=force,
                progress=lambda done, total: progress.update(copying, completed=done, total=total),
            )
    except FileExistsError as error:
        same = target.exists() and target.samefile(file)
        remedy = "" if force or same else ", or replace it with --force"
        typer.secho(f"Nothing was copied: {error}{remedy}.", err=True)
        raise typer.Exit(1) from None
    except (OSError, sqlite3.Error) as error:
        typer.secho(f"Nothing was copied: {error}.", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{target}: {target.stat().st_size / 1e6:,.1f} MB, checked")
    if unchecked:
        typer.echo(
            f"Not all of {', '.join(unchecked)} could be checked: indexes or constraints there use "
            "functions or collations that the application registers."
        )
