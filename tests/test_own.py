"""Settings, temporary tables and attached databases are of the connection that made them."""

from __future__ import annotations

import asyncio
import gc
import sqlite3

import pytest
from cancelling import (
    PATIENCE,
    READ,
    Bench,
    When,
    assert_free,
    cancel_at,
    connection_threads,
    eventually,
    rows,
    settled,
)
from grouping import (
    ADD,
    AGES,
    Gate,
    check_foreign_keys,
    known_short,
    marks,
    patient,
    ready,
    together,
    write,
)
from sqlalchemy import DDL, event, inspect, text
from sqlalchemy.exc import IntegrityError, OperationalError

from qsession import create_async_engine
from qsession.sqlite import group, running
from qsession.sqlite.driver import setup as preparation

LEVELS = pytest.mark.parametrize("level", ["SERIALIZABLE", "AUTOCOMMIT"])
ORPHAN = text("INSERT INTO child VALUES (99)")


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine that is found whole after the test, with no connection left."""
    before = connection_threads()
    patient(monkeypatch)
    made = await ready(tmp_path / "app.db")
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)
    await eventually(lambda: connection_threads() <= before)


async def kept(bench, *sqls, level="SERIALIZABLE"):
    """A connection, in no transaction, that has sent ``sqls``."""
    connection = await bench.engine.connect()
    await connection.execution_options(isolation_level=level)
    for sql in sqls:
        await connection.execute(text(sql))
        await connection.commit()
    return connection


async def setting(bench, name):
    """What a PRAGMA says in somebody else's transaction that writes."""
    async with bench.engine.connect() as connection:
        await connection.execute(ADD, {"run": 50})
        found = await connection.scalar(text(f"PRAGMA {name}"))
        await connection.rollback()
        return found


def own(connection):
    """The connection to the file that it has kept."""
    return connection.sync_connection.connection.transaction.own


def writer(bench):
    return bench.engine.pool.writer._record.dbapi_connection


# Whose settings they are.


@LEVELS
@pytest.mark.parametrize("sql", [text, DDL])
async def test_foreign_keys(bench, level, sql):
    """Who switches them off does so for itself."""
    await bench.engine.dispose()
    event.listen(bench.engine.sync_engine, "connect", check_foreign_keys)
    async with bench.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE child (p REFERENCES items (id))"))
    mine = await kept(bench, level=level)
    await mine.execute(sql("PRAGMA foreign_keys=OFF"))
    await mine.commit()
    async with bench.engine.connect() as other:
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await other.execute(ORPHAN)
    await mine.execute(ORPHAN)
    await mine.commit()
    assert rows(bench.path, "SELECT * FROM child") == [(99,)]
    await mine.close()
    async with bench.engine.connect() as other:
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await other.execute(ORPHAN)


@LEVELS
async def test_query_only(bench, level):
    """It can still read, and everybody else can write: meanwhile and afterwards."""
    mine = await kept(bench, "PRAGMA query_only=ON", level=level)
    assert len((await mine.execute(READ)).all()) == 5
    await mine.commit()
    with pytest.raises(OperationalError, match="readonly"):
        await mine.execute(ADD, {"run": 9})
    await mine.rollback()
    await write(bench, 1)
    await mine.execute(text("PRAGMA query_only=OFF"))
    await mine.execute(ADD, {"run": 2})
    await mine.commit()
    await mine.close()
    await write(bench, 3)
    assert marks(bench) == [1, 2, 3]


async def test_synchronous(bench):
    """What somebody loads in a hurry costs nobody else the durability of a commit."""
    mine = await kept(bench, "PRAGMA synchronous=OFF")
    assert await setting(bench, "synchronous") == 2
    assert await mine.scalar(text("PRAGMA synchronous")) == 0
    await mine.close()
    assert await setting(bench, "synchronous") == 2


async def work(connection, value):
    """A temporary table of its own, of a name that others use too."""
    await connection.execute(text("CREATE TEMP TABLE work (x)"))
    await connection.execute(text(f"INSERT INTO work VALUES ({value})"))
    await connection.commit()


async def rows_of_work(connection):
    found = (await connection.execute(text("SELECT x FROM work"))).scalars().all()
    await connection.commit()
    return found


