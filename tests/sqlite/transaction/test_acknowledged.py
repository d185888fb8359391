"""What was acknowledged is in the file, whole, and what was rolled back is not.

Each case was once lost, doubled, or kept although it was undone.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections import deque
from contextlib import closing

import pytest
from cancelling import PATIENCE, Bench, assert_free, eventually, rows
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import QSessionError

BLOB = text("INSERT INTO blobs (data) VALUES (:data)")
GET = text("SELECT id, value FROM items ORDER BY id")
RETURNING = text("INSERT INTO blobs (data) VALUES ('x') RETURNING id")
SCHEMA = """
    CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB);
    CREATE TABLE parents (id INTEGER PRIMARY KEY);
    CREATE TABLE children (parent REFERENCES parents);
"""


@pytest.fixture
async def bench(tmp_path):
    """An engine with tables more and checked keys; found whole and free after the test."""
    made = await Bench.ready(tmp_path / "app.db")
    outside = sqlite3.connect(made.path)
    outside.executescript(SCHEMA)
    outside.close()
    await made.engine.dispose()

    @event.listens_for(made.engine.sync_engine, "connect")
    def check_foreign_keys(connection, _):
        connection.execute("PRAGMA foreign_keys=ON")

    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


def writing(bench):
    return bench.engine.execution_options(qsession_access="write")


def holder(bench):
    return bench.engine.pool.write_queue.queue.holder


def blobs(bench):
    return [data for (data,) in rows(bench.path, "SELECT data FROM blobs ORDER BY id")]


async def save(bench, data):
    async with bench.engine.begin() as connection:
        await connection.execute(BLOB, {"data": data})


# Streams.


@pytest.mark.parametrize("end", ["rollback", "close"])
async def test_a_stream_that_writes_is_rolled_back(bench, end):
    """SQLite counts the rows of an INSERT ... RETURNING only when it is read to its end."""
    async with bench.engine.connect() as connection:
        result = await connection.stream(RETURNING)
        assert len(await result.all()) == 1
        if end == "rollback":
            await connection.rollback()
    assert blobs(bench) == []


async def test_the_ticket_of_a_stream_that_writes_is_not_taken_away(bench):
    """It has written, whatever its text begins with."""
    writes = text("WITH n(i) AS (SELECT 'x') INSERT INTO blobs (data) SELECT i FROM n RETURNING id")
    async with bench.engine.connect() as connection:
        await (await connection.stream(writes)).all()
        assert holder(bench).owner.wrote
        assert not bench.engine.pool.write_queue.queue.take_away(holder(bench))
        await connection.commit()
    assert blobs(bench) == ["x"]


@pytest.mark.parametrize("statement", [GET, text("EXPLAIN SELECT 1")])
async def test_a_stream_that_reads_has_not_written(bench, statement):
    """Its ticket can be taken away."""
    async with writing(bench).connect() as connection:
        await (await connection.stream(statement)).all()
        assert not holder(bench).owner.wrote
        assert bench.engine.pool.write_queue.queue.take_away(holder(bench))


# Statements and the end of their transaction.


async def test_rows_of_any_kind(bench):
    """Parameter sets that cannot be sliced, nor counted beforehand, and are rolled back."""
    async with bench.engine.connect() as connection:

        def executemany(sync, sets):
            sync.connection.cursor().executemany("INSERT INTO blobs (data) VALUES (?)", sets)

        await connection.execute(GET)
        await connection.run_sync(executemany, deque([("a",), ("b",)]))
        await connection.rollback()
        assert blobs(bench) == []
        await connection.execute(GET)
        await connection.run_sync(executemany, (row for row in [("a",), ("b",)]))
        await connection.commit()
    assert blobs(bench) == ["a", "b"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_listener_that_ends_a_transaction(bench, end):
    """One of "checkout" has a transaction of its own, and does not end that of the application."""

    @event.listens_for(bench.engine.sync_engine, "checkout")
    def listener(connection, *_):
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
        getattr(connection, end)()

    await asyncio.gather(*(save(bench, number) for number in range(8)))
    assert blobs(bench) == list(range(8))


@pytest.mark.parametrize("by", ["session", "connection"])
async def test_closed_while_its_statement_waits(bench, by):
    """The statement is not run, and its place in the queue is not lost for the next."""
    doing = AsyncSession(bench.engine) if by == "session" else await bench.engine.connect()
    async with bench.engine.begin() as connection:
        await connection.execute(BLOB, {"data": "kept"})
        late = asyncio.create_task(doing.execute(BLOB, {"data": "late"}))
        await eventually(lambda: bench.engine.stats().waiting == 1)
        await doing.close()
    with pytest.raises(QSessionError, match="another task ended"):
        await late
    await doing.close()
    del doing
    gc.collect()
    await asyncio.wait_for(save(bench, "next"), PATIENCE)
    assert blobs(bench) == ["kept", "next"]


async def test_closed_while_it_waits_for_a_connection(bench):
    """The same for the connection that it gets at last: the pool has it back."""
    reading = bench.engine.execution_options(qsession_access="read")
    first = await reading.connect()
    await first.execute(GET)
    second = await reading.connect()
    late = asyncio.create_task(second.execute(GET))
    await eventually(lambda: bench.engine.pool._pool.waiting == 1)
    await second.close()
    await first.close()
    with pytest.raises(QSessionError, match="another task ended"):
        await late
    async with reading.connect() as third:
        await asyncio.wait_for(third.execute(GET), PATIENCE)


async def test_several_tasks_on_one_connection(bench):
    """SQLAlchemy advises against it. They run one by one, and all that they wrote counts."""
    async with bench.engine.connect() as connection:
        await asyncio.gather(*(connection.execute(BLOB, {"data": n}) for n in range(5)))
        await connection.commit()
    assert blobs(bench) == [0, 1, 2, 3, 4]


async def test_a_savepoint_without_a_statement_leaves_nothing(bench):
    """Rolled back, and its transaction too, it is not in the way of the next."""
    async with bench.engine.connect() as connection:
        savepoint = await connection.begin_nested()
        await savepoint.rollback()
        await connection.rollback()
        await connection.execute(text("VACUUM"))


async def test_deferred_checks_last_for_their_transaction(bench):
    """PRAGMA defer_foreign_keys counts from BEGIN to COMMIT (https://sqlite.org/pragma.html)."""
    child = text("INSERT INTO children VALUES (:id)")
    async with bench.engine.connect() as connection:
        await connection.execute(text("PRAGMA defer_foreign_keys=ON"))
        await connection.execute(child, {"id": 5})
        await connection.execute(text("INSERT INTO parents VALUES (5)"))
        await connection.commit()
        with pytest.raises(IntegrityError):
            await connection.execute(child, {"id": 6})
    assert rows(bench.path, "SELECT parent FROM children") == [(5,)]


async def test_a_commit_that_a_deferred_check_refuses(bench):
    """Nothing of it is there, and the next transaction of the same session works."""
    async with AsyncSession(bench.engine) as session:
        await session.execute(text("PRAGMA defer_foreign_keys=ON"))
        await session.execute(BLOB, {"data": "undone"})
        await session.execute(text("INSERT INTO children VALUES (5)"))
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
        await session.execute(BLOB, {"data": "kept"})
        await session.commit()
    assert blobs(bench) == ["kept"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_user_version_is_of_its_transaction(bench, end):
    """SQLite keeps it in the file, and rolls it back as it does a row."""
    async with bench.engine.connect() as connection:
        await connection.execute(text("PRAGMA user_version=7"))
        await getattr(connection, end)()
    assert rows(bench.path, "PRAGMA user_version") == [(7 if end == "commit" else 0,)]


@pytest.mark.parametrize("second", ["BEGIN", "BEGIN IMMEDIATE"])
async def test_a_second_begin_is_refused_and_leaves_nothing(bench, second):
    """SQLite refuses it; the connection goes back without a snapshot, and without the lock."""
    bench.learn()
    async with bench.engine.connect() as connection:
        await connection.execute(text("BEGIN"))
        with pytest.raises(OperationalError, match="within a transaction"):
            await connection.execute(text(second))
    await assert_fresh(bench)


async def test_a_text_refused_behind_begin_leaves_nothing(bench):
    """Its BEGIN has ended before its connection is given back, to wait for the ticket."""
    bench.learn()

    async def write():
        async with bench.engine.connect() as connection:
            await connection.execute(text("BEGIN"))
            await connection.execute(
                text("WITH n(i) AS (SELECT 'x') INSERT INTO blobs (data) SELECT i FROM n")
            )
            await connection.commit()

    async with bench.engine.begin() as connection:
        await connection.execute(BLOB, {"data": "first"})
        late = asyncio.create_task(write())
        await eventually(lambda: bench.engine.stats().waiting == 1)
        async with bench.engine.connect() as other:
            await other.execute(GET)
    await late
    assert blobs(bench) == ["first", "x"]
    await assert_fresh(bench)


async def assert_fresh(bench):
    """Another program can write, and who reads next sees it."""
    with closing(sqlite3.connect(bench.path, timeout=0)) as other, other:
        other.execute("UPDATE items SET value = 99")
    async with bench.engine.connect() as connection:
        assert {row.value for row in await connection.execute(GET)} == {99}


# The driver's connection.


@pytest.mark.parametrize("setting", ["PRAGMA cache_size=100", "CREATE TEMP TABLE own (id)"])
async def test_a_setting_beside_the_driver_s_connection(bench, setting):
    """It commits nothing of what was written before, and what follows can be rolled back."""
    async with bench.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.execute("INSERT INTO blobs (data) VALUES ('a')")
        await connection.execute(text(setting))
        await driver.execute("INSERT INTO blobs (data) VALUES ('b')")
        await connection.rollback()
    assert blobs(bench) == []


async def test_a_driver_s_connection_that_cannot_be_had(bench):
    """No other one can be opened: the ticket is given back."""

    def fail(connection, _):
        raise OSError("too many files")

    async with bench.engine.connect() as connection:
        await connection.execute(GET)
        await connection.rollback()
        event.listen(bench.engine.sync_engine, "connect", fail)
        await bench.engine.dispose()
        with pytest.raises(OSError, match="too many files"):
            await connection.get_raw_connection()
        assert bench.engine.stats().holder is None
    event.remove(bench.engine.sync_engine, "connect", fail)


async def test_a_raw_connection_that_is_cancelled(bench):
    """Nobody has it, so nothing of it is left."""
    async with bench.engine.connect() as connection:
        await connection.execute(BLOB, {"data": "kept"})
        waiting = asyncio.create_task(bench.engine.raw_connection())
        await eventually(lambda: bench.engine.stats().waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await connection.commit()
    assert bench.engine.stats().holder is None
    assert blobs(bench) == ["kept"]
