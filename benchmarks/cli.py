"""Run comparisons, print their tables, keep the figures as JSON and the charts as SVG.

python -m benchmarks [--directory DIR] [--out DIR] [--rounds N] [--tasks N] [--scale X] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table as RichTable

from . import comparisons
from .machine import describe
from .setup import Setup
from .summary import Goal, Report, Table

WIDTH = 120
"""Columns where there is no terminal to ask."""


def check(names: list[str]) -> None:
    """Raises ValueError for a name that is none."""
    if unknown := set(names) - set(comparisons.NAMES):
        raise ValueError(
            f"no such comparison: {', '.join(sorted(unknown))}; there are "
            + ", ".join(comparisons.NAMES)
        )


def run_in(
    directory: Path, names: list[str], out: Path | None, rounds: int, tasks: int, scale: float
) -> None:
    """Run the comparisons in a new folder inside `directory`, which is removed afterwards."""
    if out is not None:  # before minutes are spent on what cannot be kept
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=directory) as folder, _ctrl_c(folder):
        run(names, Setup(Path(folder).resolve(), rounds, tasks, scale), out)


@contextmanager
def _ctrl_c(folder: str) -> Iterator[None]:
    """Let Ctrl-C end the process at once, with exit code 130 and without the folder.

    A library that is compared need not end when it is cancelled: aiosqlite's close() then waits for
    a future that nobody resolves.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os.write(sys.stderr.fileno(), b"Stopped.\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(names: list[str], setup: Setup, out: Path | None) -> None:
    """Measure and print; with `out`, keep ``NAME.json`` and ``NAME.svg`` there."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    machine = describe(setup.directory)
    console.print(f"{machine['processors']}; {machine['disk']}", highlight=False, markup=False)
    sizes = f"{setup.tasks} tasks, rounds: {setup.rounds}, scale {setup.scale:g}"
    console.print(f"{sizes}, but where a comparison says otherwise", highlight=False)
    for name in names or comparisons.NAMES:
        comparison = comparisons.load(name)
        setup.say(comparison.TITLE)
        rows = list(comparison.measure(setup))
        if not rows:
            continue
        report = comparison.report(rows)
        show(console, comparison.TITLE, report)
        if out is not None:
            of = {"rounds": setup.rounds, "tasks": setup.tasks, "scale": setup.scale}
            text = json.dumps(
                {"name": name, "machine": machine, "setup": of, "rows": rows}, indent=1
            )
            (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            if not comparisons.plot(report.bars, out, name):
                setup.say("no charts: matplotlib is not installed")


def show(console: Console, title: str, report: Report) -> None:
    console.rule(title)
    for table in report.tables:
        console.print(_rich(table))
    for goal in report.goals:
        console.print(_line(goal), highlight=False)


def _line(goal: Goal) -> str:
    mark = "[green]reached[/]" if goal.reached else "[red]not reached[/]"
    return f"{goal.what}: {goal.measured}, wanted {goal.wanted}: {mark}"


def _rich(table: Table) -> RichTable:
    rich = RichTable(title=table.title, title_justify="left")
    for number, head in enumerate(table.head):
        rich.add_column(head, justify="right" if number else "left", no_wrap=bool(number))
    for row in table.rows:
        rich.add_row(*row)
    return rich


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(comparisons.NAMES))
    parser.add_argument("--directory", type=Path, default=Path(), help="the disk to measure")
    parser.add_argument("--out", type=Path, help="where figures and charts are kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 for a quick look")
    given = parser.parse_args()
    try:
        check(given.names)
    except ValueError as wrong:
        parser.error(str(wrong))
    run_in(given.directory, given.names, given.out, given.rounds, given.tasks, given.scale)
