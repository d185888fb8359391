"""Events of the queue: on SQLite for the ticket, on a server for a connection."""

from __future__ import annotations

import asyncio

import pytest
from cancelling import eventually
from contract_tables import Database
from sqlalchemy import text

from qsession import QueueTimeout, create_async_engine, events


@pytest.mark.servers
async def test_a_wait_for_a_connection_is_told(database: Database) -> None:
    """One that is granted, and one that ends in QueueTimeout."""
    told: list[events.Event] = []
    engine = create_async_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=60)

    async def waits() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    unsubscribe = events.subscribe(told.append)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            task = asyncio.create_task(waits())
            await eventually(lambda: engine.stats().waiting == 1)
        await task
        (wait,) = told
        assert isinstance(wait, events.ConnectionWait)
        assert wait.outcome == "granted"
        assert wait.seconds > 0
        assert " at " in wait.database
        engine.pool._timeout = 0.01  # type: ignore[attr-defined]
        async with engine.connect():
            with pytest.raises(QueueTimeout):
                await waits()
        assert told[-1].outcome == "timeout"  # type: ignore[attr-defined]
    finally:
        unsubscribe()
        await engine.dispose()
