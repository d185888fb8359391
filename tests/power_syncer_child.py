"""A process that writes with SQLite's own module and the syncer, for the power cuts.

Run as ``python power_syncer_child.py DATABASE LOG KIND``. It does what ``power_child.py`` does, and
says as well when a COMMIT has returned: "committed POSITION RUN". KIND is ``sound``, or a syncer
that is wrong in one way, which the judge has to find.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time

from power_child import PAGES, TASKS, TIMES, size_of

from qsession.sqlite.durability import syncer as module
from qsession.sqlite.durability.checkpoint import Checkpointer, When
from qsession.sqlite.durability.syncer import Syncer, syncer_of

CONNECTIONS = 3
SYNC = 0.002
"""Seconds that the disk takes."""


class AtOnce(Syncer):
    """Waits for nothing."""

    async def wait(self, number: int, *, now: bool) -> None:
        await asyncio.sleep(0)


class During(Syncer):
    """Answers those as well who have committed while the sync ran."""

    def _sync(self) -> None:
        super()._sync()
        self._synced = next(self._numbers)


KINDS = {"sound": Syncer, "at-once": AtOnce, "during": During}


def slow_fsync(file: int) -> None:
    """What is written while it lasts is not covered by it."""
    os.fsync(file)
    time.sleep(SYNC)


def is_in_wal_mode(raw: sqlite3.Connection) -> bool:
    """False if the other process is changing the mode: SQLite does not wait for that."""
    try:
        raw.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError:
        return False
    return True


def connect(path: str, checkpointer: Checkpointer) -> sqlite3.Connection:
    """A connection as the engine makes them."""
    raw = sqlite3.connect(path, timeout=60, isolation_level=None)
    raw.execute("PRAGMA synchronous=NORMAL")
    while not is_in_wal_mode(raw):
        time.sleep(0.001)
    raw.execute(f"PRAGMA wal_autocheckpoint={PAGES}")
    checkpointer.set_up(raw, path)
    return raw


def write(raw: sqlite3.Connection, run: int) -> int | None:
    """One transaction; its place in the order of commits, or None if it was rolled back."""
    raw.execute("BEGIN IMMEDIATE")
    raw.execute("UPDATE total SET runs = runs + 1")
    (position,) = raw.execute("SELECT runs FROM total").fetchone()
    for part in range(3):
        filler = size_of(run, part)
        raw.execute("INSERT INTO marks VALUES (?, ?, zeroblob(?))", (run, position, filler))
    if run % 7 == 0:
        raw.execute("ROLLBACK")
        return None
    raw.execute("COMMIT")
    return int(position)


async def main(path: str, log: int) -> None:
    checkpointer = Checkpointer()

    async def work(task: int, numbers: range) -> None:
        raw = connections[task % CONNECTIONS]
        for number in numbers:
            run = os.getpid() * 10_000 + task * 1_000 + number
            position = write(raw, run)
            if position is None:
                continue
            commit = syncer.committed()
            os.write(log, f"committed {position} {run}\n".encode())
            if checkpointer.due() is not When.NOT:
                checkpointer.run(raw)
            if task == 0:
                syncer.hurry()
            await syncer.wait(commit, now=run % 5 == 0)
            os.write(log, f"acknowledged {position} {run}\n".encode())

    for first in (0, TIMES):
        connections = [connect(path, checkpointer) for _ in range(CONNECTIONS)]
        raw = connections[0]
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("CREATE TABLE IF NOT EXISTS marks (run INTEGER, position INTEGER, filler BLOB)")
        raw.execute("CREATE TABLE IF NOT EXISTS total (runs INTEGER)")
        raw.execute("INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total)")
        raw.execute("COMMIT")
        found = os.stat(path)
        syncer = syncer_of(path, (found.st_dev, found.st_ino))
        numbers = range(first, first + TIMES)
        await asyncio.gather(*(work(task, numbers) for task in range(TASKS)))
        syncer.close()
        for raw in connections:
            raw.close()


if __name__ == "__main__":
    module.fsync = slow_fsync
    module.Syncer = KINDS[sys.argv[3]]  # type: ignore[misc]
    opened = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    asyncio.run(main(sys.argv[1], opened))