@pytest.mark.parametrize("where", ["file", "memory"])
async def test_temporary_tables(bench, where):
    """Two of one name are two tables, and nobody else sees either."""
    engine = bench.engine if where == "file" else create_async_engine("sqlite+aiosqlite://")
    async with engine.connect() as one, engine.connect() as two, engine.connect() as three:
        await work(one, 1)
        await work(two, 2)
        assert (await rows_of_work(one), await rows_of_work(two)) == ([1], [2])
        with pytest.raises(OperationalError, match="no such table"):
            await three.execute(text("SELECT * FROM work WHERE true"))
    if where == "memory":
        await engine.dispose()


async def test_attached_databases(bench, tmp_path):
    """One name may stand for two files."""
    one = await kept(bench, f"ATTACH '{tmp_path}/1.db' AS b", "CREATE TABLE b.t1 (a)")
    two = await kept(bench, f"ATTACH '{tmp_path}/2.db' AS b", "CREATE TABLE b.t2 (a)")
    assert await one.scalar(text("SELECT count(*) FROM t1")) == 0
    await one.commit()
    assert await two.scalar(text("SELECT count(*) FROM t2")) == 0
    for each in (one, two):
        await each.close()
    assert rows(tmp_path / "1.db", "SELECT name FROM sqlite_schema") == [("t1",)]


async def test_functions_on_the_drivers_connection(bench):
    """What an application sets there stays for its connection, however often that only reads."""
    twice = text("SELECT twice(2)")
    mine = await kept(bench)
    raw = await mine.get_raw_connection()
    await raw.driver_connection.create_function("twice", 1, lambda x: 2 * x)
    await mine.commit()
    for _ in range(20):
        assert await mine.scalar(twice) == 4
        await mine.commit()
    again = await mine.get_raw_connection()
    assert again.driver_connection is raw.driver_connection
    await mine.close()
    async with bench.engine.connect() as other:
        with pytest.raises(OperationalError, match="no such function"):
            await other.execute(twice)


async def test_setting_of_a_reader(bench):
    """It holds for one transaction, and the next one on a reader does not have it."""
    engine = bench.engine.execution_options(qsession_access="read")
    sizes = []
    for sql in ("PRAGMA cache_size=7", "SELECT 1"):
        async with engine.connect() as connection:
            await connection.execute(text(sql))
            sizes.append(await connection.scalar(text("PRAGMA cache_size")))
    assert sizes[0] == 7 != sizes[1]


async def test_suspension_keeps_settings(bench):
    """The log knows nothing of them; the connection does."""
    mine = await kept(bench)
    await mine.execute(text("PRAGMA cache_size=7"))
    assert len((await mine.execute(READ)).all()) == 5
    bench.engine.pool.writer.queue.holder.owner.suspend()
    await write(bench, 1)
    assert await setting(bench, "cache_size") != 7
    assert await mine.scalar(text("PRAGMA cache_size")) == 7
    assert len((await mine.execute(READ)).all()) == 5
    await mine.close()
    assert bench.engine.stats().replays == 1


# What costs a connection.


async def test_what_costs_no_connection(bench, tmp_path):
    """What only tells, what is about the file, and what SQLAlchemy itself sends."""
    opened = []
    event.listen(bench.engine.sync_engine, "connect", lambda raw, _: opened.append(raw))
    await write(bench, 1)
    before = writer(bench)
    async with bench.engine.connect() as connection:
        await connection.run_sync(lambda sync: inspect(sync).get_multi_columns())
        await connection.run_sync(lambda sync: inspect(sync).get_multi_indexes())
        await connection.run_sync(lambda sync: inspect(sync).get_temp_table_names())
        await connection.rollback()
        for sql in (
            "PRAGMA user_version=5",
            "PRAGMA application_id=5",
            "PRAGMA journal_mode=WAL",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "PRAGMA optimize",
            "PRAGMA incremental_vacuum(5)",
            "PRAGMA foreign_keys",
            "PRAGMA table_info(items)",
            "VACUUM",
            f"VACUUM INTO '{tmp_path}/copy.db'",
        ):
            await connection.execute(text(sql))
            await connection.commit()
    assert writer(bench) is before
    assert len(opened) <= 1  # a reader
    assert rows(bench.path, "PRAGMA user_version") == [(5,)]


async def test_pool_events(bench):
    """Each transaction is a checkout and a checkin; each connection is opened and closed once."""
    await bench.engine.dispose()
    seen = []
    for name in ("connect", "checkout", "checkin", "close"):
        event.listen(
            bench.engine.sync_engine, name, lambda raw, *_, name=name: seen.append((name, raw))
        )
    mine = await kept(bench, "PRAGMA cache_size=7", "SELECT 1")
    driver = own(mine).driver
    await mine.close()
    of_it = [name for name, raw in seen if raw is driver]
    assert of_it == ["connect", "checkout", "checkin", "checkout", "checkin", "close"]
    await bench.engine.dispose()
    opened = [raw for name, raw in seen if name == "connect"]
    assert len(opened) == 2
    assert {raw for name, raw in seen if name == "close"} == set(opened)


