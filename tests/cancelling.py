"""A file with tables and an engine on it, and what must be true of them after a cancellation."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.util import await_only

from qsession import create_async_engine
from qsession.sqlite.queue.prediction import Guess
from qsession.sqlite.transaction.runner import Runner
from qsession.testing import assert_free

PATIENCE = 20.0
"""Seconds after which something that should have ended is taken for stuck."""
STRICT = ("-W", "error", "-W", "ignore::ResourceWarning")
"""Warnings are errors, but that an engine was not disposed of, which sqlite3 and aiosqlite tell."""
MARKS = 3
"""Rows that each transaction of a scenario writes; all of them are there afterwards, or none."""
READ = text("SELECT id, value FROM items ORDER BY id")
ENDLESS = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n")
COUNT_ENDLESSLY = text(f"SELECT count(*) FROM ({ENDLESS.text})")


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
        assert rows(self.path, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0, "somebody reads"
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


async def eventually(condition: Callable[[], bool], what: Callable[[], str] = str) -> None:
    """Give the loop and the threads turns until ``condition`` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what()
        await asyncio.to_thread(time.sleep, 0)


async def until_it_paces(
    work: Coroutine[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[asyncio.Task[Any], asyncio.Future[None]]:
    """Run a statement until SQLite has run it, in the thread, and its task waits for a later turn
    of the loop. The task, and the future that lets it go on.
    """
    waits, later = asyncio.Event(), asyncio.get_running_loop().create_future()

    def pace(runner: Runner, holder: bool) -> bool:
        waits.set()
        await_only(later)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "pace", pace)
        task = asyncio.create_task(work)
        await waits.wait()
    return task, later


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


def rows(path: Any, sql: str) -> list[Any]:
    """What a connection from outside reads."""
    outside = sqlite3.connect(path, timeout=0.2)
    try:
        return outside.execute(sql).fetchall()
    finally:
        outside.close()
