"""Cancelling a task at its n-th suspension, and what must be true of an engine afterwards."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from enum import Enum
from itertools import count
from typing import Any

from sqlalchemy import insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import create_async_engine
from qsession.sqlite.queue.prediction import Guess

PATIENCE = 20.0
"""Seconds after which something that should have ended is taken for stuck."""
STRICT = ("-W", "error", "-W", "ignore::ResourceWarning")
"""Warnings are errors, but that an engine was not disposed of, which sqlite3 and aiosqlite tell."""
MARKS = 3
"""Rows that each transaction of a scenario writes; all of them are there afterwards, or none."""
READ = text("SELECT id, value FROM items ORDER BY id")
ENDLESS = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n")
COUNT_ENDLESSLY = text(f"SELECT count(*) FROM ({ENDLESS.text})")


class When(Enum):
    """The moment at which a task that is about to wait gets cancelled."""

    ASKED = "asked"  # as soon as it waits
    ANSWERED = "answered"  # what it waits for is there, but it has not seen it yet
    TWICE = "twice"  # as soon as it waits, and once more in the middle of its clean-up
    ALL = "all"  # as soon as it waits, and every other task with it, as a loop does at its end


class Base(DeclarativeBase):
    """The tables of these tests."""


class Item(Base):
    """Something that is counted."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class Mark(Base):
    """One write of one transaction."""

    __tablename__ = "marks"
    id: Mapped[int] = mapped_column(primary_key=True)
    run: Mapped[int]


class Bench:
    """An engine with one reader on a file, and what was acknowledged on it."""

    def __init__(self, path: Any, **kw: Any) -> None:
        self.path = path
        given = {"pool_size": 1, "max_overflow": 0, **kw}
        options = {name: value for name, value in given.items() if value is not None}
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{path}", **options)
        self.run = 0
        self.acknowledged: set[int] = set()

    @classmethod
    async def ready(cls, path: Any, **kw: Any) -> Bench:
        """A bench whose tables are there."""
        bench = cls(path, **kw)
        async with bench.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(insert(Item), [{"value": 0}] * 5)
        return bench

    def learn(self, guess: Guess = Guess.READS) -> None:
        """From now on this is what the prediction says of every call site."""
        self.engine.pool.write_queue.prediction.guess = lambda site: guess

    def marks(self) -> list[dict[str, int]]:
        return [{"run": self.run}] * MARKS

    async def check(self) -> None:
        """Nothing is held, every transaction is there whole or not at all, and the engine works."""
        await settled(self.engine)
        assert_free(self.path)
        if rows(self.path, "SELECT * FROM sqlite_schema WHERE name = 'marks'"):
            found = dict(rows(self.path, "SELECT run, count(*) FROM marks GROUP BY run"))
            assert set(found.values()) <= {MARKS}
            assert self.acknowledged <= set(found)
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await connection.execute(text("PRAGMA user_version=1"))
            await connection.execute(text("CREATE TABLE IF NOT EXISTS works (id INTEGER)"))
            await connection.commit()
        await settled(self.engine)


class _CancelAt:
    """Runs a coroutine and cancels its task at its ``n``-th suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int, when: When) -> None:
        self.coroutine = coroutine
        self.n = n
        self.when = when
        self.suspensions = 0
        self.spared = asyncio.current_task()

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                if error is None:
                    awaited = self.coroutine.send(None)
                else:
                    awaited = self.coroutine.throw(error)
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            again = self.when is When.TWICE and self.suspensions == self.n + 1
            if self.suspensions == self.n or again:
                self._cancel(awaited)
            error = None
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown

    def _cancel(self, awaited: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self.when is When.ALL:
            for each in asyncio.all_tasks() - {self.spared}:
                each.cancel()
        elif self.when is not When.ANSWERED:
            task.cancel()
        elif awaited is None:
            asyncio.get_running_loop().call_soon(task.cancel)
        else:  # runs before the callback that wakes the task up, which is added later
            awaited.add_done_callback(lambda _: task.cancel())


async def cancel_at(coroutine: Coroutine[Any, Any, Any], n: int, when: When) -> bool:
    """Whether the coroutine had ended before its ``n``-th suspension."""
    run = _CancelAt(coroutine, n, when)

    async def drive() -> None:
        await run

    try:
        await asyncio.create_task(drive())
    except asyncio.CancelledError:
        assert run.suspensions >= n
        return False
    return run.suspensions < n


async def eventually(condition: Callable[[], bool], what: Callable[[], str] = str) -> None:
    """Give the loop and the threads turns until ``condition`` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what()
        await asyncio.to_thread(time.sleep, 0)


def places_out(pool: Any) -> int:
    """How many places of a pool were not given back, the one of the ticket's holder included."""
    return int(pool.checkedout() + 1 - pool._reserved.qsize())


async def settled(engine: Any, collect: bool = False) -> None:
    """Wait until nobody holds or waits for the ticket, and no connection is out.

    A connection whose close() was cancelled as well is out until it is collected.
    """
    pool = engine.pool
    queue = pool.write_queue.queue
    looks = count(1)

    def is_settled() -> bool:
        if collect or not next(looks) % 100:
            gc.collect()
        held = queue.holder is not None or queue.waiting
        return not held and engine.stats().in_use == 0 and places_out(pool) == 0

    await eventually(is_settled, lambda: f"{queue!r} {pool.status()}")


async def collected(engine: Any) -> None:
    """Let the garbage collector run until the engine is settled.

    Once is not always enough: a thread may still be about to leave what it has done.
    """
    await settled(engine, collect=True)


def connection_threads() -> set[threading.Thread]:
    """The threads of aiosqlite's connections."""
    return {each for each in threading.enumerate() if "_connection_worker_thread" in each.name}


def assert_free(path: Any) -> None:
    """From outside, the file can be written to, and is whole."""
    outside = sqlite3.connect(path, timeout=0.2, isolation_level=None)
    try:
        outside.execute("BEGIN IMMEDIATE")
        outside.execute("ROLLBACK")
        assert outside.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    finally:
        outside.close()


def rows(path: Any, sql: str) -> list[Any]:
    """What a connection from outside reads."""
    outside = sqlite3.connect(path, timeout=0.2)
    try:
        return outside.execute(sql).fetchall()
    finally:
        outside.close()
