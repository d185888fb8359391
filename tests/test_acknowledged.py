"""What was acknowledged is in the file, whole, and what was rolled back is not.

Each case was once lost, doubled, or kept although it was undone.
"""

from __future__ import annotations

import asyncio
import gc
from array import array
from collections import deque

import pytest
from cancelling import PATIENCE, assert_free, eventually, rows
from grouping import (
    COUNT,
    check_foreign_keys,
    known_short,
    patient,
    ready_with,
    together,
    waiters,
    write,
)
from sqlalchemy import column, event, insert, table, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import ConflictError, GroupAborted, QSessionError
from qsession.sqlite import log as logs
from qsession.sqlite.transaction.prediction import READ_ONLY_RUNS

BLOB = text("INSERT INTO blobs (data) VALUES (:data)")
PUT = text("UPDATE items SET value = :value WHERE id = :id")
GET = text("SELECT id, value FROM items ORDER BY id")
CHILD = text("INSERT INTO children (parent) VALUES (99)")
CHILDREN = text("SELECT count(*) FROM children")
RETURNING = text("INSERT INTO blobs (data) VALUES ('x') RETURNING id")
SCHEMA = """
    CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB);
    CREATE TABLE parents (id INTEGER PRIMARY KEY);
    CREATE TABLE children (parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
"""
WRITE = {"qsession_access": "write"}


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine whose groups are patient, with tables more; found whole and free after the test."""
    patient(monkeypatch)
    made = await ready_with(tmp_path / "app.db", SCHEMA)
    event.listen(made.engine.sync_engine, "connect", check_foreign_keys)
    known_short(made, "INSERT INTO blobs (data) VALUES (?)", GET, CHILD, CHILDREN, RETURNING)
    known_short(made, "UPDATE items SET value = ? WHERE id = ?")
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


def writing(bench):
    return bench.engine.execution_options(**WRITE)


def blobs(bench):
    return [data for (data,) in rows(bench.path, "SELECT data FROM blobs ORDER BY id")]


@pytest.mark.parametrize("limit", ["bytes", "statements"])
async def test_a_first_write_that_outgrows_the_log_in_a_group(bench, monkeypatch, limit):
    """It leaves the group to be replayed, and is committed for all that."""
    if limit == "statements":
        monkeypatch.setattr(logs, "MAX_STATEMENTS", 1)
    data = b"x" * (logs.MAX_BYTES + 1 if limit == "bytes" else 1)

    async def upload():
        async with writing(bench).connect() as connection:
            await connection.execute(GET)
            await connection.execute(BLOB, {"data": data})
            await connection.commit()

    assert await together(bench, upload(), write(bench, 1)) == [None, None]
    assert blobs(bench) == [data]


@pytest.mark.parametrize("end", ["rollback", "close"])
async def test_a_stream_that_writes_is_rolled_back(bench, end):
    """SQLite counts the rows of an INSERT ... RETURNING only when it is read to its end."""
    async with bench.engine.connect() as connection:
        result = await connection.stream(RETURNING)
        assert len(await result.all()) == 1
        if end == "rollback":
            await connection.rollback()
    assert blobs(bench) == []


async def test_a_stream_that_writes_is_not_suspended(bench):
    """It has written, so the ticket is not taken from it as from one that has only read."""
    async with bench.engine.connect() as connection:
        await (await connection.stream(RETURNING)).all()
        holder = bench.engine.pool.writer.queue.holder.owner
        assert holder.wrote
        assert not holder.suspendable()
        await connection.commit()
    assert blobs(bench) == ["x"]


@pytest.mark.parametrize("statement", [GET, text("EXPLAIN SELECT 1")])
async def test_a_stream_that_reads_has_not_written(bench, statement):
    """Nor has an EXPLAIN, which cannot be explained."""
    async with writing(bench).connect() as connection:
        await (await connection.stream(statement)).all()
        assert not bench.engine.pool.writer.queue.holder.owner.wrote


async def test_rows_of_any_kind(bench):
    """Rows that cannot be sliced, nor counted beforehand, and are rolled back."""
    async with writing(bench).connect() as connection:
        await connection.execute(COUNT)

        def executemany(sync, rows_):
            cursor = sync.connection.cursor()
            cursor.executemany("INSERT INTO blobs (data) VALUES (?)", rows_)

        await connection.run_sync(executemany, deque([("a",), ("b",)]))
        await connection.rollback()
        assert blobs(bench) == []
        await connection.execute(COUNT)
        await connection.run_sync(executemany, (row for row in [("a",), ("b",)]))
        await connection.commit()
    assert blobs(bench) == ["a", "b"]


async def slow(bench, execute):
    """A transaction that is taken out of its group, and replayed, after what it has executed."""
    async with writing(bench).connect() as connection:
        await execute(connection)
        bench.engine.pool.writer.queue.holder.owner.leave_group()
        await connection.commit()


async def test_parameters_that_change_after_they_were_bound(bench):
    """A replay binds what the statement was sent with."""
    buffer = bytearray(b"0000")
    values = {"value": 0, "id": 0}
    many = [(0, 0)]

    async def execute(connection):
        for number in range(4):
            buffer[:] = b"%04d" % number
            await connection.execute(BLOB, {"data": buffer})
        put = "UPDATE items SET value = :value WHERE id = :id"
        for number in (1, 2):
            values.update(value=10 + number, id=number)
            await connection.exec_driver_sql(put, values)
        for number in (3, 4):
            many[:] = [(10 + number, number)]
            await connection.exec_driver_sql("UPDATE items SET value = ? WHERE id = ?", many)

    known_short(bench, "UPDATE items SET value = :value WHERE id = :id")
    assert await together(bench, slow(bench, execute)) == [None]
    assert bench.engine.stats().replays == 1
    assert blobs(bench) == [b"0000", b"0001", b"0002", b"0003"]
    assert rows(bench.path, GET.text) == [(n, 10 + n) for n in (1, 2, 3, 4)] + [(5, 0)]


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_listener_that_ends_a_transaction(bench, end):
    """One of "checkout" cannot end that of a group, whose members are there once."""

    @event.listens_for(bench.engine.sync_engine, "checkout")
    def listener(connection, *_):
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
        getattr(connection, end)()

    members = [write(bench, run) for run in range(1, 8)]
    assert await together(bench, *members) == [None] * 7
    assert rows(bench.path, COUNT.text) == [(8 * 3,)]
    assert bench.engine.stats().groups == 1


@pytest.mark.parametrize("logged", [True, False], ids=["logged", "outgrown"])
async def test_a_stream_that_is_open_at_the_first_write(bench, logged):
    """What is still to be fetched has to be as new as what the write goes on top of."""
    for _ in range(READ_ONLY_RUNS):
        bench.engine.pool.writer.prediction.note(GET.text, wrote=False)
    async with bench.engine.connect() as connection:
        result = await connection.stream(GET)
        first = await result.fetchone()
        if not logged:
            raw = await connection.run_sync(lambda sync: sync.connection)
            raw.transaction.log.drop()
        async with bench.engine.begin() as other:
            await other.execute(PUT, {"value": 100, "id": 5})
        with pytest.raises(ConflictError):
            await connection.execute(PUT, {"value": first.value + 1, "id": 1})
    assert rows(bench.path, GET.text) == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 100)]


async def test_a_stream_goes_on_behind_the_first_write(bench):
    """It was read to its end on its snapshot, where nobody else has written."""
    bench.learn()
    for _ in range(READ_ONLY_RUNS):
        bench.engine.pool.writer.prediction.note(GET.text, wrote=False)
    async with bench.engine.connect() as connection:
        seen = []
        async for id_, value in await connection.stream(GET):
            seen.append(id_)
            await connection.execute(PUT, {"value": value + 1, "id": id_})
        await connection.commit()
    assert seen == [1, 2, 3, 4, 5]
    assert rows(bench.path, GET.text) == [(n, 1) for n in range(1, 6)]


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
async def test_who_has_read_what_was_undone_is_told(bench, end):
    """However it ends: also without a COMMIT of its own, it was one of its group."""

    async def bad():
        async with bench.engine.begin() as connection:
            await connection.execute(CHILD)

    async def reader():
        async with AsyncSession(writing(bench)) as session:
            assert await session.scalar(CHILDREN) == 1
            if end != "close":
                await getattr(session, end)()

    outcomes = await together(bench, bad(), reader(), write(bench, 1))
    assert [type(each) for each in outcomes] == [IntegrityError, GroupAborted, type(None)]
    assert rows(bench.path, CHILDREN.text) == [(0,)]


async def test_a_statement_that_fails_otherwise_in_its_replay(bench):
    """The second time it drops the transaction, which then cannot go on."""
    bench.engine.pool.pace.note("INSERT OR ROLLBACK INTO items (id) VALUES (9)", 0.0)

    async def bad():
        async with bench.engine.begin() as connection:
            await connection.execute(text("INSERT INTO items (id, value) VALUES (9, 0)"))
            await connection.execute(CHILD)

    async def odd():
        async with bench.engine.begin() as connection:
            await connection.execute(BLOB, {"data": "a"})
            with pytest.raises(IntegrityError):
                await connection.execute(text("INSERT INTO items (id) VALUES (1)"))
            log = bench.engine.pool.writer.queue.holder.owner.log
            log.entries[-1].statement.sql = "INSERT OR ROLLBACK INTO items (id) VALUES (1)"
            await connection.execute(BLOB, {"data": "b"})

    known_short(bench, "INSERT INTO items (id, value) VALUES (9, 0)")
    known_short(bench, "INSERT INTO items (id) VALUES (1)")
    outcomes = await together(bench, bad(), odd())
    assert [type(each) for each in outcomes] == [IntegrityError, GroupAborted]
    assert blobs(bench) == []


async def test_a_replay_that_breaks_off(bench):
    """What is not SQLite's error ends it half-way, and so the whole transaction."""
    fails = text("SELECT 'fails'")
    known_short(bench, fails)
    reads = []

    def row(cursor, values):
        reads.append(values)
        if reads.count(("fails",)) == 2:
            raise MemoryError
        return values

    async def member():
        async with writing(bench).connect() as connection:
            await connection.execute(BLOB, {"data": "a"})
            holder = bench.engine.pool.writer.queue.holder.owner
            holder.lease.driver.raw.row_factory = row
            await connection.execute(fails)
            await connection.execute(BLOB, {"data": "b"})
            holder.leave_group()
            with pytest.raises(MemoryError):
                await connection.execute(COUNT)
            holder.writer._record.dbapi_connection.raw.row_factory = None
            with pytest.raises(QSessionError, match="could not be run again"):
                await connection.commit()

    assert await together(bench, member()) == [None]
    assert blobs(bench) == []


