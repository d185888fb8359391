"""One engine in several event loops: one after the other, dead ones, and two at once in threads."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
from cancelling import (
    PATIENCE,
    READ,
    Bench,
    Item,
    assert_free,
    connection_threads,
    eventually,
    rows,
    settled,
)
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.errors import QSessionError
from qsession.session.maker import QSession

TASKS = 12
TIMES = 5


@pytest.fixture(params=[False, True], ids=["threads", "inline"])
def bench(request, tmp_path):
    """An engine with two readers whose tables were made in a loop that is gone."""

    async def make():
        return await Bench.ready(tmp_path / "app.db", inline=request.param, pool_size=2)

    made = asyncio.run(make())
    yield made

    async def end():
        await made.check()
        await made.engine.dispose()

    asyncio.run(end())


async def storm(bench, kind=QSession, tasks=TASKS):
    """More tasks than the pool holds readers: each reads and then changes one row, and reads."""

    async def work():
        for _ in range(TIMES):
            async with kind(bench.engine) as session:
                item = await session.get(Item, 1)
                item.value += 1
                await session.commit()
            async with QSession(bench.engine, access="read") as session:
                await session.execute(READ)

    await asyncio.gather(*(work() for _ in range(tasks)))


@pytest.mark.parametrize("disposes", [False, True])
def test_one_loop_after_the_other(bench, disposes):
    """Nothing in the engine belongs to the loop that it was first used in."""

    async def run():
        await storm(bench)
        if disposes:
            await bench.engine.dispose()

    for _ in range(3):
        asyncio.run(run())
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(3 * TASKS * TIMES,)]


def test_loop_that_ends_with_a_holder_and_with_waiters(bench):
    """asyncio.run cancels what is left: tasks that hold, wait to write, read and wait to read."""

    async def run():
        async def write():
            async with QSession(bench.engine) as session:
                await session.execute(update(Item).values(value=77))
                await asyncio.Event().wait()

        async def read():
            async with QSession(bench.engine, access="read") as session:
                await session.execute(READ)
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(each()) for each in (write, read) * 5]
        pool = bench.engine.pool
        await eventually(
            lambda: pool.write_queue.queue.waiting == 4 and len(pool._pool._places) == 3
        )
        assert not any(task.done() for task in tasks)

    asyncio.run(run())
    asyncio.run(storm(bench))
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(TASKS * TIMES,)]


def test_session_that_outlives_its_loop_holds_nobody_up(bench):
    """Its loop is closed, so it is rolled back once others wait, and says so when used again."""
    left = []

    async def leave_open():
        session = AsyncSession(bench.engine)
        await session.execute(update(Item).values(value=77))
        left.append(session)

    async def find_out():
        with pytest.raises(QSessionError, match="loop had been closed"):
            await left[0].execute(READ)
        await left[0].rollback()
        assert (await left[0].execute(READ)).all()
        await left[0].close()

    asyncio.run(leave_open())
    asyncio.run(storm(bench))
    asyncio.run(find_out())
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(TASKS * TIMES,)]


def test_session_that_outlives_its_loop_goes_on_in_the_next(bench):
    """As long as nobody waits for it, a transaction may be ended in another loop."""
    session = AsyncSession(bench.engine)

    async def begin():
        await session.execute(update(Item).values(value=5))

    async def end():
        await session.execute(update(Item).values(value=Item.value + 1))
        await session.commit()
        await session.close()

    asyncio.run(begin())
    asyncio.run(end())
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(6,)]


@pytest.mark.parametrize("waits", [False, True])
def test_loop_closed_under_its_tasks(bench, waits):
    """Closed without cancelling anything: a holder and a waiter that will never go on."""
    loop = asyncio.new_event_loop()
    sessions = [AsyncSession(bench.engine), AsyncSession(bench.engine)]

    async def write(session):
        await session.execute(update(Item).values(value=77))
        await loop.create_future()

    async def until_they_hang():
        tasks.append(loop.create_task(write(sessions[0])))
        await eventually(lambda: bench.engine.stats().holder is not None)
        if waits:
            tasks.append(loop.create_task(write(sessions[1])))
            await eventually(lambda: bench.engine.stats().waiting == 1)

    tasks = []
    loop.run_until_complete(until_they_hang())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    asyncio.run(storm(bench))
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(TASKS * TIMES,)]
    for task in tasks:
        task._log_destroy_pending = False  # or asyncio complains of it
        task.get_coro().close()

    async def close():
        for session in sessions:
            await session.close()

    asyncio.run(close())


def test_two_loops_in_two_threads(bench):
    """Both change one row at once, after having read it: no update is lost, and none fails."""
    errors = []

    def work(kind):
        try:
            asyncio.run(storm(bench, kind, tasks=6))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(kind,)) for kind in (QSession, AsyncSession) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
        assert not thread.is_alive()
    assert errors == []
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(4 * 6 * TIMES,)]


def test_threads_that_start_on_a_cold_engine(tmp_path):
    """The first connections of an engine are opened by several loops at once."""
    bench = Bench(tmp_path / "app.db", pool_size=2)
    errors = []
    together = threading.Barrier(4)

    def work():
        async def run():
            together.wait(PATIENCE)
            async with bench.engine.begin() as connection:
                await connection.execute(text("CREATE TABLE IF NOT EXISTS t (i INTEGER)"))
                await connection.execute(text("INSERT INTO t VALUES (1)"))
            async with bench.engine.connect() as connection:
                await connection.execute(text("SELECT i FROM t"))

        try:
            asyncio.run(run())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []
    assert rows(bench.path, "SELECT count(*) FROM t") == [(4,)]
    asyncio.run(bench.engine.dispose())


async def test_dispose_amid_transactions(tmp_path):
    """Those who hold, wait, read and stream go on and end; the engine opens new connections."""
    before = connection_threads()
    bench = await Bench.ready(tmp_path / "app.db", pool_size=2, stall_after=PATIENCE)
    for _ in range(3):
        async with (
            QSession(bench.engine) as holder,
            QSession(bench.engine, access="read") as reader,
        ):
            await holder.execute(update(Item).values(value=0))
            stream = await reader.stream(select(Item.id))
            waiting = asyncio.create_task(storm(bench))
            await eventually(lambda: bench.engine.stats().waiting > 3)
            await bench.engine.dispose()
            await storm_reads(bench)
            await holder.commit()
            assert len(await stream.all()) == 5
            await waiting
        await settled(bench.engine)
        assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(TASKS * TIMES,)]
    await bench.check()
    await bench.engine.dispose()
    assert_free(bench.path)
    gc.collect()
    await eventually(lambda: connection_threads() <= before, lambda: str(connection_threads()))


async def test_dispose_at_every_turn(tmp_path):
    """Whatever the engine is doing, each connection is closed once nobody uses it."""
    before = connection_threads()
    gc.disable()  # it would close what was forgotten
    try:
        for turns in range(0, 1200, 20):
            bench = Bench(tmp_path / f"{turns}.db")
            creating = asyncio.create_task(create(bench))
            for _ in range(turns):
                await asyncio.sleep(0)
            await bench.engine.dispose()
            await creating
            await bench.engine.dispose()
            await eventually(
                lambda: connection_threads() <= before, lambda: str(connection_threads())
            )
    finally:
        gc.enable()


async def create(bench):
    async with bench.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (i INTEGER)"))
    async with bench.engine.connect() as connection:
        await connection.execute(text("SELECT i FROM t"))


async def storm_reads(bench):
    async def read():
        async with QSession(bench.engine, access="read") as session:
            await session.execute(READ)

    await asyncio.gather(*(read() for _ in range(TASKS)))


def test_no_loop_is_kept_alive(bench):
    """Each asyncio.run() has its own, and an engine is used in many."""
    loops = []

    async def use():
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with bench.engine.begin() as connection:
            await connection.execute(text("SELECT * FROM items"))
            await connection.execute(text("UPDATE items SET value = value + 1"))

    for _ in range(5):
        asyncio.run(use())
    gc.collect()
    assert sum(loop() is not None for loop in loops) <= 1
