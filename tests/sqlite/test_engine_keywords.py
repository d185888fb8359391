"""Every keyword of SQLAlchemy's own create_async_engine means here what it means there."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from engines import Make, metadata, notes, works
from sqlalchemy import Column, Date, MetaData, Table, select, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine as stock_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, StaticPool
from sqlalchemy.pool.base import ResetStyle

from qsession import create_async_engine, create_engine
from qsession.sqlite import pool


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool])
async def test_pool_classes(make: Make, poolclass: type[Any]) -> None:
    """A pool that knows no queue, as in many test suites, is replaced by one that does."""
    await works(make(poolclass=poolclass))


@pytest.mark.parametrize("poolclass", [AsyncAdaptedQueuePool, NullPool])
async def test_pool_arguments_beside_a_pool_class(make: Make, poolclass: type[Any]) -> None:
    """They are those of the pool that replaces it, also after dispose()."""
    sizes: dict[str, Any] = {}
    if poolclass is not NullPool:  # it has none
        sizes = {"pool_size": 2, "max_overflow": 1, "pool_timeout": 3}
    engine = make(
        poolclass=poolclass,
        pool_recycle=100,
        pool_pre_ping=True,
        pool_reset_on_return="commit",
        **sizes,
    )
    await works(engine)
    for _ in range(2):
        used: Any = engine.pool
        assert (used._recycle, used._pre_ping) == (100, True)
        assert used._reset_on_return is ResetStyle.reset_commit
        if sizes:
            assert (used.size(), used._max_overflow, used.timeout()) == (2, 1, 3)
        await engine.dispose()


async def test_pool_arguments(make: Make) -> None:
    """The arguments of the pool are those of the readers' pool."""
    engine = make(
        pool_size=1,
        max_overflow=1,
        pool_timeout=0.01,
        pool_recycle=100,
        pool_pre_ping=True,
        pool_use_lifo=True,
        pool_reset_on_return="rollback",
        pool_logging_name="readers",
    )
    await works(engine)
    used: Any = engine.pool
    assert (used.size(), used.timeout(), used._max_overflow) == (1, 0.01, 1)
    assert (used._recycle, used._pre_ping, used.logging_name) == (100, True, "readers")
    assert used.status().startswith("Pool size: 1")
    assert "Write ticket: free Writers waiting: 0" in used.status()
    reading = engine.execution_options(qsession_access="read")
    async with reading.connect() as one, reading.connect() as other, reading.connect() as third:
        await one.execute(text("SELECT 1"))
        await other.execute(text("SELECT 1"))
        with pytest.raises(Exception, match="QueuePool limit of size 1 overflow 1 reached"):
            await third.execute(text("SELECT 1"))


