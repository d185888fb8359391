"""The server goes away under load and comes back: what was in flight fails, the rest waits."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from own_postgresql import OwnPostgresql, own_postgresql
from server_load import Attempts, Load, metadata, notes
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from qsession import QueueTimeout, create_async_engine
from qsession.session.maker import SessionMaker

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgresql]:
    """A PostgreSQL that may be stopped."""
    with own_postgresql() as running:
        yield running


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_under_load(server: OwnPostgresql, driver: str, mode: str) -> None:
    """Nothing acknowledged is lost, all errors are the database's, one task at a time knocks."""
    engine = create_async_engine(server.url(driver), max_size=8, queue_timeout=20)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)
    load = Load(SessionMaker(bind=engine))
    attempts = Attempts(engine.sync_engine.pool)
    tasks = [asyncio.create_task(load.work()) for _ in range(20)]
    await load.until(lambda: len(load.acknowledged) >= 100)
    await asyncio.to_thread(server.stop, mode)
    await load.until(lambda: attempts.made >= 3)
    before = len(load.acknowledged)
    await asyncio.to_thread(server.start)
    await load.until(lambda: len(load.acknowledged) >= before + 100)
    load.over = True
    await asyncio.wait_for(asyncio.gather(*tasks), 60)

    assert load.errors
    for error in load.errors:
        assert isinstance(error, DBAPIError | QueueTimeout), repr(error)
    lost = [each for each in load.errors if getattr(each, "connection_invalidated", False)]
    assert lost
    for each in lost:
        assert "connection to the server was lost" in str(each), (repr(each), each.__cause__)
    assert attempts.most == 1
    async with engine.connect() as connection:
        found = set(await connection.scalars(select(notes.c.id)))
    assert load.acknowledged <= found
    unknown = [each for each in load.errors if "is not known" in str(each)]
    assert len(found - load.acknowledged) <= len(unknown)
    assert engine.stats().in_use == 0
    await engine.dispose()
    gc.collect()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_no_server_is_a_clear_error_at_once(server: OwnPostgresql, driver: str) -> None:
    """Where nobody listens the first attempt fails at once, with SQLAlchemy's error."""
    engine = create_async_engine(f"postgresql+{driver}://nobody@127.0.0.1:1/none")
    with pytest.raises(DBAPIError, match=r"refused|Connect call failed"):
        async with engine.connect():
            pass
    assert engine.stats().in_use == 0
    await engine.dispose()


async def test_min_size_is_kept_over_a_restart(server: OwnPostgresql) -> None:
    """After a restart the connections that are kept open are opened again with the first use."""
    engine = create_async_engine(server.url("asyncpg"), min_size=3)
    await engine.fill()
    await asyncio.to_thread(server.stop, "fast")
    await asyncio.to_thread(server.start)
    with pytest.raises(DBAPIError, match="connection to the server was lost"):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await engine.fill()
    assert engine.stats().size == 3
    await engine.dispose()
