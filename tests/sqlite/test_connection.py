"""What applications do with connections: savepoints, DDL, settings, and the driver's own."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from engines import Make, metadata, notes
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Table,
    delete,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import (
    IntegrityError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as stock_engine
from sqlalchemy.util import greenlet_spawn

from qsession import QueuedAsyncEngine

COUNT = select(func.count()).select_from(notes)
READ = {"qsession_access": "read"}
ROUNDS = 20
"""More than it takes until a text is taken for a reader."""


@pytest.fixture
async def engine(make: Make) -> QueuedAsyncEngine:
    """An engine on a table of three rows."""
    engine = make()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(notes), [{"id": n} for n in range(3)])
    return engine


async def rows(engine: Any) -> int:
    """What a new reader counts."""
    async with engine.connect() as connection:
        return int(await connection.scalar(COUNT, execution_options=READ))


# Savepoints.


async def test_savepoint_as_the_very_first_thing(engine: QueuedAsyncEngine) -> None:
    """A transaction may begin with a savepoint, and end with nothing else in it."""
    async with AsyncSession(engine) as session:
        async with session.begin_nested():
            await session.execute(insert(notes), {"id": 10})
        await session.commit()
        nested = await session.begin_nested()
        await nested.rollback()
        await session.commit()
        nested = await session.begin_nested()
        assert await session.scalar(COUNT) == 4
        await nested.rollback()
        await session.execute(insert(notes), {"id": 11})
        await session.commit()
    assert await rows(engine) == 5


async def test_nested_savepoints(engine: QueuedAsyncEngine) -> None:
    """Each savepoint is released or rolled back for itself."""
    async with engine.connect() as connection:
        outer = await connection.begin_nested()
        await connection.execute(insert(notes), {"id": 10})
        inner = await connection.begin_nested()
        await connection.execute(insert(notes), {"id": 11})
        await inner.rollback()
        inner = await connection.begin_nested()
        await connection.execute(insert(notes), {"id": 12})
        await inner.commit()
        await outer.commit()
        with pytest.raises(IntegrityError):
            async with connection.begin_nested():
                await connection.execute(insert(notes), {"id": 10})
        await connection.commit()
        found = await connection.scalars(select(notes.c.id).where(notes.c.id >= 10))
        assert found.all() == [10, 12]


# DDL and the Inspector.


async def test_create_reflect_and_drop(engine: QueuedAsyncEngine) -> None:
    """run_sync with metadata and the Inspector, inside and outside of a transaction."""
    async with engine.begin() as connection:
        found = MetaData()
        await connection.run_sync(found.reflect)
        assert list(found.tables) == ["notes"]
        await connection.run_sync(metadata.drop_all)
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert names == []
    async with engine.connect() as connection:
        assert not await connection.run_sync(lambda sync: inspect(sync).has_table("notes"))
        assert not await connection.run_sync(lambda sync: inspect(sync.engine).has_table("notes"))


async def test_ddl_is_rolled_back(engine: QueuedAsyncEngine) -> None:
    """CREATE TABLE belongs to its transaction, unlike on the stock driver."""
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE other (a)"))
        await connection.rollback()
        assert not await connection.run_sync(lambda sync: inspect(sync).has_table("other"))


async def test_inspector_beside_the_tasks_own_writes(engine: QueuedAsyncEngine) -> None:
    """A second connection may look at the schema while the first has written."""
    async with engine.begin() as writing:
        await writing.execute(insert(notes), {"id": 10})
        async with engine.connect() as other:
            assert await other.run_sync(lambda sync: inspect(sync).get_table_names()) == ["notes"]
            assert await other.scalar(text("PRAGMA user_version")) == 0
    assert await rows(engine) == 4


# The life of sessions and connections.


async def test_expire_on_commit(engine: QueuedAsyncEngine) -> None:
    """An expired row is read again; one that was kept needs no statement."""
    async with AsyncSession(engine) as session:
        connection = await session.connection()
        assert await connection.scalar(COUNT) == 3
        await session.commit()
        assert connection.closed
        assert await session.scalar(COUNT) == 3


@pytest.mark.parametrize("statement", [COUNT, delete(notes)], ids=["reading", "writing"])
async def test_invalidate(engine: QueuedAsyncEngine, statement: Any) -> None:
    """After invalidate() and rollback() the connection works again, and nothing was written."""
    async with engine.connect() as connection:
        await connection.execute(statement)
        await connection.invalidate()
        with pytest.raises(PendingRollbackError):
            await connection.execute(COUNT)
        await connection.rollback()
        await connection.execute(insert(notes), {"id": 10})
        await connection.commit()
    async with AsyncSession(engine) as session:
        await session.execute(statement)
        await session.invalidate()
        assert await session.scalar(COUNT) == 4


async def test_detach(engine: QueuedAsyncEngine) -> None:
    """A detached connection goes on working, and gives back what it had."""
    async with engine.connect() as connection:
        await connection.run_sync(lambda sync: sync.detach())
        await connection.execute(insert(notes), {"id": 10})
        await connection.commit()
    assert await rows(engine) == 4
    assert engine.stats().holder is None


async def test_dispose_and_go_on(engine: QueuedAsyncEngine) -> None:
    """dispose() in the middle of a transaction waits for nobody; all of it can be used again."""
    async with engine.connect() as connection:
        await connection.execute(insert(notes), {"id": 10})
        await engine.dispose()
        await connection.execute(insert(notes), {"id": 11})
        await connection.commit()
        assert await rows(engine) == 5
    await engine.dispose()
    async with engine.begin() as connection:
        await connection.execute(insert(notes), {"id": 12})
    assert await rows(engine) == 6


async def test_two_phase_is_not_supported(engine: QueuedAsyncEngine) -> None:
    """SQLite has no two-phase commit: the same error as on the stock driver."""
    async with engine.connect() as connection:
        with pytest.raises(NotImplementedError):
            await connection.run_sync(lambda sync: sync.begin_twophase())


# What stays with a connection.


async def test_temporary_table_over_many_transactions(engine: QueuedAsyncEngine) -> None:
    """A temporary table stays visible to the connection that created it."""
    table = Table("scratch", MetaData(), Column("a", Integer), prefixes=["TEMPORARY"])
    async with engine.connect() as connection:
        await connection.run_sync(table.create)
        await connection.execute(text("CREATE TEMP TABLE other (a)"))
        await connection.commit()
        for _ in range(ROUNDS):
            assert (await connection.execute(select(table))).all() == []
            await connection.rollback()
        names = await connection.run_sync(lambda sync: inspect(sync).get_temp_table_names())
        assert sorted(names) == ["other", "scratch"]


@pytest.mark.parametrize("level", ["SERIALIZABLE", "AUTOCOMMIT"])
async def test_attached_database(engine: QueuedAsyncEngine, tmp_path: Path, level: str) -> None:
    """A database that a connection has attached stays attached for it."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level=level)
        await connection.execute(text(f"ATTACH '{tmp_path}/b.db' AS b"))
        await connection.commit()
        await connection.execute(text("CREATE TABLE b.t (a)"))
        await connection.commit()
        for _ in range(ROUNDS):
            assert await connection.scalar(text("SELECT count(*) FROM b.t")) == 0
            await connection.rollback()
        await connection.execute(text("DETACH b"))
        await connection.rollback()
        with pytest.raises(OperationalError, match=r"no such table: b\.t"):
            await connection.execute(text("SELECT count(*) FROM b.t"))


