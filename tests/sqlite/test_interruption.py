"""Timeouts, failing siblings, hand-offs: a cancelled task stops at once, its session lives on."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest
from cancelling import (
    COUNT_ENDLESSLY,
    ENDLESS,
    READ,
    Bench,
    Item,
    Mark,
    assert_free,
    connection_threads,
    eventually,
    rows,
    settled,
)
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.session.maker import QSession
from qsession.sqlite.transaction import sending


@pytest.fixture
async def bench(tmp_path, request):
    """An engine whose tables are there."""
    made = await Bench.ready(tmp_path / "app.db", **getattr(request, "param", {}))
    yield made
    await settled(made.engine)
    assert_free(made.path)
    await made.engine.dispose()


in_threads = pytest.mark.parametrize("bench", [{"inline": False}], indirect=True, ids=["threads"])
"""Every statement runs in its connection's thread."""


class Gate:
    """Holds a connection's thread before a function that runs there, until it is opened."""

    def __init__(self, monkeypatch, module, name, only=lambda *args: True):
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.passed = threading.Event()
        function = getattr(module, name)

        def gated(*args):
            if only(*args) and not self.passed.is_set():
                self.reached.set()
                assert self.opened.wait(20)
                self.passed.set()
            return function(*args)

        monkeypatch.setattr(module, name, gated)

    async def is_reached(self):
        await eventually(self.reached.is_set)


@pytest.mark.parametrize("kind", [AsyncSession, QSession])
@pytest.mark.parametrize("statement", [COUNT_ENDLESSLY, ENDLESS])
async def test_session_goes_on_after_a_timeout(bench, kind, statement):
    """A statement that timed out was broken off; the session is rolled back and used again."""
    async with kind(bench.engine) as session:
        session.add(Mark(run=1))
        await session.flush()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(session.execute(statement), 0.05)
        await session.rollback()
        assert (await session.execute(READ)).all()
        session.add(Item(value=9))
        await session.commit()
    assert rows(bench.path, "SELECT run FROM marks") == []
    assert rows(bench.path, "SELECT count(*) FROM items") == [(6,)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in Python 3.11")
@pytest.mark.parametrize("access", ["read", "write"])
async def test_session_goes_on_after_a_timeout_block(bench, access):
    """The block raises TimeoutError and nothing else, for a reader and for the holder."""
    async with QSession(bench.engine, access=access) as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await session.execute(COUNT_ENDLESSLY)
        await session.rollback()
        assert (await session.execute(READ)).all()


async def test_waiting_for_the_ticket_times_out(bench):
    """The place in the queue is given up, and the session can write once the ticket is free."""
    async with QSession(bench.engine) as holder, QSession(bench.engine) as other:
        await holder.execute(update(Item).values(value=1))

        async def wait():
            await other.execute(update(Item).values(value=2))

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.create_task(wait()), 0.05)
        await eventually(lambda: bench.engine.stats().waiting == 0)
        await holder.commit()
        await other.rollback()
        await other.execute(update(Item).values(value=Item.value + 2))
        await other.commit()
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(3,)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup is new in Python 3.11")
async def test_failing_task_takes_its_siblings_with_it(bench):
    """One task of a group fails while others write, wait for the ticket, read and wait to read."""

    async def write():
        async with AsyncSession(bench.engine) as session:
            session.add(Mark(run=1))
            await session.flush()
            await session.execute(COUNT_ENDLESSLY)

    async def read():
        async with QSession(bench.engine, access="read") as session:
            await session.execute(COUNT_ENDLESSLY)

    async def fail():
        pool = bench.engine.pool
        await eventually(
            lambda: pool.write_queue.queue.waiting == 5 and len(pool._pool._places) == 5
        )
        raise ArithmeticError

    with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(write())
                group.create_task(read())
            group.create_task(fail())
    assert [type(each) for each in caught.value.exceptions] == [ArithmeticError]
    await settled(bench.engine)
    assert rows(bench.path, "SELECT run FROM marks") == []


@in_threads
@pytest.mark.parametrize("times", [1, 3])
async def test_commit_that_has_started_runs_to_its_end(bench, monkeypatch, times):
    """Cancelled in the middle of COMMIT, once or more, the task hears of it after the end."""
    gate = Gate(monkeypatch, sending, "commit")

    async def write():
        async with AsyncSession(bench.engine) as session:
            session.add(Mark(run=1))
            await session.commit()

    task = asyncio.create_task(write())
    await gate.is_reached()
    for _ in range(times):
        task.cancel()
        await asyncio.wait([task], timeout=0)
        assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rows(bench.path, "SELECT run FROM marks") == [(1,)]