@pytest.mark.parametrize("by", ["session", "connection"])
async def test_closed_while_its_statement_waits(bench, by):
    """The statement is not run, and its place in the line is not lost for the next."""

    async def use(doing):
        await doing.execute(insert_one())

    def insert_one():
        return text("INSERT INTO blobs (data) VALUES ('late')")

    doing = AsyncSession(bench.engine) if by == "session" else await bench.engine.connect()
    made = await waiters(bench, use(doing))
    await doing.close()
    (outcome,) = await made.go()
    await made.first.close()
    assert isinstance(outcome, QSessionError)
    assert "ended elsewhere" in str(outcome)
    await doing.close()
    del doing
    gc.collect()
    await asyncio.wait_for(write(bench, 1), PATIENCE)
    assert blobs(bench) == []


async def test_closed_while_it_waits_for_a_reader(bench):
    """The same for the connection that it gets at last: the pool has it back."""
    reading = bench.engine.execution_options(qsession_access="read")
    first = await reading.connect()
    await first.execute(COUNT)
    second = await reading.connect()
    late = asyncio.create_task(second.execute(COUNT))
    await eventually(lambda: bench.engine.pool._pool.waiting == 1)
    await second.close()
    await first.close()
    with pytest.raises(QSessionError, match="ended elsewhere"):
        await late
    async with reading.connect() as third:
        await asyncio.wait_for(third.execute(COUNT), PATIENCE)