async def test_foreign_keys_as_the_first_statement(engine: QueuedAsyncEngine) -> None:
    """A PRAGMA that begins every session holds for what the session writes, however many read."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE child (p REFERENCES notes (id))"))
    for _ in range(ROUNDS):
        async with AsyncSession(engine) as session:
            await session.execute(text("PRAGMA foreign_keys=ON"))
            await session.scalar(COUNT)
    await engine.dispose()
    async with AsyncSession(engine) as session:
        await session.execute(text("PRAGMA foreign_keys=ON"))
        await session.scalar(COUNT)
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await session.execute(text("INSERT INTO child VALUES (99)"))


async def test_an_idle_session_that_only_set_something_stops_nobody(make: Make) -> None:
    """A PRAGMA is not a write: its session gives way to others as one that has only read."""
    engine = make(queue_timeout=5, stall_after=0.01)
    async with AsyncSession(engine) as session:
        await session.execute(text("PRAGMA foreign_keys=ON"))
        await session.execute(text("SELECT 1"))
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
    assert engine.stats().taken_away == 1


# The driver's connection.


async def test_driver_connection(engine: QueuedAsyncEngine) -> None:
    """It is an aiosqlite connection, held with the ticket until it is given back."""
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, aiosqlite.Connection)
        assert engine.stats().holder is not None
        await driver.execute("INSERT INTO notes (id) VALUES (10)")
        await driver.commit()
        await driver.execute("DELETE FROM notes")
        await driver.rollback()
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as copy:
            await driver.backup(copy)
            assert copy.execute("SELECT count(*) FROM notes").fetchone() == (4,)
    assert engine.stats().holder is None
    assert await rows(engine) == 4


async def test_driver_connection_of_a_session(engine: QueuedAsyncEngine) -> None:
    """What is done on it belongs to the session's transaction."""
    for end, expected in (("rollback", 3), ("commit", 4)):
        async with AsyncSession(engine) as session:
            raw = await (await session.connection()).get_raw_connection()
            assert raw.driver_connection is not None
            await raw.driver_connection.execute("INSERT INTO notes (id) VALUES (10)")
            await getattr(session, end)()
        assert await rows(engine) == expected


