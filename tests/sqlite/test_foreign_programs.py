"""What other programs do to a file from processes of their own, and how qsession waits for them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from contextlib import closing

import foreign
import pytest
from cancelling import PATIENCE, assert_free, eventually, rows
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from qsession import QueueTimeout, create_async_engine
from qsession.errors import SQLITE_BUSY
from qsession.sqlite.processes import owners as processes

INSERT = text("INSERT INTO t VALUES (1)")
NEVER = 3600.0


def make_file(path, mode="WAL"):
    with closing(sqlite3.connect(path)) as raw:
        raw.execute(f"PRAGMA journal_mode={mode}")
        raw.execute("CREATE TABLE t (a)")


@pytest.fixture
def path(tmp_path):
    """A file in WAL mode; in the end it is whole, and nobody holds anything."""
    path = tmp_path / "app.db"
    make_file(path)
    yield path
    assert_free(path)
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def insert(engine):
    async with engine.begin() as connection:
        await connection.execute(INSERT)


async def ready(path, **kw):
    """An engine that has its writer open."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", **kw)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    return engine


async def waits_for_lock(engine, task):
    """Until SQLite has refused it the lock, and it waits to ask again."""
    await eventually(lambda: engine.stats().holder is not None)
    asked = engine.pool.write_queue.turn
    await eventually(lambda: asked.held)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not task.done()


def named(process):
    """How a message names a process, as far as the system tells."""
    return rf"pid {process.pid} \(.*python" if sys.platform == "linux" else "process"


@pytest.mark.parametrize("what", list(foreign.PROGRAMS))
class TestAForeignWriter:
    """Whatever holds the write lock."""

    async def test_is_waited_for(self, path, what):
        """When it is done, the write goes on, and both are there."""
        engine = await ready(path, queue_timeout=NEVER)
        with foreign.program(path, foreign.PROGRAMS[what]) as other:
            task = asyncio.create_task(insert(engine))
            await waits_for_lock(engine, task)
            other.let_go()
            await asyncio.wait_for(task, PATIENCE)
            assert other.wait(PATIENCE) == 0
        assert rows(path, "SELECT a FROM t ORDER BY a") == [(0,), (1,)]
        await engine.dispose()

    async def test_that_is_killed(self, path, what):
        """Its lock dies with it; what it had not committed is gone."""
        engine = await ready(path, queue_timeout=NEVER)
        with foreign.program(path, foreign.PROGRAMS[what]) as other:
            task = asyncio.create_task(insert(engine))
            await waits_for_lock(engine, task)
            other.kill()
            await asyncio.wait_for(task, PATIENCE)
        left = [(1,)] if what.startswith("BEGIN") else [(0,), (1,)]
        assert rows(path, "SELECT a FROM t ORDER BY a") == left
        await engine.dispose()

    async def test_is_named(self, path, what):
        """After ``queue_timeout`` the error has its pid and command line, and nothing was run."""
        engine = await ready(path, queue_timeout=0.05)
        with foreign.program(path, foreign.PROGRAMS[what]) as other:
            with pytest.raises(QueueTimeout, match=named(other)):
                await insert(engine)
        await insert(engine)
        assert (1,) in rows(path, "SELECT a FROM t")
        await engine.dispose()

    async def test_the_wait_can_be_cancelled(self, path, what):
        """Nothing is left behind: the next writer waits in its place."""
        engine = await ready(path, queue_timeout=NEVER)
        with foreign.program(path, foreign.PROGRAMS[what]) as other:
            first = asyncio.create_task(insert(engine))
            await waits_for_lock(engine, first)
            second = asyncio.create_task(insert(engine))
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await waits_for_lock(engine, second)
            other.let_go()
            await asyncio.wait_for(second, PATIENCE)
        assert rows(path, "SELECT a FROM t ORDER BY a") == [(0,), (1,)]
        await engine.dispose()

    async def test_readers_do_not_wait(self, path, what):
        """Meanwhile a snapshot is read at once."""
        engine = await ready(path, queue_timeout=NEVER)
        with foreign.program(path, foreign.PROGRAMS[what]):
            async with engine.connect() as connection:
                await connection.execution_options(qsession_access="read")
                await asyncio.wait_for(connection.execute(text("SELECT * FROM t")), PATIENCE)
        await engine.dispose()


