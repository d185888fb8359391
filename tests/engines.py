"""Engines for the tests of the drop-in: one file, many ways to open it."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import JSON, Column, Integer, MetaData, Table, func, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    async_sessionmaker,
)

from qsession import QueuedAsyncEngine
from qsession.config import Settings
from qsession.sqlite.pool import WriteQueuePool

Make = Callable[..., QueuedAsyncEngine]

metadata = MetaData()
notes = Table("notes", metadata, Column("id", Integer, primary_key=True), Column("body", JSON))


def settings(engine: AsyncEngine) -> Settings:
    """The settings that an engine goes by."""
    pool = engine.sync_engine.pool
    assert isinstance(pool, WriteQueuePool)
    return pool.settings


async def works(engine: AsyncEngine) -> None:
    """Write and read through the write queue, and see that it was used."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)
        await connection.execute(notes.insert(), {"id": 1, "body": {}})
    async with async_sessionmaker(engine)() as session:
        assert await session.scalar(select(func.count()).select_from(notes)) == 1
    pool = engine.sync_engine.pool
    assert isinstance(pool, WriteQueuePool)
    assert pool.stats().commits == 1
