"""Programs that know nothing of qsession write to the same file, and hold SQLite's own locks."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import QueuedAsyncEngine, QueueTimeout, create_async_engine

INSERT = text("INSERT INTO t VALUES (1)")
COUNT = text("SELECT count(*) FROM t")


def make_engine(path: Path, **kw: Any) -> QueuedAsyncEngine:
    """An engine whose file has an empty table ``t``."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
    return create_async_engine(f"sqlite+aiosqlite:///{path}", **kw)


class Foreigner:
    """Another program's connection; it is used from this thread only."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, timeout=0)

    def __enter__(self) -> sqlite3.Connection:
        return self.connection

    def __exit__(self, *error: object) -> None:
        self.connection.close()


async def waits_for_lock(engine: QueuedAsyncEngine, task: asyncio.Task[Any]) -> None:
    """Until ``task`` holds the ticket and stands before the lock."""
    while engine.stats().holder is None and not task.done():
        await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not task.done()


async def insert(engine: QueuedAsyncEngine) -> None:
    """One row in a transaction of its own."""
    async with engine.begin() as connection:
        await connection.execute(INSERT)


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
async def test_write_waits_for_a_foreign_writer(tmp_path: Path, lock: str) -> None:
    """While another program holds the lock, a writer waits; then both are there."""
    engine = make_engine(tmp_path / "a.db")
    with Foreigner(tmp_path / "a.db") as other:
        other.execute(f"BEGIN {lock}")
        other.execute("INSERT INTO t VALUES (0)")
        task = asyncio.create_task(insert(engine))
        await waits_for_lock(engine, task)
        other.execute("COMMIT")
        await task
        assert other.execute("SELECT count(*) FROM t").fetchone() == (2,)
    await engine.dispose()


async def test_readers_do_not_wait_for_a_foreign_writer(tmp_path: Path) -> None:
    """What is known to read answers while another program writes."""
    engine = make_engine(tmp_path / "a.db")
    with Foreigner(tmp_path / "a.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("INSERT INTO t VALUES (0)")
        async with engine.connect() as connection:
            await connection.execution_options(qsession_access="read")
            assert (await connection.execute(COUNT)).scalar() == 0
    await engine.dispose()


async def test_the_wait_ends_with_queue_timeout(tmp_path: Path) -> None:
    """After ``queue_timeout`` the error is QueueTimeout; the ticket is free, and a retry works."""
    engine = make_engine(tmp_path / "a.db", queue_timeout=0.05)
    with Foreigner(tmp_path / "a.db") as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(QueueTimeout) as caught:
                await insert(engine)
            message = str(caught.value)
            assert "Another connection held a lock on" in message
            assert "queue_timeout=0.05 s" in message
            assert "INSERT INTO t" in message
            assert "database is locked" not in message
            assert engine.stats().holder is None
        other.execute("ROLLBACK")
        await insert(engine)
    assert engine.stats().timeouts == 2
    await engine.dispose()


async def test_a_session_goes_on_after_queue_timeout(tmp_path: Path) -> None:
    """The session that timed out can roll back and write, on the same connection."""
    engine = make_engine(tmp_path / "a.db", queue_timeout=0.02)
    with Foreigner(tmp_path / "a.db") as other:
        async with AsyncSession(engine) as session:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(QueueTimeout):
                await session.execute(INSERT)
            other.execute("ROLLBACK")
            await session.rollback()
            await session.execute(INSERT)
            await session.commit()
        assert other.execute("SELECT count(*) FROM t").fetchone() == (1,)
    await engine.dispose()


async def test_a_reader_that_wants_to_write_waits_as_well(tmp_path: Path) -> None:
    """The upgrade of a transaction that began by reading waits for the foreign lock, too."""
    engine = make_engine(tmp_path / "a.db")
    with Foreigner(tmp_path / "a.db") as other:
        for _ in range(20):  # from now on the text is taken for a reader
            async with engine.connect() as connection:
                await connection.execute(COUNT)
        async with engine.connect() as connection:
            assert (await connection.execute(COUNT)).scalar() == 0
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(connection.execute(INSERT))  # type: ignore[arg-type]
            await waits_for_lock(engine, task)
            other.execute("ROLLBACK")
            await task
            await connection.commit()
        assert other.execute("SELECT count(*) FROM t").fetchone() == (1,)
    await engine.dispose()


async def test_the_wait_can_be_cancelled(tmp_path: Path) -> None:
    """A cancelled wait leaves nothing behind: the next writer waits in its place."""
    engine = make_engine(tmp_path / "a.db")
    with Foreigner(tmp_path / "a.db") as other:
        other.execute("BEGIN IMMEDIATE")
        first = asyncio.create_task(insert(engine))
        await waits_for_lock(engine, first)
        second = asyncio.create_task(insert(engine))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        other.execute("ROLLBACK")
        await second
        assert other.execute("SELECT count(*) FROM t").fetchone() == (1,)
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    await engine.dispose()


async def test_autocommit_waits_as_well(tmp_path: Path) -> None:
    """Under AUTOCOMMIT each statement waits for the foreign lock, VACUUM included."""
    engine = make_engine(tmp_path / "a.db", isolation_level="AUTOCOMMIT")

    async def run(sql: str) -> None:
        async with engine.connect() as connection:
            await connection.execute(text(sql))

    with Foreigner(tmp_path / "a.db") as other:
        for sql in ("INSERT INTO t VALUES (1)", "VACUUM"):
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(run(sql))
            await waits_for_lock(engine, task)
            other.execute("ROLLBACK")
            await task
        assert other.execute("SELECT count(*) FROM t").fetchone() == (1,)
    await engine.dispose()


async def test_busy_timeout_of_a_listener_does_not_block_the_thread(tmp_path: Path) -> None:
    """The wait stays ours: it ends by queue_timeout, not by what a listener has set."""
    engine = make_engine(tmp_path / "a.db", queue_timeout=0.02)

    @event.listens_for(engine.sync_engine, "connect")
    def set_timeout(connection: Any, record: object) -> None:
        connection.execute("PRAGMA busy_timeout=3600000")

    with Foreigner(tmp_path / "a.db") as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueTimeout):
            await insert(engine)
        async with engine.connect() as connection:
            await connection.execute(text("PRAGMA busy_timeout=3600000"))
            await connection.rollback()
            with pytest.raises(QueueTimeout):
                await connection.execute(INSERT)
        other.execute("ROLLBACK")
    await engine.dispose()


async def test_file_that_cannot_be_switched_to_wal_yet(tmp_path: Path) -> None:
    """A file that another program uses in rollback mode is waited for, then switched."""
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a)")
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", queue_timeout=0.02)
    with Foreigner(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("INSERT INTO t VALUES (0)")
        with pytest.raises(QueueTimeout, match="could not be switched to WAL mode"):
            await insert(engine)
        other.execute("COMMIT")
        await insert(engine)
        assert other.execute("SELECT count(*) FROM t").fetchone() == (2,)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    await engine.dispose()


async def test_many_writers_beside_a_busy_foreigner(tmp_path: Path) -> None:
    """Every acknowledged row of both programs is there; nobody sees "database is locked"."""
    engine = make_engine(tmp_path / "a.db")

    def foreign_rows() -> int:
        written = 0
        with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None, timeout=20)) as other:
            for _ in range(50):
                other.execute("BEGIN IMMEDIATE")
                other.execute("INSERT INTO t VALUES (0)")
                other.execute("COMMIT")
                written += 1
        return written

    foreign = asyncio.create_task(asyncio.to_thread(foreign_rows))
    await asyncio.gather(*(insert(engine) for _ in range(50)))
    written = await foreign
    async with engine.connect() as connection:
        assert (await connection.execute(COUNT)).scalar() == 50 + written
    await engine.dispose()