# Groups.


async def test_between_the_members_of_a_group(bench, monkeypatch):
    """Their COMMIT is made before it begins, and it opens no group: nothing meets a lock."""
    monkeypatch.setattr(running, "BUSY_RETRY", AGES)
    mine = await kept(bench, "PRAGMA cache_size=7")
    known_short(bench, ADD)
    found = []

    async def member():
        await mine.execute(ADD, {"run": 2})
        found.append(marks(bench))
        await mine.commit()
        found.append(marks(bench))
        bench.acknowledged.add(2)

    outcomes = await together(bench, write(bench, 1), member(), write(bench, 3), write(bench, 4))
    assert outcomes == [None] * 4
    assert found == [[0, 1], [0, 1, 2]]
    assert marks(bench) == [0, 1, 2, 3, 4]
    assert bench.engine.stats().groups == 2
    await mine.close()


@pytest.mark.parametrize("keep", [True, False])
async def test_a_member_takes_the_connection_along(bench, keep):
    """It leaves its group, which is committed there; the next ones write on another connection."""
    before = writer(bench)

    async def member():
        async with bench.engine.connect() as connection:
            await connection.execute(ADD, {"run": 2})
            await connection.execute(text("CREATE TEMP TABLE work AS SELECT 2 AS x"))
            assert own(connection).driver is before
            assert marks(bench) == [0, 1]
            await (connection.commit() if keep else connection.rollback())

    outcomes = await together(bench, write(bench, 1), member(), write(bench, 3), write(bench, 4))
    assert outcomes == [None] * 4
    assert marks(bench) == [0, 1, *[2] * keep, 3, 4]
    assert writer(bench) is not before


async def test_cancelled_while_the_group_is_committed(bench, monkeypatch):
    """Whoever waits for the COMMIT of others before it begins can be cancelled; they cannot."""
    mine = await kept(bench, "PRAGMA cache_size=7")
    gate = Gate(monkeypatch, group, "_commit")
    started = asyncio.create_task(together(bench, write(bench, 1), mine.execute(ADD, {"run": 2})))
    await gate.is_reached()
    holder = bench.engine.pool.writer.queue.holder.owner
    assert holder.own is own(mine)
    holder.task.cancel()
    gate.opened.set()
    first, second = await asyncio.wait_for(started, PATIENCE)
    assert first is None
    assert isinstance(second, asyncio.CancelledError)
    await mine.close()
    assert marks(bench) == [0, 1]


# The end.


async def close(connection):
    await connection.close()


async def cancel(connection):
    """In the middle of a transaction."""
    task = asyncio.current_task()
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await connection.execute(text("SELECT count(*) FROM items, items b, items c"))
        await asyncio.sleep(PATIENCE)
    if hasattr(task, "uncancel"):
        task.uncancel()
    await connection.close()


async def invalidate(connection):
    await connection.invalidate()
    await connection.rollback()
    assert (await connection.execute(READ)).all()  # SQLAlchemy connects again
    await connection.close()


async def detach(connection):
    await connection.run_sync(lambda sync: sync.connection.detach())
    await connection.close()


async def at_once(connection):
    """As from ``engine.raw_connection()``, without waiting."""
    connection.sync_connection.connection.close()
    await connection.close()


async def terminate(connection):
    connection.sync_connection.connection.terminate()
    await connection.close()


@pytest.mark.parametrize("at_work", [False, True])
@pytest.mark.parametrize("disposed", [False, True])
@pytest.mark.parametrize("end", [close, cancel, invalidate, detach, at_once, terminate])
async def test_end(bench, end, disposed, at_work):
    """However it ends, its connection to the file is closed, and what was not committed undone."""
    mine = await kept(bench, "PRAGMA synchronous=OFF")
    driver = own(mine).driver
    if at_work:
        await mine.execute(ADD, {"run": 9})
    if disposed:
        await bench.engine.dispose()
    await end(mine)
    await eventually(lambda: not driver.is_open)
    await settled(bench.engine)
    assert_free(bench.path)
    assert await setting(bench, "synchronous") == 2
    assert marks(bench) == []