async def test_several_tasks_on_one_connection(bench):
    """SQLAlchemy advises against it. They run one by one, and all that they wrote counts."""
    async with bench.engine.connect() as connection:
        puts = [connection.execute(BLOB, {"data": n}) for n in range(5)]
        cancelled = asyncio.ensure_future(connection.execute(BLOB, {"data": "never"}))
        await puts[0]
        cancelled.cancel()
        await asyncio.gather(*puts[1:], cancelled, return_exceptions=True)
        await connection.commit()
    assert [each for each in blobs(bench) if each != "never"] == [0, 1, 2, 3, 4]


async def test_settings_of_its_own_keep_a_connection_on_the_writer(bench):
    """A reader has no such temporary table, so none will do, however long the holder idles."""
    queue = bench.engine.pool.writer.queue
    async with bench.engine.connect() as mine, bench.engine.connect() as holder:
        await mine.execute(text("CREATE TEMP TABLE items (id, value)"))
        await mine.execute(text("INSERT INTO temp.items VALUES (1, 777)"))
        await mine.commit()
        await holder.execute(BLOB, {"data": "x"})

        async def read():
            found = (await mine.execute(GET)).all()
            await mine.commit()
            return found

        task = asyncio.create_task(read())
        await eventually(lambda: queue.waiting == 1)
        (ticket,) = queue.waiters()
        assert not ticket.owner.may_stop_waiting(elsewhere=False)
        await holder.commit()
        assert await task == [(1, 777)]


