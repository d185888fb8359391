"""Transactions that wait for the ticket, in an order that the test knows."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cancelling import PATIENCE, Bench, eventually, rows
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

ADD = text("INSERT INTO marks (run) VALUES (:run), (:run), (:run)")
COUNT = text("SELECT count(*) FROM marks")
RAISE = text("UPDATE items SET value = value + 1")


async def write(bench: Bench, run: int) -> None:
    """A transaction that adds three marks of one number, and is acknowledged."""
    async with bench.engine.begin() as connection:
        await connection.execute(ADD, {"run": run})
    bench.acknowledged.add(run)


class Waiters:
    """Tasks that wait for the ticket in the order they were added, behind its holder."""

    def __init__(self, bench: Bench, holder: AsyncConnection, run: int) -> None:
        self.bench = bench
        self.holder = holder
        self.run = run
        self.tasks: list[asyncio.Task[Any]] = []

    async def add(self, *writers: Coroutine[Any, Any, Any]) -> None:
        """Start them one by one, each when the one before it waits."""
        queue = self.bench.engine.pool.write_queue.queue
        for writer in writers:
            wanted = queue.waiting + 1
            self.tasks.append(asyncio.create_task(writer))
            await eventually(lambda wanted=wanted: queue.waiting == wanted)  # type: ignore[misc]

    async def go(self) -> list[Any]:
        """The holder commits, so the others go on; what became of each of them."""
        await self.holder.commit()
        self.bench.acknowledged.add(self.run)
        return await self.outcomes()

    async def outcomes(self) -> list[Any]:
        """What became of each of those who waited: its result, or its error."""
        every = asyncio.gather(*self.tasks, return_exceptions=True)
        return await asyncio.wait_for(every, PATIENCE)


async def waiters(bench: Bench, *writers: Coroutine[Any, Any, Any], run: int = 0) -> Waiters:
    """A transaction has written marks of ``run`` and holds the ticket; the others wait for it."""
    holder = await bench.engine.connect()
    await holder.execute(ADD, {"run": run})
    made = Waiters(bench, holder, run)
    await made.add(*writers)
    return made


async def together(bench: Bench, *writers: Coroutine[Any, Any, Any], run: int = 0) -> list[Any]:
    """All of them, one behind the other; what became of them."""
    made = await waiters(bench, *writers, run=run)
    try:
        return await made.go()
    finally:
        await made.holder.close()


def marks(bench: Bench) -> list[int]:
    """The transactions that another connection sees, in the order of their rows."""
    found = [run for (run,) in rows(bench.path, "SELECT run FROM marks ORDER BY id")]
    return list(dict.fromkeys(found))
