"""One process of a storm: its tasks count one row up and insert, and it prints what it did.

Arguments: the file, how many tasks, how many times each, and the module and name of the
create_async_engine to use. It says "ready", waits for a line, works, and prints JSON.
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
    engine = create(f"sqlite+aiosqlite:///{path}")
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    print("ready", flush=True)
    sys.stdin.readline()
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
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(main())