async def test_what_user_version_said_is_looked_at_again(bench):
    """It is in the file, so it belongs to what a transaction has read."""
    version = text("PRAGMA user_version")
    async with writing(bench).connect() as one:
        assert await one.scalar(version) == 0
        bench.engine.pool.writer.queue.holder.owner.suspend()
        async with bench.engine.connect() as other:
            await other.execute(text("PRAGMA user_version = 1"))
            await other.commit()
        with pytest.raises(ConflictError, match="user_version"):
            await one.execute(BLOB, {"data": "twice"})
    assert blobs(bench) == []


async def test_a_savepoint_without_a_statement_leaves_nothing(bench):
    """Rolled back, and its transaction too, it is not in the way of the next."""
    async with bench.engine.connect() as connection:
        savepoint = await connection.begin_nested()
        await savepoint.rollback()
        await connection.rollback()
        await connection.execute(text("VACUUM"))


@pytest.mark.parametrize("release", ["RELEASE Name;", 'RELEASE "NAME"', "RELEASE name -- done"])
async def test_a_savepoint_by_hand_that_is_released(bench, release):
    """Under AUTOCOMMIT the outermost one is a transaction, however its name is spelled."""
    async with bench.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("SAVEPOINT name"))
        await connection.execute(BLOB, {"data": "kept"})
        await connection.execute(text(release))
        assert blobs(bench) == ["kept"]


ORDER = text("INSERT INTO blobs (data) VALUES (:data)")


@pytest.mark.parametrize("asks", ["before", "after"])
async def test_a_rowid_that_is_not_the_same_again(bench, asks):
    """A member that has seen the rowid of its INSERT is not replayed with another one.

    One that asks after its commit is told the one that is in the file.
    """

    async def bad():
        async with bench.engine.begin() as connection:
            await connection.execute(ORDER, {"data": "bad"})
            await connection.execute(CHILD)

    async def good():
        async with bench.engine.begin() as connection:
            result = await connection.execute(ORDER, {"data": "good"})
            if asks == "before":
                return result.lastrowid
        return result.lastrowid

    outcomes = await together(bench, bad(), good(), write(bench, 1))
    assert isinstance(outcomes[0], IntegrityError)
    if asks == "before":
        assert isinstance(outcomes[1], GroupAborted)
        assert blobs(bench) == []
    else:
        assert rows(bench.path, "SELECT id, data FROM blobs") == [(outcomes[1], "good")]


