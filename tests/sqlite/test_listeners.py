"""Listeners that applications have: on connections, on transactions, on statements."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from engines import Make, metadata, notes
from sqlalchemy import Engine, event, func, insert, select, text
from sqlalchemy.exc import (
    DisconnectionError,
    IntegrityError,
    InvalidatePoolError,
    InvalidRequestError,
    OperationalError,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import Pool

from qsession import QueuedAsyncEngine

READ = {"qsession_access": "read"}
WRITE = {"qsession_access": "write"}


async def create(engine: QueuedAsyncEngine) -> None:
    """The table of these tests, with one row."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(notes), {"id": 1})


async def scalar(engine: QueuedAsyncEngine, options: dict[str, str], statement: Any) -> Any:
    """One value, read as the options say."""
    async with engine.connect() as connection:
        return await connection.scalar(statement, execution_options=options)


async def test_connect_listeners_run_on_every_connection(make: Make) -> None:
    """PRAGMA and create_function of a listener hold on all of them."""
    engine = make()

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA cache_size=-1234")
        cursor.close()
        connection.create_function("twice", 1, lambda value: value * 2)
        connection.isolation_level = "IMMEDIATE"

    for options in (READ, WRITE):
        assert await scalar(engine, options, text("PRAGMA foreign_keys")) == 1
        assert await scalar(engine, options, text("PRAGMA cache_size")) == -1234
        assert await scalar(engine, options, select(func.twice(21))) == 42
    await create(engine)


async def test_a_listener_that_keeps_the_file_to_itself_is_refused(make: Make) -> None:
    """Its second connection would read what is no longer so: the error says what to take out."""
    engine = make()

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA locking_mode=EXCLUSIVE")
        cursor.close()

    with pytest.raises(OperationalError, match=r"locking_mode=EXCLUSIVE.*remove it"):
        await create(engine)


@pytest.mark.parametrize("target", [Engine, Pool])
async def test_listeners_on_classes(make: Make, target: type[Any]) -> None:
    """The usual recipe, a listener on the class Engine, is heard."""

    def connect(connection: Any, record: object) -> None:
        connection.execute("PRAGMA foreign_keys=ON")

    event.listen(target, "connect", connect)
    try:
        engine = make()
        for options in (READ, WRITE):
            assert await scalar(engine, options, text("PRAGMA foreign_keys")) == 1
    finally:
        event.remove(target, "connect", connect)


async def test_pool_events_come_in_pairs(make: Make) -> None:
    """Each physical connection is connected and closed once, and checked in as often as out."""
    engine = make()
    seen: list[str] = []
    for name in ("first_connect", "connect", "checkout", "checkin", "close"):
        event.listen(engine.sync_engine, name, lambda *_, name=name: seen.append(name))
    await create(engine)
    for _ in range(3):
        assert await scalar(engine, READ, select(notes.c.id)) == 1
    await engine.dispose()
    assert seen.count("first_connect") == 1
    assert seen.count("connect") == seen.count("close") == 2
    assert seen.count("checkout") == seen.count("checkin") >= 4


async def test_do_connect_listener(make: Make) -> None:
    """A listener may see and change what a connection is opened with."""
    engine = make()
    seen: list[dict[str, Any]] = []

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
        options["cached_statements"] = 5
        seen.append(options)

    await create(engine)
    assert seen


