"""One process of a storm: its tasks count one row up and insert, and it prints what it did.

Arguments: the file, how many tasks, how many times each, and the module and name of the
create_async_engine to use. It says "ready", waits for a line, works, and prints JSON: "disorder"
counts tickets that were given to somebody who was not the first in the queue.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from tables import Counter, Event

from qsession.waiting.ticket import TicketState


class Order:
    """Watches the queue of an engine: who asks first, and whether that one is served first."""

    def __init__(self, queue: Any) -> None:
        self.disorder = self.served = 0
        self._line: list[Any] = []
        self._take, self._grant, self._drop = queue._take, queue._grant, queue._drop
        queue._take, queue._grant, queue._drop = self.take, self.grant, self.drop

    def take(self, request: Any) -> None:
        self._line.append(request[0])
        self._take(request)

    def grant(self, ticket: Any) -> bool:
        granted = self._grant(ticket)
        if granted and ticket in self._line:
            self.served += 1
            self.disorder += self._line[0] is not ticket
            self._line.remove(ticket)
        return granted

    def drop(self, ticket: Any, state: Any) -> None:
        self._drop(ticket, state)
        if state is not TicketState.LEFT:  # it goes without; else it may be about to be served
            self._line.remove(ticket)


async def work(engine: Any, worker: str, task: int, times: int, waits: list[float]) -> None:
    for number in range(times):
        start = time.perf_counter()
        async with AsyncSession(engine) as session:
            counter = await session.get_one(Counter, 1)
            counter.value += 1
            await session.commit()
        waits.append(time.perf_counter() - start)
        start = time.perf_counter()
        async with AsyncSession(engine) as session:
            session.add(Event(name=f"{worker} {task} {number}"))
            await session.commit()
        waits.append(time.perf_counter() - start)


async def main() -> None:
    path, worker, tasks, times, maker = sys.argv[1:]
    module, _, name = maker.partition(":")
    create = getattr(importlib.import_module(module), name)
    # No process is taken for stuck, however busy the machine is: nobody is to conflict.
    engine = create(f"sqlite+aiosqlite:///{path}", access="write", stall_after=60)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    order = Order(engine.pool.write_queue.queue)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # a loop that stands still may have the turn
    waits: list[float] = []
    ends: list[float] = []
    begun = time.time()

    async def one(task: int) -> None:
        await work(engine, worker, task, int(times), waits)
        ends.append(time.time() - begun)

    outcomes = await asyncio.gather(*map(one, range(int(tasks))), return_exceptions=True)
    ended = time.time()
    await engine.dispose()
    errors = [repr(each) for each in outcomes if each is not None]
    print(
        json.dumps(
            {
                "errors": len(errors),
                "error": errors[:1],
                "begun": begun,
                "ended": ended,
                "waits": sorted(waits),
                "ends": ends,
                "served": order.served,
                "disorder": order.disorder,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(main())
