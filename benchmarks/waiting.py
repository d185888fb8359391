"""What a session that waits weighs: in our queue, in the stock pool's queue, and as an object."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any

import psutil
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from qsession import create_async_engine as queued_engine

from .child import command, environment
from .peers.model import Item
from .peers.peer import NAME, prepare
from .setup import Setup
from .summary import Report, Row, Table, at_most

TITLE = "Memory of sessions that wait"
LONG = 3_600
SIZES = (1_000, 10_000, 100_000)
MIDDLE, MOST = SIZES[1:]
BARE, OBJECT, STOCK, OURS = KINDS = (
    "a task that waits, without a session",
    "AsyncSession that did nothing yet",
    "stock: waits for a connection of the pool",
    "qsession: waits in the queue",
)
CODE = {OBJECT: "sqlalchemy", STOCK: "sqlalchemy", OURS: "qsession"}
"""Whose objects are counted when the memory is told apart by the code that asked for it."""


def measure(setup: Setup) -> Iterator[Row]:
    """A fresh process for each kind and number, which tells by how much it grew."""
    for kind in KINDS:
        for size in SIZES:
            if kind in (OBJECT, OURS) or size < MOST:
                yield {"kind": kind, "size": size, "code": "", **_child(setup, kind, size, "")}
    for kind, code in CODE.items():
        grown = _child(setup, kind, SIZES[0], code)  # to trace memory takes long
        yield {"kind": kind, "size": SIZES[0], "code": code, **grown}


def _child(setup: Setup, kind: str, size: int, code: str) -> dict[str, float]:
    number = setup.scaled(size)
    setup.say(f"{number} times: {kind}", passing=True)
    file = setup.directory / "waiting.db"
    prepare(file, wal=kind == OURS)
    done = subprocess.run(
        command(__name__, kind, str(number), str(file), code),
        check=True,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    return {"bytes": json.loads(done.stdout)}


def report(rows: list[Row]) -> Report:
    weight = {(row["kind"], row["size"], row["code"]): row["bytes"] / 1024 for row in rows}
    part = {row["kind"]: row["bytes"] / 1024 for row in rows if row["code"]}
    whole = Table("KiB for each", ["", *(f"{size:,}" for size in SIZES)])
    for kind in KINDS:
        found = [weight.get((kind, size, "")) for size in SIZES]
        whole.rows.append([kind, *("" if each is None else f"{each:.1f}" for each in found)])
    parts = Table("Of that, objects made by the code of one package", ["", "package", "KiB"])
    for kind, code in CODE.items():
        parts.rows.append([kind, code, f"{part[kind]:.1f}"])
    growth = weight[OURS, MOST, ""] / weight[OURS, MIDDLE, ""]
    ours, session = part[OURS], part[STOCK]
    goals = [
        at_most("memory of a waiting session, 100,000 to 10,000", 1.1, growth),
        at_most("our objects of a waiting session, to SQLAlchemy's of one", 1, ours / session),
    ]
    return Report([whole, parts], goals=goals)


def memory(code: str) -> float:
    """The bytes of this process, or those that a package's own lines have asked for."""
    if not code:
        return float(psutil.Process().memory_info().rss)
    chosen = tracemalloc.Filter(True, f"*/{code}/*")
    taken = tracemalloc.take_snapshot().filter_traces([chosen])
    return float(sum(each.size for each in taken.traces))


async def main(kind: str, number: int, file: str, code: str) -> None:
    """Let `number` sessions wait, print how many bytes each takes, and leave at once."""
    url = f"sqlite+aiosqlite:///{file}"
    engine: Any
    if kind in (STOCK, OBJECT):
        engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=LONG)
    else:
        engine = queued_engine(url, queue_timeout=LONG, warn_after=LONG)
    never = asyncio.Event()
    arrived = 0

    async def wait() -> None:
        nonlocal arrived
        arrived += 1
        await never.wait()

    async def wait_with_session() -> None:
        nonlocal arrived
        async with AsyncSession(engine) as session:
            arrived += 1
            if kind == OBJECT:
                await never.wait()
            await session.execute(insert(Item).values(n=0, name=NAME))

    async with AsyncSession(engine) as holder:
        await holder.execute(insert(Item).values(n=0, name=NAME))
        if code:
            tracemalloc.start()
        before = memory(code)
        tasks = [
            asyncio.ensure_future(wait() if kind == BARE else wait_with_session())
            for _ in range(number)
        ]
        for _ in range(20):
            await asyncio.sleep(0)
        while kind == OURS and engine.stats().waiting < number:
            for _ in range(100):
                await asyncio.sleep(0)  # they come to the queue one by one
        assert arrived == number
        assert not any(task.done() for task in tasks), next(t for t in tasks if t.done())
        print((memory(code) - before) / number, flush=True)
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