async def test_statements_of_ours_are_not_shown(make: Make) -> None:
    """Listeners see what the application sent and began, and nothing of ours."""
    engine = make()
    await create(engine)
    seen: list[str] = []
    for name in ("begin", "commit", "rollback", "savepoint", "release_savepoint"):
        event.listen(engine.sync_engine, name, lambda *_, name=name: seen.append(name))
    for name in ("before_cursor_execute", "after_cursor_execute"):
        event.listen(
            engine.sync_engine,
            name,
            lambda conn, cursor, sql, *_, name=name: seen.append(f"{name[:6]} {sql[:6]}"),
        )
    async with AsyncSession(engine) as session:
        await session.execute(select(notes.c.id).execution_options(**READ))
        async with engine.begin() as other:
            await other.execute(insert(notes), {"id": 2})
        await session.rollback()
        await session.execute(select(notes.c.id))
        await session.begin_nested()
        await session.execute(insert(notes), {"id": 3})
        await session.commit()

    def sent(word: str) -> list[str]:
        return [f"before {word}", f"after_ {word}"]

    assert seen == [
        *("begin", *sent("SELECT"), "begin", *sent("INSERT"), "commit", "rollback"),
        *("begin", *sent("SELECT"), "savepoint", *sent("SAVEPO"), *sent("INSERT")),
        *("release_savepoint", *sent("RELEAS"), "commit"),
    ]


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE", "begin exclusive transaction"])
async def test_begin_by_a_listener(make: Make, begin: str) -> None:
    """The well-known recipe for pysqlite, which sends its own BEGIN, changes nothing."""
    engine = make()

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def emit(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    await create(engine)
    async with AsyncSession(engine) as session:
        await session.execute(insert(notes), {"id": 2})
        await session.rollback()
        async with session.begin_nested():
            await session.execute(insert(notes), {"id": 3})
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                await session.execute(insert(notes), {"id": 1})
        await session.commit()
        assert (await session.scalars(select(notes.c.id))).all() == [1, 3]
    assert engine.stats().holder is None


async def test_do_execute_and_handle_error(make: Make) -> None:
    """A listener may execute a statement itself, and sees the errors of the driver."""
    engine = make()
    seen: list[str] = []

    @event.listens_for(engine.sync_engine, "do_execute")
    def execute(cursor: Any, sql: str, parameters: Any, context: Any) -> bool:
        cursor.execute(sql, parameters)
        return True

    @event.listens_for(engine.sync_engine, "handle_error")
    def error(context: Any) -> None:
        seen.append(type(context.original_exception).__name__)
        assert not context.is_disconnect

    await create(engine)
    with pytest.raises(IntegrityError):
        await create(engine)
    assert seen == ["IntegrityError"]
    assert await scalar(engine, READ, select(func.count()).select_from(notes)) == 1


@pytest.mark.parametrize("factory", [bytes, lambda found: found.decode().upper()])
async def test_factories_of_a_listener(make: Make, tmp_path: Path, factory: Any) -> None:
    """Whatever texts and rows are made of: writers take turns, and a file that is gone is seen."""
    engine = make()

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.driver_connection.text_factory = factory
        connection.driver_connection.row_factory = lambda cursor, row: tuple(reversed(row))

    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (a, b)"))
        rows = await connection.execute(text("SELECT 'x', 1"))
        assert rows.all() == [(1, factory(b"x"))]
    assert (tmp_path / "a.db-qsession").exists()
    for end in ("", "-wal", "-shm"):
        (tmp_path / f"a.db{end}").unlink()
    with pytest.raises(OperationalError, match="was deleted while it was open"):
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO t VALUES (1, 2)"))


@pytest.mark.parametrize("error", [DisconnectionError, InvalidatePoolError])
async def test_checkout_listener_finds_the_connection_stale(
    make: Make, error: type[DisconnectionError]
) -> None:
    """It is opened anew, as SQLAlchemy's own pool does, twice at the most."""
    engine = make()
    await create(engine)
    opened: list[object] = []
    stale: list[None] = []
    event.listen(engine.sync_engine, "connect", lambda connection, _: opened.append(connection))

    @event.listens_for(engine.sync_engine, "checkout")
    def checkout(connection: Any, record: object, proxied: object) -> None:
        if stale:
            stale.pop()
            raise error("stale")

    for key, options in ((2, WRITE), (3, READ)):
        stale.append(None)
        assert await scalar(engine, options, select(func.max(notes.c.id))) == key - 1
        async with engine.begin() as connection:
            await connection.execute(insert(notes), {"id": key})
    assert len(opened) >= 2
    stale.extend([None, None])
    with pytest.raises(InvalidRequestError, match="This connection is closed"):
        await scalar(engine, WRITE, select(notes.c.id))
    assert await scalar(engine, WRITE, select(func.max(notes.c.id))) == 3
    assert engine.stats().holder is None


async def test_checkin_listener_fails(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A commit that is durable does not raise for it: the log says what happened."""
    engine = make()
    await create(engine)

    @event.listens_for(engine.sync_engine, "checkin")
    def checkin(connection: Any, record: object) -> None:
        raise ValueError("of the listener")

    for key in (2, 3):
        async with engine.begin() as connection:
            await connection.execute(insert(notes), {"id": key})
    assert "of the listener" in caplog.text
    event.remove(engine.sync_engine, "checkin", checkin)
    assert await scalar(engine, WRITE, select(func.max(notes.c.id))) == 3
    assert engine.stats().holder is None


@pytest.mark.parametrize(
    ("name", "sql"), [("checkin", "SELECT 1"), ("invalidate", "CREATE TEMPORARY TABLE mine (id)")]
)
async def test_a_listener_that_fails_costs_no_connection(make: Make, name: str, sql: str) -> None:
    """The pool has as many connections as before, one for reading and one for the writer."""
    engine = make(pool_size=1, max_overflow=0, pool_timeout=0.1)
    await create(engine)

    def fails(*args: Any) -> None:
        raise ValueError("of the listener")

    event.listen(engine.sync_engine, name, fails)
    for _ in range(3):
        with suppress(ValueError):
            async with engine.connect() as connection:
                await connection.execute(text(sql))
    event.remove(engine.sync_engine, name, fails)
    async with engine.connect() as connection, connection.stream(select(notes)) as result:
        await result.fetchone()
        async with engine.begin() as another:
            await another.execute(insert(notes), {"id": 2})
    assert engine.pool.checkedout() == 0


async def test_a_listener_that_is_cancelled_costs_no_connection(make: Make) -> None:
    """It runs a statement when the connection goes back, and its task is cancelled there."""
    engine = make(pool_size=1, max_overflow=0, pool_timeout=0.1)
    await create(engine)
    inside: list[asyncio.Task[Any] | None] = []

    def checkin(connection: Any, record: object) -> None:
        if connection is not None:
            task = asyncio.current_task()
            inside.append(task)
            assert task is not None
            task.cancel()
            connection.cursor().execute("SELECT 1")

    async def write(key: int) -> None:
        async with engine.begin() as connection:
            await connection.execute(insert(notes), {"id": key})

    event.listen(engine.sync_engine, "checkin", checkin)
    for key in (2, 3):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(write(key))
    event.remove(engine.sync_engine, "checkin", checkin)
    assert len(inside) == 2
    await write(4)
    assert await scalar(engine, READ, select(func.max(notes.c.id))) == 4
    assert engine.pool.checkedout() == 0


@pytest.mark.parametrize("options", [READ, WRITE])
async def test_function_that_waits_for_the_loop(make: Make, options: dict[str, str]) -> None:
    """With inline=False no statement runs on the loop, so a function may ask it for something."""
    engine = make(inline=False)
    await create(engine)
    loop = asyncio.get_running_loop()

    async def double(value: int) -> int:
        await asyncio.sleep(0)
        return 2 * value

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.create_function(
            "ask", 1, lambda value: asyncio.run_coroutine_threadsafe(double(value), loop).result(9)
        )

    await engine.dispose()
    for _ in range(3):
        assert await scalar(engine, options, select(func.ask(21))) == 42