@pytest.mark.parametrize("access", ["read", "write"])
async def test_running_select_is_not_waited_for(bench, access):
    """A SELECT that would never end is cancelled; its task ends, and its connection comes back."""

    async def read():
        async with QSession(bench.engine, access=access) as session:
            await session.execute(READ)
            await session.execute(COUNT_ENDLESSLY)

    await asyncio.wait([task := asyncio.create_task(read())], timeout=0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@in_threads
@pytest.mark.parametrize("access", ["read", "write"])
async def test_cancelled_just_before_the_statement_starts(bench, monkeypatch, access):
    """SQLite forgets an interrupt that comes too early; the statement ends all the same."""
    gate = Gate(monkeypatch, sending, "execute", only=lambda raw, sent, _: "count" in sent.sql)

    async def read():
        async with QSession(bench.engine, access=access) as session:
            await session.execute(COUNT_ENDLESSLY)

    task = asyncio.create_task(read())
    await gate.is_reached()
    task.cancel()
    await asyncio.wait([task], timeout=0)
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(bench.engine)


async def test_cancelled_statement_that_has_not_begun_never_runs(bench):
    """What waits behind something else in the connection's thread is taken back."""
    async with bench.engine.begin() as connection:
        await connection.execute(update(Item).values(value=1))
    (record,) = bench.engine.pool._reserved
    driver = record.dbapi_connection
    opened = threading.Event()
    driver.post(lambda raw: opened.wait(20))

    async def write():
        async with bench.engine.begin() as connection:
            await connection.execute(insert(Mark).values(run=1))

    task = asyncio.create_task(write())
    await eventually(lambda: driver._connection._tx.qsize() > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    opened.set()
    await settled(bench.engine)
    assert rows(bench.path, "SELECT run FROM marks") == []


@pytest.mark.parametrize("order", ["cancelled, then handed over", "handed over, then cancelled"])
async def test_cancelled_at_the_moment_of_hand_off(bench, order):
    """Whichever comes first, the ticket goes to the next in the queue."""
    queue = bench.engine.pool.write_queue.queue
    done = []

    async def write(value):
        async with AsyncSession(bench.engine) as session:
            await session.execute(insert(Mark).values(run=value))
            await session.commit()
            done.append(value)

    async with AsyncSession(bench.engine) as holder:
        await holder.execute(update(Item).values(value=1))
        tasks = []
        for value in (1, 2):
            tasks.append(asyncio.create_task(write(value)))
            await eventually(lambda value=value: queue.waiting == value)
        released = queue._release

        def release(ticket):
            queue._release = released
            if order.startswith("cancelled"):
                tasks[0].cancel()
            released(ticket)
            if order.startswith("handed"):
                tasks[0].cancel()

        queue._release = release
        await holder.commit()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in outcomes] == [asyncio.CancelledError, type(None)]
    assert done == [2]


async def test_driver_connection_is_not_waited_for(bench):
    """What somebody runs on it by hand is broken off when the connection is closed."""
    async with bench.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(raw.driver_connection.execute(COUNT_ENDLESSLY.text), 0.05)


async def test_listener_cut_short_is_heard_again(bench):
    """A connection that "connect" listeners have not seen to their end is never used."""
    before = connection_threads()
    heard = []
    endless = False

    @event.listens_for(bench.engine.sync_engine, "connect")
    def prepare(connection, record):
        cursor = connection.cursor()
        cursor.execute(COUNT_ENDLESSLY.text if endless else "SELECT 1")
        cursor.execute("PRAGMA foreign_keys=ON")
        heard.append(connection)

    await bench.engine.dispose()
    reader = bench.engine.execution_options(qsession_access="read")
    async with bench.engine.begin() as connection:
        await connection.execute(update(Item).values(value=1))
    bench.engine.pool.close()
    endless = True
    heard.clear()
    async with reader.connect() as connection:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(connection.execute(READ), 0.05)
    assert not heard
    endless = False
    async with reader.connect() as connection:
        await connection.execute(READ)
        assert (await connection.execute(text("PRAGMA foreign_keys"))).scalar() == 1
    assert len(heard) == 1
    await bench.engine.dispose()
    await eventually(lambda: connection_threads() <= before)  # one still has to tell this loop


@in_threads
@pytest.mark.parametrize("end", ["rollback", "close"])
async def test_ended_by_another_task_beside_a_statement(bench, end):
    """The statement is broken off, and its connection given back without a transaction."""
    reached, opened = threading.Event(), threading.Event()

    def hold():
        reached.set()
        assert opened.wait(20)
        return 1

    @event.listens_for(bench.engine.sync_engine, "connect")
    def connect(connection, _):
        connection.create_function("hold", 0, hold)

    await bench.engine.dispose()
    connection = await bench.engine.connect()
    slow = text("INSERT INTO marks (run) SELECT hold()")
    writing = asyncio.create_task(connection.execute(slow))
    await eventually(reached.is_set)
    ending = asyncio.create_task(getattr(connection, end)())
    for _ in range(50):
        await asyncio.sleep(0)
    opened.set()
    await ending
    (error,) = await asyncio.gather(writing, return_exceptions=True)
    assert isinstance(error, Exception)
    await connection.close()
    await settled(bench.engine)
    assert_free(bench.path)
    for access in ("read", "write"):
        async with QSession(bench.engine, access=access) as session:
            assert (await session.scalars(select(Mark.run))).all() == []