async def test_parameters_that_change_while_their_statement_waits(bench):
    """What counts is what they were when it was sent, not when its turn came."""
    first, second = bytearray(b"first"), array("B", b"first")

    async def save(data):
        async with bench.engine.begin() as connection:
            await connection.execute(BLOB, {"data": data})

    made = await waiters(bench, save(first), save(second))
    first[:] = b"other"
    second[:] = array("B", b"other")
    assert await made.go() == [None, None]
    assert blobs(bench) == [b"first", b"first"]


async def test_a_buffer_that_is_filled_again_before_a_replay(bench):
    """Whatever has a buffer is copied, as SQLite binds it."""

    async def execute(connection):
        buffer = array("B", b"first")
        await connection.execute(BLOB, {"data": buffer})
        buffer[:] = array("B", b"other")

    assert await together(bench, slow(bench, execute)) == [None]
    assert bench.engine.stats().replays == 1
    assert blobs(bench) == [b"first"]


async def test_an_error_that_says_something_else_in_its_replay(bench):
    """Two triggers may fail with the same code; what they say is what the application acts on."""
    await trigger(bench, "poor", "new.value < 0", "not enough money")
    async with bench.engine.connect() as connection:
        with pytest.raises(IntegrityError, match="not enough money"):
            await connection.execute(PUT, {"id": 1, "value": -1})
        bench.engine.pool.writer.queue.holder.owner.suspend()
        await trigger(bench, "frozen", "1", "account is frozen")
        with pytest.raises(ConflictError):
            await connection.execute(BLOB, {"data": "order failed: not enough money"})
        await connection.rollback()
    assert blobs(bench) == []