@pytest.mark.filterwarnings("ignore:The garbage collector")
@pytest.mark.parametrize("at_work", [False, True])
async def test_forgotten(bench, at_work):
    """The garbage collector closes what a forgotten connection has kept."""

    async def forget():
        mine = await kept(bench, "PRAGMA synchronous=OFF")
        if at_work:
            await mine.execute(ADD, {"run": 9})
        mine.itself = mine  # the collector finds all of it at once
        return own(mine).driver._connection._thread

    thread = await forget()
    gc.collect()
    await eventually(lambda: not thread.is_alive())
    await settled(bench.engine)
    assert await setting(bench, "synchronous") == 2
    assert marks(bench) == []


async def test_disposed_in_a_transaction(bench):
    """The connection that replaces it in a writer that is disposed of is closed as well."""
    mine = await bench.engine.connect()
    await mine.execute(text("PRAGMA cache_size=7"))
    old = bench.engine.pool.writer
    replacement = writer(bench)
    await bench.engine.dispose()
    await mine.execute(ADD, {"run": 1})
    await mine.commit()
    await eventually(lambda: not replacement.is_open)
    assert not old.is_open
    assert await mine.scalar(text("PRAGMA cache_size")) == 7
    await mine.close()
    assert marks(bench) == [1]


async def test_broken(bench):
    """After an error that its cache may not survive it is closed, and what was set is gone."""
    mine = await kept(bench, "PRAGMA cache_size=7")
    driver = own(mine).driver
    await mine.execute(ADD, {"run": 1})
    driver.suspect = True
    await mine.rollback()
    await eventually(lambda: not driver.is_open)
    assert await mine.scalar(text("PRAGMA cache_size")) != 7
    await mine.execute(ADD, {"run": 2})
    await mine.commit()
    await mine.close()
    assert marks(bench) == [2]


# What goes wrong on the way there.


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("level", ["SERIALIZABLE", "AUTOCOMMIT"])
async def test_cancelled_anywhere(bench, level, when):
    """Wherever the task is cancelled, nobody else is bound by what it was about to set."""

    async def use():
        connection = await bench.engine.connect()
        try:
            await connection.execution_options(isolation_level=level)
            await connection.execute(text("PRAGMA query_only=ON"))
            await connection.execute(READ)
            await connection.commit()
        finally:
            await connection.close()

    over, n = False, 0
    while not over:
        n += 1
        over = await cancel_at(use(), n, when)
        await settled(bench.engine)
        await write(bench, n)
    assert n > 5
    assert marks(bench) == list(range(1, n + 1))


async def test_no_other_connection_can_be_opened(bench):
    """The statement fails and nothing was set; everything else goes on."""
    mine = await kept(bench)
    before = writer(bench)

    def fail(raw, record):
        raise sqlite3.OperationalError("too many open files")

    event.listen(bench.engine.sync_engine, "connect", fail)
    with pytest.raises(OperationalError, match="too many"):
        await mine.execute(text("PRAGMA query_only=ON"))
    await mine.rollback()
    await write(bench, 1)
    event.remove(bench.engine.sync_engine, "connect", fail)
    assert writer(bench) is before
    assert own(mine) is None
    await mine.close()


async def test_invalidated_while_another_one_is_opened(bench, monkeypatch):
    """The connection is somebody else's by then, and stays so."""
    mine = await kept(bench)
    before = writer(bench)
    gate = Gate(monkeypatch, preparation, "prepare")
    task = asyncio.create_task(mine.execute(text("PRAGMA query_only=ON")))
    await gate.is_reached()
    mine.sync_connection.connection.invalidate(asyncio.CancelledError())
    gate.opened.set()
    with pytest.raises(Exception, match="ended elsewhere"):
        await task
    await write(bench, 1)
    assert writer(bench) is before
    await mine.close()


async def test_many_at_once(tmp_path, monkeypatch):
    """Sessions with settings and sessions without take turns, and each has what it has set."""
    patient(monkeypatch)
    bench = await Bench.ready(tmp_path / "app.db")

    async def with_settings(run):
        async with bench.engine.connect() as connection:
            await connection.execute(text(f"PRAGMA cache_size={run}"))
            for _ in range(3):
                await connection.execute(ADD, {"run": run})
                await connection.commit()
            assert await connection.scalar(text("PRAGMA cache_size")) == run

    await asyncio.gather(
        *(with_settings(run) for run in range(100, 110)),
        *(write(bench, run) for run in range(200, 230)),
    )
    assert sorted(marks(bench)) == [*range(100, 110), *range(200, 230)]
    assert (await setting(bench, "cache_size")) not in range(100, 110)
    await bench.engine.dispose()
    assert_free(bench.path)