async def test_idle_connections_beyond_pool_size(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay for some time, then each transaction that ends closes one, down to pool_size."""
    engine = make(pool_size=1, max_overflow=3)
    reading = engine.execution_options(qsession_access="read")

    async def sizes(readers: int) -> int:
        async with AsyncExitStack() as stack:
            for _ in range(readers):
                connection = await stack.enter_async_context(reading.connect())
                await connection.execute(text("SELECT 1"))
        return engine.stats().size

    assert await sizes(4) == await sizes(1) == 4
    monkeypatch.setattr(pool, "KEEP_IDLE", 0.0)
    assert [await sizes(1) for _ in range(5)] == [3, 2, 1, 1, 1]


async def test_engine_arguments(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """What is about statements and logging goes through SQLAlchemy unchanged."""
    engine = make(
        echo=False,
        echo_pool=False,
        hide_parameters=True,
        logging_name="mine",
        json_serializer=lambda value: json.dumps({"wrapped": value}),
        json_deserializer=lambda value: json.loads(value)["wrapped"],
        execution_options={"mark": 1},
        insertmanyvalues_page_size=2,
        use_insertmanyvalues=True,
        query_cache_size=10,
        label_length=20,
        max_identifier_length=90,
        enable_from_linting=False,
        paramstyle="named",
        future=True,
        isolation_level="SERIALIZABLE",
    )
    with caplog.at_level(logging.INFO, "sqlalchemy.engine.Engine.mine"):
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.execute(notes.insert(), [{"body": n} for n in range(5)])
    assert any(record.name == "sqlalchemy.engine.Engine.mine" for record in caplog.records)
    assert "hidden due to hide_parameters" in caplog.text
    async with engine.connect() as connection:
        assert connection.sync_connection is not None
        assert connection.sync_connection.get_execution_options()["mark"] == 1
        rows = await connection.execute(select(notes.c.body).order_by(notes.c.id))
        assert rows.scalars().all() == list(range(5))
    assert engine.sync_engine.logging_name == "mine"
    assert engine.dialect.label_length == 20


async def test_echo_pool(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """echo_pool logs what the pool does with its connections."""
    engine = make(echo_pool="debug")
    await works(engine)
    async with engine.execution_options(qsession_access="read").connect() as connection:
        await connection.execute(select(1))
    assert "Created new connection" in caplog.text
    assert "being returned to pool" in caplog.text


@pytest.mark.parametrize("poolclass", [None, NullPool])
async def test_the_pool_logs_below_sqlalchemy(
    make: Make, caplog: pytest.LogCaptureFixture, poolclass: type[Any] | None
) -> None:
    """A level that is set on sqlalchemy.pool reaches it, under the name that it was given."""
    engine = make(poolclass=poolclass, pool_logging_name="readers")
    with caplog.at_level(logging.INFO, "sqlalchemy.pool"):
        await works(engine)
        await engine.dispose()
    logged = [each.name for each in caplog.records if "Pool disposed" in each.message]
    assert logged == ["sqlalchemy.pool.impl.WriteQueuePool.readers"]


async def test_native_datetime(make: Make) -> None:
    """native_datetime leaves dates to converters of sqlite3."""
    import sqlite3
    from datetime import date

    sqlite3.register_adapter(date, date.isoformat)
    sqlite3.register_converter("DATE", lambda value: date.fromisoformat(value.decode()))
    engine = make(native_datetime=True, connect_args={"detect_types": sqlite3.PARSE_DECLTYPES})
    days = Table("days", MetaData(), Column("day", Date))
    async with engine.begin() as connection:
        await connection.run_sync(days.create)
        await connection.execute(days.insert(), {"day": date(2024, 2, 29)})
        assert (await connection.execute(select(days))).scalar_one() == date(2024, 2, 29)


async def test_async_creator_is_cancelled(make: Make, tmp_path: Path) -> None:
    """The cancellation is raised, and the connection that came all the same is closed."""
    made: list[Any] = []
    asked, go = asyncio.Event(), asyncio.Event()

    async def creator() -> aiosqlite.Connection:
        asked.set()
        await go.wait()
        made.append(await aiosqlite.connect(tmp_path / "a.db"))
        connection: aiosqlite.Connection = made[0]
        return connection

    task = asyncio.create_task(works(make(async_creator=creator)))
    await asked.wait()
    task.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(made[0]._thread.join, 60)
    assert not made[0]._thread.is_alive()


async def test_async_creator(make: Make, tmp_path: Path) -> None:
    """Connections that the application makes itself get our transaction control."""

    async def creator() -> aiosqlite.Connection:
        return await aiosqlite.connect(tmp_path / "a.db", isolation_level="EXCLUSIVE")

    engine = make(async_creator=creator)
    await works(engine)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(notes.insert(), {"id": 2})
        assert len((await connection.execute(select(notes.c.id))).all()) == 2


@pytest.mark.parametrize(
    "option",
    [
        {"qsession_access": "raed"},
        {"qsession_access": None},
        {"qsession_priority": "high"},
        {"qsession_priority": None},
    ],
)
async def test_wrong_options(make: Make, option: dict[str, Any]) -> None:
    """They are refused where they are used: a wrong priority would stop the queue for all."""
    engine = make()
    (name,) = option
    for isolation in ("SERIALIZABLE", "AUTOCOMMIT"):
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level=isolation, **option)
            with pytest.raises(ArgumentError, match=f"{name}={option[name]!r}"):
                await connection.execute(text("SELECT 1"))
            await connection.execution_options(qsession_access="read", qsession_priority=0)
            assert await connection.scalar(text("SELECT 1")) == 1
    await works(engine)


async def test_a_misspelt_option_of_a_statement(make: Make) -> None:
    """It is refused with the first statement of a transaction, whose options count for all."""
    engine = make()
    statement = text("SELECT 1").execution_options(qsession_acces="read")
    async with engine.connect() as connection:
        with pytest.raises(ArgumentError, match="'qsession_acces' is not an execution option"):
            await connection.execute(statement)
        assert await connection.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("create", [create_async_engine, create_engine, stock_engine])
def test_a_misspelt_parameter_of_the_url(tmp_path: Path, create: Any) -> None:
    """A setting that is spelt wrong would have no effect. A keyword is SQLAlchemy's TypeError."""
    url = f"sqlite+qsession:///{tmp_path}/app.db"
    with pytest.raises(ArgumentError, match="'queue_timout' is not a setting of qsession"):
        create(f"{url}?queue_timout=1")
    with pytest.raises(TypeError, match="'queue_timout'"):
        create(url, queue_timout=1)
