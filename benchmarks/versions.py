"""The throughput of SQLAlchemy's peers on each Python, each SQLAlchemy and each event loop.

Besides the environment that runs this, those that ``make test-all`` keeps under ``.venvs/``.
"""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import sqlalchemy

from .child import TOP, command, environment, rows_of, setup_of, text_of
from .peers.peer import WORKS, Peer
from .peers.sqlalchemy_async import OursOrm, OursSession, StockOrm
from .peers.sqlalchemy_sync import SyncOrm
from .setup import Setup
from .summary import Report, Row, Table, ratio, select, times, unique
from .throughput import OPERATIONS, SECONDS, rounds, speed

TITLE = "Versions"
PEERS: tuple[type[Peer], ...] = (OursSession, OursOrm, StockOrm, SyncOrm)
UVLOOP = "uvloop"


def measure(setup: Setup) -> Iterator[Row]:
    """In each round, a child process for each environment and each event loop it has."""
    interpreters = _interpreters()
    for number in range(1, setup.rounds + 1):
        for python in interpreters:
            for loop in ("asyncio", UVLOOP):
                setup.say(f"round {number}: {python}, {loop}", passing=True)
                yield from _child(setup, number, python, loop)


def _interpreters() -> list[str]:
    """This one, and one of each other environment whose versions differ from those before it."""
    found = {_versions(sys.executable): sys.executable}
    for python in sorted(TOP.glob(".venvs/*/bin/python")):
        versions = _versions(str(python))
        if versions:
            found.setdefault(versions, str(python))
    return list(found.values())


def _versions(python: str) -> str:
    """Its versions of Python and SQLAlchemy; empty if it cannot run the peers."""
    program = f"import sys, {__name__} as own; sys.stdout.write(own.versions())"
    arguments = [python, "-c", program]
    try:
        return subprocess.run(
            arguments, check=True, capture_output=True, text=True, env=environment()
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def versions() -> str:
    """The minor versions of this process, for a table."""
    python = ".".join(platform.python_version_tuple()[:2])
    series = ".".join(sqlalchemy.__version__.split(".")[:2])
    return f"Python {python}, SQLAlchemy {series}"


def _child(setup: Setup, number: int, python: str, loop: str) -> Iterator[Row]:
    arguments = [text_of(setup), str(number), loop]
    yield from rows_of([python, *command(__name__, *arguments)[1:]], environment())


def main(text: str, number: str, loop: str) -> None:
    """What the child does: one round, a row as JSON for each run. Nothing without the loop."""
    if loop == UVLOOP:
        if find_spec(UVLOOP) is None:
            return
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    setup = replace(setup_of(text), rounds=1)
    for row in rounds(setup, PEERS, OPERATIONS, SECONDS):
        told = {**row, "round": int(number), "versions": versions(), "loop": loop}
        print(json.dumps(told), flush=True)


def report(rows: list[Row]) -> Report:
    """Throughput to synchronous SQLAlchemy and to the stock engine, of the same environment."""
    tables = []
    for peer in (OursSession.name, OursOrm.name):
        table = Table(f"{peer}: x synchronous SQLAlchemy / x stock", ["", "event loop", *WORKS])
        for what, loop in unique((row["versions"], row["loop"]) for row in rows):
            line = [what, loop]
            for work in WORKS:
                mine = select(rows, versions=what, loop=loop, work=work)
                ours = select(mine, peer=peer)
                beside = (select(mine, peer=each.name) for each in (SyncOrm, StockOrm))
                line.append(" / ".join(times(ratio(ours, each, speed)) for each in beside))
            table.rows.append(line)
        tables.append(table)
    return Report(tables)


if __name__ == "__main__":
    main(*sys.argv[1:])
