"""A process that writes, checkpoints and closes, for the power cuts.

Run as ``python power_child.py DATABASE LOG DURABILITY``: tasks commit transactions of three marks
with one number and of one change to a row that all of them change; some roll back. What that row
counts is the place of a transaction in the order of commits. Each line of the log says
"acknowledged POSITION RUN". Checkpoints come early, and the engine is closed and opened again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from sqlalchemy import event, text

from qsession import create_async_engine

TASKS = 10
TIMES = 12
PAGES = 12
"""After so many pages of WAL a checkpoint is due."""
MARK = text("INSERT INTO marks VALUES (:run, :position, zeroblob(:size))")
COUNT = text("UPDATE total SET runs = runs + 1")
POSITION = text("SELECT runs FROM total")


def size_of(run: int, part: int) -> int:
    """How much is written, so that pages are filled unevenly."""
    return 20 + 1_000 * (run % 5 == part)


async def main(path: str, log: int, durability: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", durability=durability)

    @event.listens_for(engine.sync_engine, "connect")
    def checkpoint_early(raw: Any, _: object) -> None:
        raw.execute(f"PRAGMA wal_autocheckpoint={PAGES}")

    async def write(task: int, number: int) -> None:
        run = os.getpid() * 10_000 + task * 1_000 + number
        async with engine.connect() as connection:
            await connection.execute(COUNT)
            position = await connection.scalar(POSITION)
            for part in range(3):
                values = {"run": run, "position": position, "size": size_of(run, part)}
                await connection.execute(MARK, values)
            if run % 7 == 0:
                await connection.rollback()
                return
            await connection.commit()
        os.write(log, f"acknowledged {position} {run}\n".encode())

    async def work(task: int, numbers: range) -> None:
        for number in numbers:
            await write(task, number)

    async with engine.begin() as connection:
        await connection.execute(
            text("CREATE TABLE IF NOT EXISTS marks (run INTEGER, position INTEGER, filler BLOB)")
        )
        await connection.execute(text("CREATE TABLE IF NOT EXISTS total (runs INTEGER)"))
        await connection.execute(
            text("INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total)")
        )
    for first in (0, TIMES):
        numbers = range(first, first + TIMES)
        await asyncio.gather(*(work(task, numbers) for task in range(TASKS)))
        await engine.dispose()


if __name__ == "__main__":
    opened = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    asyncio.run(main(sys.argv[1], opened, sys.argv[3]))