async def test_without_a_table_of_locks(path, tmp_path, monkeypatch):
    """Where the system does not tell who holds a lock, all who have the file open are named."""
    monkeypatch.setattr(processes, "_LOCKS", tmp_path / "none")
    engine = await ready(path, queue_timeout=0.05)
    with foreign.program(path, foreign.PROGRAMS["BEGIN IMMEDIATE"]) as other:
        with pytest.raises(
            QueueTimeout, match=rf"of the processes that have it open: pid {other.pid} \("
        ):
            await insert(engine)
    await engine.dispose()


async def test_a_program_that_locks_the_file_for_good(path):
    """In SQLite's exclusive mode nobody else can even read: that is waited for, and named."""
    with foreign.program(path, foreign.LOCKED_FOR_GOOD) as other:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", queue_timeout=0.05)
        with pytest.raises(QueueTimeout, match=named(other)):
            await insert(engine)
        other.let_go()
        assert other.wait(PATIENCE) == 0
    await insert(engine)
    assert rows(path, "SELECT a FROM t ORDER BY a") == [(0,), (1,)]
    await engine.dispose()


async def test_a_file_that_is_used_in_rollback_mode(tmp_path):
    """It is switched to WAL when the other program lets it; until then that one is named."""
    path = tmp_path / "app.db"
    make_file(path, mode="DELETE")
    with foreign.program(path, foreign.IN_ROLLBACK_MODE) as other:
        impatient = create_async_engine(f"sqlite+aiosqlite:///{path}", queue_timeout=0.05)
        with pytest.raises(QueueTimeout, match=named(other)):
            await insert(impatient)
        await impatient.dispose()
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", queue_timeout=NEVER)
        task = asyncio.create_task(insert(engine))
        other.let_go()
        await asyncio.wait_for(task, PATIENCE)
    assert rows(path, "SELECT a FROM t ORDER BY a") == [(0,), (1,)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    await engine.dispose()
    assert_free(path)


async def test_journal_mode_is_changed(path):
    """While it is open here SQLite refuses that to others; when it was closed, it is set right."""
    engine = await ready(path)
    refused = foreign.run(path, foreign.CHANGES_JOURNAL_MODE)
    assert "locked" in refused.stderr
    await insert(engine)
    await engine.dispose()
    assert foreign.run(path, foreign.CHANGES_JOURNAL_MODE).stdout == "delete\n"
    await insert(engine)
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert rows(path, "SELECT count(*) FROM t") == [(2,)]
    await engine.dispose()


async def test_the_journal_mode_is_not_changed_while_the_engine_is_open(path):
    """Its own idle connections are in the way. It says so at once, and goes on in WAL mode."""
    engine = await ready(path, queue_timeout=NEVER)
    await insert(engine)
    async with engine.connect() as connection:
        with pytest.raises(OperationalError, match="stays in WAL mode until the engine") as caught:
            change = connection.execute(text("PRAGMA journal_mode=DELETE"))
            await asyncio.wait_for(change, PATIENCE)
        assert caught.value.orig.sqlite_errorcode == SQLITE_BUSY
        assert await connection.scalar(text("PRAGMA journal_mode=WAL")) == "wal"
    await insert(engine)
    await engine.dispose()
    assert rows(path, "PRAGMA journal_mode=DELETE") == [("delete",)]


async def test_a_hot_journal(tmp_path):
    """A transaction that a killed program left half done is rolled back before anything else."""
    path = tmp_path / "app.db"
    make_file(path, mode="DELETE")
    with closing(sqlite3.connect(path)) as raw:
        raw.executemany("INSERT INTO t VALUES (?)", [(7,), (8,)])
        raw.commit()
    with foreign.program(path, foreign.LEAVES_HOT_JOURNAL) as other:
        other.kill()
    journal = tmp_path / "app.db-journal"
    assert journal.stat().st_size > 0
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    await insert(engine)
    assert rows(path, "SELECT a FROM t ORDER BY a") == [(1,), (7,), (8,)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert not journal.exists()
    await engine.dispose()
    assert_free(path)
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_journal_that_is_not_hot_yet(tmp_path):
    """While that program lives, its transaction is waited for, not rolled back."""
    path = tmp_path / "app.db"
    make_file(path, mode="DELETE")
    with foreign.program(path, foreign.LEAVES_HOT_JOURNAL) as other:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", queue_timeout=0.05)
        with pytest.raises(QueueTimeout, match=named(other)):
            await insert(engine)
        assert os.stat(f"{path}-journal").st_size > 0
        other.kill()
        await insert(engine)
    assert rows(path, "SELECT a FROM t") == [(1,)]
    await engine.dispose()
    assert_free(path)
