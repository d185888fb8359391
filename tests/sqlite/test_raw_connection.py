"""What applications reach for beneath SQLAlchemy's connection, and where it is instead."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engines import Make, metadata, notes
from sqlalchemy import event, insert, text

from qsession import QSession, QueuedAsyncEngine


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