async def trigger(bench, name, when, message):
    async with bench.engine.begin() as connection:
        await connection.exec_driver_sql(
            f"CREATE TRIGGER {name} BEFORE UPDATE ON items WHEN {when} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )


async def test_an_error_of_python_s_is_an_observation_too(bench):
    """A number that SQLite cannot hold is refused again, and the transaction goes on."""
    async with bench.engine.connect() as connection:
        with pytest.raises(OverflowError):
            await connection.execute(text("SELECT :big"), {"big": 2**70})
        bench.engine.pool.writer.queue.holder.owner.suspend()
        await connection.execute(BLOB, {"data": "kept"})
        await connection.commit()
    assert blobs(bench) == ["kept"]


@pytest.mark.parametrize("number", [1, 70])
async def test_a_converter_whose_values_look_alike(bench, number):
    """Whoever has read what is changed since is told, though it has neither equality nor repr()."""
    select = "SELECT CAST(value AS TEXT) FROM items ORDER BY id LIMIT {}".format
    event.listen(bench.engine.sync_engine, "connect", mask)
    await fill(bench, number)
    for _ in range(READ_ONLY_RUNS):
        bench.engine.pool.writer.prediction.note(select(number), wrote=False)
    async with bench.engine.connect() as connection:
        read = (await connection.execute(text(select(number)))).scalars().first()
        await add_one(bench, 1)
        with pytest.raises(ConflictError):
            await connection.execute(PUT, {"id": 1, "value": read.secret + 1})
        await connection.rollback()


async def add_one(bench, id_):
    async with bench.engine.begin() as connection:
        await connection.execute(
            text("UPDATE items SET value = value + 1 WHERE id = :id"), {"id": id_}
        )


class Masked:
    """It has no equality, and its repr() does not tell its value."""

    def __init__(self, text_):
        self.secret = int(text_)

    def __repr__(self):
        return "Masked('****')"


def mask(connection, _):
    connection.raw.text_factory = lambda data: Masked(data) if data.isdigit() else data.decode()


async def fill(bench, number):
    async with bench.engine.begin() as connection:
        values = [{"id": n, "value": 0} for n in range(6, number + 1)] or [{"id": 6, "value": 0}]
        await connection.execute(text("INSERT INTO items (id, value) VALUES (:id, :value)"), values)


async def test_a_reader_keeps_no_log(bench):
    """It is never replayed, so what it has read need not be remembered."""
    async with bench.engine.connect() as connection:
        await connection.execution_options(qsession_access="read")
        await connection.execute(text("SELECT zeroblob(1000000)"))
        with pytest.raises(OperationalError):
            await connection.execute(text("SELECT nothing"))
        routed = (await connection.get_raw_connection()).dbapi_connection
        assert routed.transaction.log.entries == []


@pytest.mark.parametrize("statement", [BLOB, insert(table("blobs", column("data")))])
async def test_writers_come_in_the_order_of_asking(bench, statement):
    """Whether a write is text or not, it does not try a reader before."""

    async def save(data):
        async with bench.engine.begin() as connection:
            await connection.execute(statement, {"data": data})

    made = await waiters(bench, save("first"))
    (ticket,) = bench.engine.pool.writer.queue.waiters()
    assert not ticket.owner.may_stop_waiting(elsewhere=False)
    assert await made.go() == [None]
    assert blobs(bench) == ["first"]


async def test_deferred_checks_last_for_their_transaction(bench):
    """PRAGMA defer_foreign_keys counts from BEGIN to COMMIT, and a replay sends it again."""
    parent, child = text("INSERT INTO parents VALUES (5)"), text("INSERT INTO strict VALUES (5)")
    async with bench.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE strict (parent REFERENCES parents)"))
    async with bench.engine.connect() as connection:
        await connection.execute(text("PRAGMA defer_foreign_keys=ON"))
        await connection.execute(child)
        await connection.execute(parent)
        await connection.commit()
        with pytest.raises(IntegrityError):
            await connection.execute(text("INSERT INTO strict VALUES (6)"))
    assert rows(bench.path, "SELECT parent FROM strict") == [(5,)]


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
    """No other one can be opened for the writer: the ticket is given back."""

    def fail(connection, _):
        raise OSError("too many files")

    async with bench.engine.connect() as connection:
        await connection.execute(COUNT)
        await connection.rollback()
        event.listen(bench.engine.sync_engine, "connect", fail)
        with pytest.raises(OSError, match="too many files"):
            await connection.get_raw_connection()
        event.remove(bench.engine.sync_engine, "connect", fail)
        assert bench.engine.stats().holder is None


async def test_a_raw_connection_that_is_cancelled(bench):
    """Nobody has it, so nothing of it is left."""
    async with bench.engine.connect() as holder:
        await holder.execute(BLOB, {"data": "kept"})
        waiting = asyncio.create_task(bench.engine.raw_connection())
        await eventually(lambda: bench.engine.stats().waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await holder.commit()
    assert bench.engine.stats().holder is None
    assert blobs(bench) == ["kept"]


async def test_a_savepoint_whose_release_fails(bench):
    """Under AUTOCOMMIT it is a COMMIT: what it could not commit is undone, and nothing is held."""
    async with bench.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(IntegrityError):
            async with connection.begin_nested():
                await connection.execute(BLOB, {"data": "undone"})
                await connection.execute(CHILD)
        assert (await connection.execute(CHILDREN)).scalar() == 0
        assert_free(bench.path)
    assert blobs(bench) == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_user_version_is_of_its_transaction(bench, end):
    """SQLite keeps it in the file, and rolls it back as it does a row."""
    async with bench.engine.connect() as connection:
        await connection.execute(text("PRAGMA user_version=7"))
        await getattr(connection, end)()
    assert rows(bench.path, "PRAGMA user_version") == [(7 if end == "commit" else 0,)]
