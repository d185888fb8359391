"""Tasks that wait for one another, so that one COMMIT makes their transactions durable."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from cancelling import PATIENCE, Bench, assert_free, eventually, rows
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.sqlite import commits, group, pace, running

ADD = text("INSERT INTO marks (run) VALUES (:run), (:run), (:run)")
COUNT = text("SELECT count(*) FROM marks")
ITEMS = text("SELECT sum(value) FROM items")
RAISE = text("UPDATE items SET value = value + 1")
AGES = 3600.0


def patient(monkeypatch: Any) -> None:
    """Groups are closed by nothing but their size and the queue, however slow the machine is."""
    for module, name in ((commits, "SLOW"), (group, "MAX_AGE")):
        monkeypatch.setattr(module, name, AGES)
    steady(monkeypatch)


def steady(monkeypatch: Any) -> None:
    """A text that was once known for a short one stays so, however slow the machine is."""
    limits = ((pace, "SHORT"), (pace, "BUDGET"), (running, "BUDGET"), (running, "LONG_WRITE"))
    for module, name in limits:
        monkeypatch.setattr(module, name, AGES)


async def ready(path: Any, **kw: Any) -> Bench:
    """A bench that knows the statements of this file for short ones."""
    bench = await Bench.ready(path, **kw)
    known_short(bench, ADD, COUNT, ITEMS, RAISE)
    return bench


async def ready_with(path: Any, schema: str) -> Bench:
    """The same with tables more. Its connections are still to be opened: listeners may be added."""
    bench = await ready(path)
    outside = sqlite3.connect(bench.path)
    outside.executescript(schema)
    outside.close()
    await bench.engine.dispose()
    return bench


def check_foreign_keys(connection: Any, _: Any) -> None:
    """As SQLAlchemy's documentation has it."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


@asynccontextmanager
async def whole(path: Any, monkeypatch: Any) -> AsyncIterator[Bench]:
    """A bench with patient groups, which is found whole and free at the end."""
    patient(monkeypatch)
    bench = await ready(path)
    yield bench
    await bench.check()
    await bench.engine.dispose()
    assert_free(bench.path)


def known_short(bench: Bench, *statements: Any) -> None:
    for statement in statements:
        sql = statement.text if isinstance(statement, TextClause) else str(statement)
        bench.engine.pool.pace.note(sql.replace(":run", "?"), 0.0)


def raw_writer(bench: Bench) -> Any:
    """The writing connection, as ``sqlite3`` knows it."""
    return bench.engine.pool.writer._record.dbapi_connection.raw


def traced(bench: Bench) -> list[str]:
    """The statements that the writer sends from now on, each by its first words."""
    sent: list[str] = []
    raw_writer(bench).set_trace_callback(lambda sql: sent.append(short(sql)))
    return sent


def short(sql: str) -> str:
    words = sql.split()
    return " ".join(words[: 2 if words[0] in ("BEGIN", "ROLLBACK", "CREATE") else 1])


async def write(bench: Bench, run: int) -> None:
    """A transaction that adds one mark, and is acknowledged."""
    async with bench.engine.begin() as connection:
        await connection.execute(ADD, {"run": run})
    bench.acknowledged.add(run)


class Waiters:
    """Tasks that wait for the ticket in the order they were added, behind a first member."""

    def __init__(self, bench: Bench, first: AsyncConnection, run: int) -> None:
        self.bench = bench
        self.first = first
        self.run = run
        self.tasks: list[asyncio.Task[Any]] = []

    async def add(self, *members: Coroutine[Any, Any, Any]) -> None:
        queue = self.bench.engine.pool.writer.queue
        for member in members:
            wanted = queue.waiting + 1
            self.tasks.append(asyncio.create_task(member))
            await eventually(lambda wanted=wanted: queue.waiting == wanted)  # type: ignore[misc]

    async def go(self) -> list[Any]:
        """The first member commits, so the others join it; what became of each of them."""
        await self.first.commit()
        self.bench.acknowledged.add(self.run)
        return await self.outcomes()

    async def outcomes(self) -> list[Any]:
        every = asyncio.gather(*self.tasks, return_exceptions=True)
        return await asyncio.wait_for(every, PATIENCE)


async def waiters(bench: Bench, *members: Coroutine[Any, Any, Any], run: int = 0) -> Waiters:
    """The first member has written mark ``run`` and holds the ticket; the others wait for it."""
    first = await bench.engine.connect()
    await first.execute(ADD, {"run": run})
    made = Waiters(bench, first, run)
    await made.add(*members)
    return made


async def together(bench: Bench, *members: Coroutine[Any, Any, Any], run: int = 0) -> list[Any]:
    """Run all members as one group, behind a first one; what became of them."""
    made = await waiters(bench, *members, run=run)
    try:
        return await made.go()
    finally:
        await made.first.close()


def marks(bench: Bench) -> list[int]:
    """The transactions that another connection sees, in the order of their rows."""
    found = [run for (run,) in rows(bench.path, "SELECT run FROM marks ORDER BY id")]
    return list(dict.fromkeys(found))


class Gate:
    """Holds the connection's thread in front of a function until it is opened."""

    def __init__(self, monkeypatch: Any, module: Any, name: str) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        function = getattr(module, name)

        def gated(*args: Any) -> Any:
            self.reached.set()
            assert self.opened.wait(PATIENCE)
            return function(*args)

        monkeypatch.setattr(module, name, gated)

    async def is_reached(self) -> None:
        await eventually(self.reached.is_set)
