"""``qsession top``: a live view of every qsession process on a database."""

from __future__ import annotations

import itertools
import os
import time
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qsession.commands.engines import engines_on, in_words
from qsession.commands.target import Database, above_zero, file_of
from qsession.sqlite.processes.owners import command_line, lock_holders
from qsession.statistics import Histogram

_Seen = dict[tuple[int, int], dict[str, Any]]


def top(
    target: Database,
    interval: Annotated[
        float, typer.Option(min=0.05, callback=above_zero, help="Seconds between updates.")
    ] = 1.0,
    count: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many updates, not by Ctrl-C.")
    ] = None,
) -> None:
    """Watch the queues of all qsession processes on a database.

    Commits, conflicts and waits count from the previous update. Exit code 0: also after Ctrl-C;
    2: there is no such file.
    """
    path = str(file_of(target))
    console = Console()
    before: _Seen = look(path)
    looked = time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        try:
            for number in itertools.count(1):
                time.sleep(interval)
                now, at = look(path), time.monotonic()
                live.update(view(path, before, now, at - looked), refresh=True)
                before, looked = now, at
                if number == count:
                    break
        except KeyboardInterrupt:
            pass
    if not console.is_terminal:  # rich ends its last line in a terminal only
        console.line()


def look(path: str) -> _Seen:
    """The answer of each engine, by process and position."""
    return {
        (pid, number): engine
        for pid, engines in engines_on(path)
        for number, engine in enumerate(engines)
    }


def view(path: str, before: _Seen, now: _Seen, seconds: float) -> Group:
    """A table for the time between two updates."""
    table = Table(box=None, pad_edge=False, expand=True)
    pids = dict.fromkeys(pid for pid, _ in now)
    foreign = [pid for pid in lock_holders(path) if pid not in pids and pid != os.getpid()]
    for name in ("pid", "waiting", "commits/s", "syncs/s", "conflicts", "p99 wait"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("does", no_wrap=True, overflow="ellipsis", ratio=1)
    total = 0.0
    for key, engine in now.items():
        old = before.get(key, {})
        rate = _grown(old, engine, "commits") / seconds
        total += rate
        waits = _histogram(engine)
        waits = waits.since(_histogram(old)) if old else waits
        table.add_row(
            str(key[0]),
            f"{engine['waiting']:,}",
            f"{rate:,.0f}",
            f"{_grown(old, engine, 'syncs') / seconds:,.0f}",
            f"{_grown(old, engine, 'conflicts'):,}",
            f"{waits.quantile(0.99) * 1000:,.1f} ms" if waits.count else "",
            Text(in_words(engine, foreign)),
        )
    commands = [f"{pid}: {command_line(pid)}" for pid in pids]
    commands += [f"{pid}: holds SQLite's write lock: {command_line(pid)}" for pid in foreign]
    head = f"{path}   {total:,.0f} commits/s   {time.strftime('%H:%M:%S')}"
    if not now:
        head += "\nNo qsession process of this user has it open."
    lines = (Text(each, style="dim", no_wrap=True, overflow="ellipsis") for each in commands)
    return Group(Text(head), table, *lines)


def _histogram(engine: dict[str, Any]) -> Histogram:
    told = engine["waits"]
    return Histogram(tuple(told["bounds"]), tuple(told["counts"]), told["total"], told["maximum"])


def _grown(before: dict[str, Any], now: dict[str, Any], counter: str) -> int:
    """The growth of a counter; at least 0, since the process may be a new one."""
    return max(0, int(now[counter]) - int(before.get(counter, now[counter])))
