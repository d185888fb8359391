"""What applications reach for beneath SQLAlchemy's connection, and where it is instead."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from engines import Make, metadata, notes
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import IntegrityError

from qsession import QSession, QSessionError, QueuedAsyncEngine, ReadOnlyError


@pytest.fixture
async def engine(make: Make) -> QueuedAsyncEngine:
    """An engine on an empty table, with a function of the application's own."""
    engine = make()

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.create_function("twice", 1, lambda number: 2 * number)

    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    return engine


async def test_the_raw_connection_of_a_session_is_waited_for(engine: QueuedAsyncEngine) -> None:
    """While another one writes, get_raw_connection() waits; the session has one connection."""
    async with engine.connect() as other, QSession(engine) as s:
        await other.execute(insert(notes), {"id": 1})
        connection = await s.connection()
        assert await s.connection() is connection
        waiting = asyncio.ensure_future(connection.get_raw_connection())
        while engine.stats().waiting == 0 and not waiting.done():
            await asyncio.sleep(0)
        await other.commit()
        driver = (await waiting).driver_connection
        assert driver is not None
        await driver.execute("INSERT INTO notes (id) VALUES (2)")
        await s.commit()
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM notes")) == 2


async def test_what_one_connection_to_the_file_has(engine: QueuedAsyncEngine) -> None:
    """A function made here would be on one connection of many, so the error says where to go."""
    async with engine.connect() as connection:
        raw: Any = (await connection.run_sync(lambda c: c.connection)).dbapi_connection
        with pytest.raises(AttributeError, match=r"create_function.*'connect' listener"):
            raw.create_function("thrice", 1, lambda number: 3 * number)
        with pytest.raises(AttributeError, match="has no attribute 'no_such_thing'"):
            _ = raw.no_such_thing
        for access in ("read", "write"):
            options = {"qsession_access": access}
            query = text("SELECT twice(4)")
            assert await connection.scalar(query, execution_options=options) == 8
            await connection.rollback()


async def test_a_statement_has_one_result(engine: QueuedAsyncEngine) -> None:
    """A cursor has nextset(), as the DBAPI asks for, and there is never another set."""

    def work(connection: Any) -> list[Any]:
        cursor = connection.connection.cursor()
        cursor.execute("SELECT 1")
        return [cursor.fetchall(), cursor.nextset()]

    async with engine.connect() as connection:
        assert await connection.run_sync(work) == [[(1,)], None]


async def test_autocommit_holds_with_the_drivers_connection(engine: QueuedAsyncEngine) -> None:
    """Each statement is committed, SQLAlchemy's and the driver's, and nothing is held."""
    async with engine.connect() as connection, engine.connect() as other:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        count = select(func.count()).select_from(notes)
        for number, add in enumerate(
            (
                lambda: connection.execute(insert(notes), {"id": 1}),
                lambda: driver.execute("INSERT INTO notes (id) VALUES (2)"),
                lambda: connection.execute(insert(notes), [{"id": 3}, {"id": 4}]),
            )
        ):
            await add()
            assert await other.scalar(count) == (1, 2, 4)[number]
            await other.rollback()
        assert engine.stats().holder is None


async def test_a_commit_of_the_drivers_changes_that_fails(make: Make, tmp_path: Path) -> None:
    """The error is told, and the transaction is rolled back. Here the loop cannot use the driver's
    connection, which may be used in its own thread only.
    """

    async def creator() -> aiosqlite.Connection:
        return await aiosqlite.connect(engine.url.database or "")

    engine = make(async_creator=creator)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
        child = "parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED"
        await connection.execute(text(f"CREATE TABLE children (id INTEGER PRIMARY KEY, {child})"))
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute("PRAGMA foreign_keys=ON")
        await driver.execute("INSERT INTO children (parent) VALUES (99)")
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await connection.commit()
        await connection.rollback()
        await driver.execute("INSERT INTO parents (id) VALUES (7)")
        await connection.execute(text("SELECT 1"))
        await connection.commit()
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM children")) == 0
        assert await connection.scalar(text("SELECT count(*) FROM parents")) == 1
    assert engine.stats().holder is None


async def test_the_driver_writes_behind_any_text(engine: QueuedAsyncEngine) -> None:
    """Text of which only SQLite knows whether it writes leaves the connection as it was."""
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await connection.execute(text("WITH x AS (SELECT 1) SELECT * FROM x"))
        await driver.execute("INSERT INTO notes (id) VALUES (1)")
        await connection.commit()
        assert await connection.scalar(select(func.count()).select_from(notes)) == 1


async def test_the_driver_of_a_reading_engine_does_not_write(make: Make) -> None:
    """access="read" holds for the driver's connection, too."""
    async with make().begin() as connection:
        await connection.run_sync(metadata.create_all)
    async with make(access="read").connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await driver.execute("INSERT INTO notes (id) VALUES (1)")


@pytest.mark.parametrize(
    "options",
    [{"qsession_reads": "snapshot"}, {"qsession_access": "read"}],
    ids=["reads", "access"],
)
async def test_options_hold_behind_the_driver_s_connection(
    engine: QueuedAsyncEngine, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Taken as the first thing of a transaction, it changes nothing of how the rest reads."""
    count = text("SELECT count(*) FROM notes")
    async with engine.execution_options(**options).connect() as connection:
        assert (await connection.get_raw_connection()).driver_connection is not None
        assert await connection.scalar(count) == 0
        with closing(sqlite3.connect(tmp_path / "a.db", timeout=0)) as other, other:
            other.execute("INSERT INTO notes (id) VALUES (1)")
        assert await connection.scalar(count) == 0
        if "qsession_access" in options:
            with pytest.raises(ReadOnlyError):
                await connection.execute(insert(notes), {"id": 2})


async def test_a_damaged_connection_keeps_its_place_in_the_pool(make: Make) -> None:
    """A connection that an error may have damaged while it was idle is not lent, and not lost."""
    engine = make(pool_size=1, max_overflow=0, pool_timeout=0.1)
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    pool: Any = engine.pool
    (record,) = pool._pool
    record.dbapi_connection.suspect = True
    raw = engine.sync_engine.raw_connection()
    with pytest.raises(QSessionError, match="driver_connection"):
        _ = raw.driver_connection
    raw.close()
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