async def test_driver_connection_inside_run_sync(make: Make, engine: QueuedAsyncEngine) -> None:
    """Outside of run_sync nothing can wait: while all connections are out, the error says so."""
    stock = make(by=stock_engine, pool_size=1, max_overflow=0)
    async with stock.connect() as connection:
        raw = await connection.get_raw_connection()
        assert isinstance(raw.driver_connection, aiosqlite.Connection)
    async with stock.connect() as other, stock.connect() as connection:
        await other.execute(COUNT, execution_options=READ)
        raw = await connection.get_raw_connection()
        with pytest.raises(SQLAlchemyError, match=r"run_sync\(lambda c: c\.connection"):
            _ = raw.driver_connection
        await other.rollback()
        driver = await connection.run_sync(lambda sync: sync.connection.driver_connection)
        assert isinstance(driver, aiosqlite.Connection)


async def test_raw_connection_of_the_engine(engine: QueuedAsyncEngine) -> None:
    """engine.raw_connection() is closed without waiting; what was not committed is undone."""
    raw = await engine.raw_connection()
    assert raw.driver_connection is not None
    await raw.driver_connection.execute("INSERT INTO notes (id) VALUES (10)")
    await raw.driver_connection.commit()
    await raw.driver_connection.execute("DELETE FROM notes")
    raw.close()
    async with engine.begin() as connection:
        await connection.execute(insert(notes), {"id": 11})
    assert await rows(engine) == 5


@pytest.mark.parametrize("ending", ["cancelled", "closed"])
async def test_no_statement_in_line_begins_behind_the_end(make: Make, ending: str) -> None:
    """A statement that waits for another one of its connection does not begin a new transaction
    where the other one was cancelled or the connection closed: nobody would end it.
    """
    engine = make()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE lines (x)"))
    add = text("INSERT INTO lines VALUES (1)")
    async with engine.connect() as holder:
        await holder.execute(add)
        shared = await engine.connect()
        first = asyncio.ensure_future(shared.execute(add))
        while engine.stats().waiting == 0:
            await asyncio.sleep(0)
        second = asyncio.ensure_future(shared.execute(add))
        await asyncio.sleep(0)
        if ending == "cancelled":
            first.cancel()
        else:
            await shared.close()
        await holder.rollback()
        told = await asyncio.gather(first, second, return_exceptions=True)
    assert [isinstance(each, BaseException) for each in told] == [True, True]
    await shared.close()
    assert engine.stats().in_use == 0
    async with engine.begin() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM lines")) == 0


async def test_a_commit_in_line_lets_the_next_statement_run(make: Make) -> None:
    """COMMIT of what has only read begins no statement; who stands behind it in line goes on."""
    engine = make()
    async with engine.connect() as connection:
        routed = await connection.run_sync(lambda c: c.connection.dbapi_connection)
        await connection.execute(text("SELECT 1"))
        lines = [
            asyncio.ensure_future(greenlet_spawn(step))
            for step in (
                lambda: routed.execute("SELECT count(*) FROM sqlite_master, sqlite_master"),
                routed.commit,
                lambda: routed.execute("SELECT 2"),
                lambda: routed.execute("SELECT 3"),
            )
        ]
        await asyncio.wait_for(asyncio.gather(*lines), 10)
