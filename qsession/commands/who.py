"""``qsession who``: the processes that write to a database, wait to write, or have it open."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qsession.commands.engines import engines_on, in_words
from qsession.commands.target import Database, file_of
from qsession.sqlite.processes.owners import command_line, lock_holders, users


@dataclass(frozen=True)
class Process:
    """A process that uses a database file."""

    pid: int
    command: str
    locks: bool
    """Whether it holds SQLite's write lock."""
    foreign: list[int]
    """The processes without qsession that hold it."""
    engines: list[dict[str, Any]]
    """The answers of its engines; empty for a program without qsession."""

    def does(self) -> str:
        """What it does, in words: a line for each engine, or whether it holds the lock."""
        said = [in_words(each, self.foreign) for each in self.engines]
        if not self.engines:
            said = ["holds SQLite's write lock" if self.locks else "has the file open"]
        return "\n".join(said)


def who(
    target: Database,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which processes write to a database, wait to write, or have it open.

    Shows processes of the same user only, or all as root. Exit code 2: there is no such file.
    """
    found = processes(str(file_of(target)))
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=2))
        return
    if not found:
        typer.echo("No process that this user can see has it open.")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("pid", justify="right")
    table.add_column("command", overflow="fold", max_width=40)
    table.add_column("does", overflow="fold")
    for each in found:
        table.add_row(str(each.pid), Text(each.command), Text(each.does()))
    Console().print(table)


def processes(path: str) -> list[Process]:
    """The processes: first those that hold the lock, then those of qsession, then the rest."""
    told = dict(engines_on(path))
    locks = lock_holders(path)
    pids = dict.fromkeys([*locks, *told, *users(path)])
    pids.pop(os.getpid(), None)
    foreign = [pid for pid in locks if pid not in told]
    return [
        Process(pid, command_line(pid), pid in locks, foreign, told.get(pid, [])) for pid in pids
    ]
