"""Settings, temporary tables and attached databases are of the connection that made them."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
from contextlib import closing, nullcontext

import pytest
from cancelling import (
    PATIENCE,
    READ,
    Bench,
    assert_free,
    connection_threads,
    eventually,
    rows,
    settled,
)
from sqlalchemy import DDL, event, inspect, text
from sqlalchemy.exc import IntegrityError, OperationalError

from qsession import QSessionError, create_async_engine
from qsession.sqlite.transaction import sending
from qsession.sqlite.transaction.kept import Kept
from qsession.testing import When, cancel_at

LEVELS = pytest.mark.parametrize("level", ["SERIALIZABLE", "AUTOCOMMIT"])
ADD = text("INSERT INTO marks (run) VALUES (:run), (:run), (:run)")
ORPHAN = text("INSERT INTO child VALUES (99)")
SHARED = 1
"""What PRAGMA synchronous says where the fsync is ours."""


@pytest.fixture
async def bench(tmp_path):
    """An engine that is found whole after the test, with no connection left."""
    before = connection_threads()
    made = await Bench.ready(tmp_path / "app.db", pool_size=3)
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)
    await eventually(lambda: connection_threads() <= before)


async def write(bench, run):
    """A transaction that adds one mark, and is acknowledged."""
    async with bench.engine.begin() as connection:
        await connection.execute(ADD, {"run": run})
    bench.acknowledged.add(run)


def marks(bench):
    found = [run for (run,) in rows(bench.path, "SELECT run FROM marks ORDER BY id")]
    return list(dict.fromkeys(found))


async def kept(bench, *sqls, level="SERIALIZABLE"):
    """A connection, in no transaction, that has sent ``sqls``."""
    connection = await bench.engine.connect()
    await connection.execution_options(isolation_level=level)
    for sql in sqls:
        await connection.execute(text(sql))
        await connection.commit()
    return connection


async def settings(bench, name):
    """What a PRAGMA says on every connection that others can get."""
    found = set()
    for access in ("write", "read", "read"):
        connection = await bench.engine.connect()
        await connection.execution_options(qsession_access=access)
        await connection.execute(READ)
        found.add((await connection.scalar(text(f"PRAGMA {name}")), connection))
    for _, connection in found:
        await connection.close()
    (value,) = {value for value, _ in found}
    return value


def transaction(connection):
    return connection.sync_connection.connection.transaction


def driver_of(connection):
    """The connection to the file that it has kept; None if it keeps none."""
    lease = transaction(connection)._kept.lease
    return None if lease is None else lease.driver


# Whose settings they are.


@LEVELS
@pytest.mark.parametrize("sql", [text, DDL])
async def test_foreign_keys(bench, level, sql):
    """Who switches them off does so for itself."""
    await bench.engine.dispose()
    event.listen(
        bench.engine.sync_engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=ON")
    )
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
    for _ in range(3):
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


@pytest.mark.parametrize("value", ["OFF", "NORMAL", "FULL"])
async def test_synchronous(bench, value):
    """What somebody loads in a hurry costs nobody else the durability of a commit."""
    number = ["OFF", "NORMAL", "FULL"].index(value)
    mine = await kept(bench, f"PRAGMA synchronous={value}")
    before = bench.engine.stats().syncs
    assert await settings(bench, "synchronous") == SHARED
    assert await mine.scalar(text("PRAGMA synchronous")) == number
    await mine.execute(ADD, {"run": 1})
    await mine.commit()
    assert bench.engine.stats().syncs == before  # SQLite's own, or none
    await mine.close()
    assert await settings(bench, "synchronous") == SHARED
    await write(bench, 2)
    assert bench.engine.stats().syncs == before + 1


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


async def test_a_temporary_table_hides_one_of_the_file(bench):
    """Whoever made it reads its own, however long somebody else writes."""
    async with bench.engine.connect() as mine:
        await mine.execute(text("CREATE TEMP TABLE items (id, value)"))
        await mine.execute(text("INSERT INTO temp.items VALUES (1, 777)"))
        await mine.commit()
        async with bench.engine.begin() as other:
            await other.execute(ADD, {"run": 1})
            assert (await mine.execute(READ)).all() == [(1, 777)]
    bench.acknowledged.add(1)


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


async def test_settings_of_a_reader(bench):
    """They hold until it is closed, over any number of transactions, and for nobody after it."""
    engine = bench.engine.execution_options(qsession_access="read")
    async with engine.connect() as connection:
        await connection.execute(text("PRAGMA cache_size=7"))
        for _ in range(2):
            assert len((await connection.execute(READ)).all()) == 5
            assert await connection.scalar(text("PRAGMA cache_size")) == 7
            await connection.rollback()
        assert await settings(bench, "cache_size") != 7
    assert await settings(bench, "cache_size") != 7


async def test_settings_stay_when_the_ticket_is_taken_away(bench):
    """The log knows nothing of them; the connection does."""
    mine = await kept(bench)
    await mine.execute(text("PRAGMA cache_size=7"))
    assert len((await mine.execute(READ)).all()) == 5
    queue = bench.engine.pool.write_queue.queue
    assert queue.take_away(queue.holder)
    await write(bench, 1)
    assert await settings(bench, "cache_size") != 7
    assert await mine.scalar(text("PRAGMA cache_size")) == 7
    assert len((await mine.execute(READ)).all()) == 5
    await mine.execute(ADD, {"run": 2})
    await mine.commit()
    await mine.close()
    assert bench.engine.stats().validations == 1
    assert marks(bench) == [1, 2]


# What can be set inside of a transaction, and what cannot.


async def test_foreign_keys_behind_a_read(bench):
    """SQLite would silently do nothing: what was read is read again at the first write."""
    async with bench.engine.connect() as connection:
        await connection.execution_options(qsession_access="write")
        await connection.execute(READ)
        await connection.execute(text("PRAGMA foreign_keys=ON"))
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
        await connection.execute(ADD, {"run": 1})
        await connection.commit()
    bench.acknowledged.add(1)
    assert bench.engine.stats().conflicts == 0


async def test_foreign_keys_after_a_write(bench):
    """SQLite would silently do nothing, and a migration would lose rows: an error says so."""
    async with bench.engine.connect() as connection:
        await connection.execute(ADD, {"run": 1})
        with pytest.raises(QSessionError, match="SQLite ignores it inside a transaction"):
            await connection.execute(text("PRAGMA foreign_keys=ON"))
        await connection.execute(text("PRAGMA foreign_keys=OFF"))  # it is off
        await connection.commit()
        await connection.execute(text("PRAGMA foreign_keys=ON"))
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
    bench.acknowledged.add(1)


async def test_foreign_keys_turned_back_and_off_again(bench):
    """What was asked for last holds when the transaction has ended."""
    async with bench.engine.connect() as connection:
        await connection.execute(text("PRAGMA foreign_keys=ON"))
        await connection.execute(ADD, {"run": 1})
        await connection.execute(text("PRAGMA foreign_keys=OFF"))
        await connection.execute(text("PRAGMA foreign_keys=ON"))
        await connection.commit()
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
        await connection.rollback()
        await connection.execute(ADD, {"run": 2})
        await connection.execute(text("PRAGMA foreign_keys=OFF"))
        await connection.commit()
    bench.acknowledged |= {1, 2}
    async with bench.engine.connect() as connection:
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 0


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
async def test_foreign_keys_turned_off_before_a_transaction(bench, begin, caplog):
    """An env.py turns them off for all migrations. Each one turns them off and on: no effect."""
    caplog.set_level(logging.INFO, "qsession")
    await bench.engine.dispose()
    event.listen(
        bench.engine.sync_engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=ON")
    )
    async with bench.engine.connect() as connection:
        for statement in ("COMMIT", "PRAGMA foreign_keys=OFF", begin):
            await connection.execute(text(statement))
        for run in (1, 2):
            await connection.execute(text("PRAGMA foreign_keys=OFF"))
            await connection.execute(ADD, {"run": run})
            await connection.execute(text("PRAGMA foreign_keys=ON"))
            assert "'PRAGMA foreign_keys=ON' has no effect" in caplog.text
            await connection.commit()
            assert await connection.scalar(text("PRAGMA foreign_keys")) == 0
            await connection.commit()
            await connection.execute(text(begin))
        await connection.execute(text("END"))
        await connection.execute(text("PRAGMA foreign_keys=ON"))
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
    bench.acknowledged |= {1, 2}


@pytest.mark.parametrize("now", [0, 1])
@pytest.mark.parametrize(
    "word", ["ON", "off", "yes", "'no'", "True", "false", "0", "1", "2", "-1", "1.5", "full"]
)
async def test_foreign_keys_that_stay_as_they_are(bench, now, word):
    """Behind a write a PRAGMA that changes nothing is no error; SQLite says what a word means."""
    with closing(sqlite3.connect(":memory:")) as stock:
        stock.execute(f"PRAGMA foreign_keys={1 - now}")
        stock.execute(f"PRAGMA foreign_keys={word}")
        stays = stock.execute("PRAGMA foreign_keys").fetchone() == (now,)
    async with bench.engine.connect() as connection:
        await connection.execute(text(f"PRAGMA foreign_keys={now}"))
        await connection.execute(ADD, {"run": 1})
        back = not now  # they are off on a new connection
        allowed = stays or back is False
        with nullcontext() if allowed else pytest.raises(QSessionError, match="autocommit_block"):
            await connection.execute(text(f"PRAGMA foreign_keys={word}"))
        assert await connection.scalar(text("PRAGMA foreign_keys")) == now
        await connection.commit()
    bench.acknowledged.add(1)


async def test_foreign_keys_in_a_snapshot(bench):
    """A reader was promised one snapshot, so it is not ended behind its back."""
    async with bench.engine.connect() as connection:
        await connection.execution_options(qsession_access="read")
        await connection.execute(text("PRAGMA foreign_keys=ON"))
        await connection.execute(READ)
        with pytest.raises(QSessionError, match="Send it as the first statement"):
            await connection.execute(text("PRAGMA foreign_keys=OFF"))
        await connection.execute(text("PRAGMA foreign_keys=ON"))  # it is on
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1


async def test_a_setting_that_fails_ends_nothing(bench, tmp_path):
    """The read transaction that was ended for it is begun again; the database is not to blame."""
    async with bench.engine.connect() as connection:
        await connection.execution_options(qsession_access="write")
        await connection.execute(text("PRAGMA cache_size=7"))
        await connection.execute(READ)
        with pytest.raises(
            OperationalError, match=r"unable to open database: .*missing.b\.db\n"
        ) as told:
            await connection.execute(text(f"ATTACH '{tmp_path}/missing/b.db' AS other"))
        assert "app.db" not in str(told.value.orig)
        await connection.execute(ADD, {"run": 1})
        await connection.commit()
        assert await connection.scalar(text("PRAGMA cache_size")) == 7
    bench.acknowledged.add(1)
    assert marks(bench) == [1]


async def test_attached_after_a_write(bench, tmp_path):
    """SQLite allows it there, but no change of the synchronous level, which is ours."""
    async with bench.engine.connect() as connection:
        await connection.execute(ADD, {"run": 1})
        await connection.execute(text(f"ATTACH '{tmp_path}/other.db' AS other"))
        await connection.execute(text("CREATE TABLE other.copy AS SELECT run FROM marks"))
        await connection.commit()
        assert await connection.scalar(text("SELECT count(*) FROM other.copy")) == 3
    bench.acknowledged.add(1)
    assert rows(tmp_path / "other.db", "SELECT run FROM copy") == [(1,)] * 3
    assert await settings(bench, "synchronous") == SHARED


async def test_a_write_that_fails_before_it_writes(bench):
    """It has no lock: its session may be kept open, and others write meanwhile."""
    for access in ("auto", "write"):
        async with bench.engine.connect() as connection:
            await connection.execution_options(qsession_access=access)
            await connection.execute(READ)
            with pytest.raises(OperationalError, match="no such table"):
                await connection.execute(text("INSERT INTO missing VALUES (1)"))
            with sqlite3.connect(bench.path, timeout=0) as other:
                other.execute("UPDATE items SET value = value")
            other.close()
            await connection.execute(ADD, {"run": 1})
            await connection.rollback()


# What costs a connection.


async def test_what_leaves_nothing_on_a_connection(bench, tmp_path):
    """What only tells, what is about the file, and what SQLAlchemy itself sends."""
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
            "PRAGMA foreign_keys=OFF",  # as it was
            "VACUUM",
            f"VACUUM INTO '{tmp_path}/copy.db'",
        ):
            await connection.execute(text(sql))
            await connection.commit()
            assert driver_of(connection) is None, sql
    assert rows(bench.path, "PRAGMA user_version") == [(5,)]


async def test_pool_events(bench):
    """Each connection is connected and closed once, and however long it is kept."""
    await bench.engine.dispose()
    seen = []
    for name in ("connect", "checkout", "checkin", "close"):
        event.listen(
            bench.engine.sync_engine, name, lambda raw, *_, name=name: seen.append((name, raw))
        )
    mine = await kept(bench, "CREATE TEMP TABLE work (x)", "SELECT 1")
    driver = driver_of(mine)
    await mine.close()
    await eventually(lambda: ("close", driver) in seen)
    of_it = [name for name, raw in seen if raw is driver]
    opening = ["connect", "checkout", "checkin"]  # by the pool, which looks at the database
    assert of_it == [*opening, "checkout", "close"]  # what was invalidated is not checked in
    await bench.engine.dispose()
    opened = [raw for name, raw in seen if name == "connect"]
    assert len(set(opened)) == len(opened)
    assert {raw for name, raw in seen if name == "close"} == set(opened)


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


SET_BACK, CLOSED = "PRAGMA synchronous=OFF", "CREATE TEMP TABLE items (id, value)"


@pytest.mark.parametrize("sql", [SET_BACK, CLOSED])
@pytest.mark.parametrize("at_work", [False, True])
@pytest.mark.parametrize("disposed", [False, True])
@pytest.mark.parametrize("end", [close, cancel, invalidate, detach, at_once, terminate])
async def test_end(bench, end, disposed, at_work, sql):
    """However it ends, nobody else finds what was set, and what was not committed is undone.

    A PRAGMA is set back; a connection with anything else on it is closed.
    """
    mine = await kept(bench, sql)
    driver = driver_of(mine)
    if at_work:
        await mine.execute(ADD, {"run": 9})
    if disposed:
        await bench.engine.dispose()
    await end(mine)
    if sql == CLOSED or disposed:
        await eventually(lambda: not driver.is_open)
    await settled(bench.engine)
    assert_free(bench.path)
    assert await settings(bench, "synchronous") == SHARED
    async with bench.engine.connect() as other:
        assert len((await other.execute(READ)).all()) == 5
    assert marks(bench) == []


@pytest.mark.filterwarnings("ignore:The garbage collector")
@pytest.mark.parametrize("at_work", [False, True])
@pytest.mark.parametrize("sql", [SET_BACK, CLOSED])
async def test_forgotten(bench, at_work, sql):
    """The garbage collector gives back, or closes, what a forgotten connection has kept."""

    async def forget():
        mine = await kept(bench, sql)
        if at_work:
            await mine.execute(ADD, {"run": 9})
        mine.itself = mine  # the collector finds all of it at once
        return driver_of(mine)._connection._thread

    def is_given_back():
        gc.collect()  # again and again: the thread may still refer to its last statement
        return not bench.engine.pool._leases and not (sql == CLOSED and thread.is_alive())

    thread = await forget()
    await eventually(is_given_back)
    await settled(bench.engine)
    assert await settings(bench, "synchronous") == SHARED
    assert marks(bench) == []


async def test_disposed_in_a_transaction(bench):
    """It keeps its connection, which is closed with it."""
    mine = await bench.engine.connect()
    await mine.execute(text("PRAGMA cache_size=7"))
    driver = driver_of(mine)
    await bench.engine.dispose()
    await mine.execute(ADD, {"run": 1})
    await mine.commit()
    assert await mine.scalar(text("PRAGMA cache_size")) == 7
    await mine.close()
    await eventually(lambda: not driver.is_open)
    assert marks(bench) == [1]


async def test_a_connection_that_is_lost(bench, monkeypatch):
    """After an error that its cache may not survive it is closed; what was set is not forgotten.

    Every statement says that it is gone: to go on without it would be to write with other settings.
    """
    mine = await kept(bench, "PRAGMA foreign_keys=ON")
    driver = driver_of(mine)
    with monkeypatch.context() as patched:
        patched.setattr(sending, "execute", fail_with_io_error)
        with pytest.raises(OperationalError, match="disk I/O error"):
            await mine.execute(READ)
    await mine.rollback()
    for _ in range(2):
        with pytest.raises(QSessionError, match="Everything set on it is gone"):
            await mine.execute(ADD, {"run": 1})
        await mine.rollback()
    await mine.close()
    await eventually(lambda: not driver.is_open)
    await write(bench, 2)
    assert marks(bench) == [2]


def fail_with_io_error(raw, statement, report):
    """As a broken disk does; Python 3.10 gives no code."""
    raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.parametrize("when", list(When))
@LEVELS
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
    assert n > 2
    assert marks(bench) == list(range(1, n + 1))


async def test_no_memory_to_take_note(bench, monkeypatch):
    """What was set, and nobody has taken note of, is closed, and not for others to find."""

    def add(*_):
        raise MemoryError

    with monkeypatch.context() as short_of:
        short_of.setattr(Kept, "add", add)
        short_of.setattr(Kept, "let_go", lambda self: self.lease.end())
        connection = await bench.engine.connect()
        with pytest.raises(MemoryError):
            await connection.execute(text("PRAGMA cache_size=7"))
        await connection.close()
    assert await settings(bench, "cache_size") != 7


async def test_many_at_once(bench):
    """Sessions with settings and sessions without take turns, and each has what it has set."""

    async def with_settings(run):
        async with bench.engine.connect() as connection:
            await connection.execute(text(f"PRAGMA cache_size={run}"))
            for number in range(3):
                await connection.execute(ADD, {"run": 10 * run + number})
                await connection.commit()
            assert await connection.scalar(text("PRAGMA cache_size")) == run

    await asyncio.gather(
        *(with_settings(run) for run in range(100, 110)),
        *(write(bench, run) for run in range(200, 230)),
    )
    expected = [10 * run + number for run in range(100, 110) for number in range(3)]
    assert sorted(marks(bench)) == [*range(200, 230), *expected]
    assert (await settings(bench, "cache_size")) not in range(100, 110)


async def test_set_back_by_hand(bench):
    """A setting that is at its first value again has not to be set back, nor to be missed."""
    mine = await kept(bench, "PRAGMA cache_size=7", "PRAGMA foreign_keys=ON")
    before = await settings(bench, "cache_size")
    assert mine.sync_connection.connection.transaction._kept.is_changed
    for sql in (f"PRAGMA cache_size={before}", "PRAGMA foreign_keys=OFF"):
        await mine.execute(text(sql))
    assert not mine.sync_connection.connection.transaction._kept.is_changed
    await mine.close()


async def test_query_only_of_a_listener(bench):
    """An engine that is made to read only does so, whatever text was read before."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{bench.path}")
    event.listen(engine.sync_engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only=ON"))
    async with engine.connect() as connection:
        await connection.execute(text("WITH one AS (SELECT 1) SELECT * FROM one"))
        with pytest.raises(OperationalError, match="query_only is ON; a listener"):
            await connection.execute(ADD, {"run": 1})
        await connection.execute(text("PRAGMA query_only=OFF"))
        await connection.execute(ADD, {"run": 1})
        await connection.commit()
    async with engine.connect() as connection:
        with pytest.raises(OperationalError, match="query_only"):
            await connection.execute(ADD, {"run": 2})
    await engine.dispose()
    assert marks(bench) == [1]
    bench.acknowledged.add(1)


async def test_query_only_that_was_set_back(bench):
    """Text that turns out to write has a transaction, as if query_only had never been set."""
    async with bench.engine.connect() as connection:
        for value in ("ON", "OFF", "ON", "OFF"):
            await connection.execute(text(f"PRAGMA query_only={value}"))
        await connection.execute(
            text("WITH x AS (SELECT 7 AS a) INSERT INTO marks (run) SELECT a FROM x")
        )
        assert bench.engine.stats().holder is not None
        await connection.rollback()
    assert rows(bench.path, "SELECT * FROM marks") == []
