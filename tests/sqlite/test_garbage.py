"""Sessions, connections, streams and tasks that are dropped instead of closed."""

from __future__ import annotations

import asyncio
import gc

import pytest
from cancelling import (
    ENDLESS,
    READ,
    Bench,
    Item,
    collected,
    connection_threads,
    eventually,
    rows,
)
from sqlalchemy import exc, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.session.maker import QSession

GARBAGE = "The garbage collector is cleaning up"


@pytest.fixture(params=[False, True], ids=["threads", "inline"])
async def bench(request, tmp_path):
    """An engine with one reader; it is whole again after each test."""
    made = await Bench.ready(tmp_path / "app.db", inline=request.param)
    gc.collect()
    gc.freeze()  # so that the collector has only the test's own objects to look at
    yield made
    gc.unfreeze()
    await made.check()
    await made.engine.dispose()


def reading(bench):
    """The same engine, for those who only read."""
    return bench.engine.execution_options(qsession_access="read")


async def gone(drop, bench):
    """Let something be dropped, and wait until all it held has come back."""
    await drop()
    await collected(bench.engine)


@pytest.mark.parametrize("kind", [AsyncSession, QSession])
@pytest.mark.parametrize("statement", [READ, update(Item).values(value=1), select(Item)])
async def test_session_dropped(bench, kind, statement):
    """What it held comes back, and a warning tells."""

    async def drop():
        session = kind(bench.engine)
        await session.execute(statement)

    with pytest.warns(exc.SAWarning, match=GARBAGE):
        await gone(drop, bench)


@pytest.mark.parametrize("statement", [READ, update(Item).values(value=1)])
async def test_connection_dropped(bench, statement):
    """The same for a connection."""

    async def drop():
        connection = await bench.engine.connect()
        await connection.execute(statement)

    with pytest.warns(exc.SAWarning, match=GARBAGE):
        await gone(drop, bench)


@pytest.mark.parametrize("writes", [False, True])
async def test_stream_dropped_with_its_connection(bench, writes):
    """An open cursor keeps nothing: neither on a reader nor on the writer."""

    async def drop():
        connection = await bench.engine.connect()
        if writes:
            await connection.execute(update(Item).values(value=1))
        result = await connection.stream(ENDLESS)
        await result.fetchmany(3)

    with pytest.warns(exc.SAWarning, match=GARBAGE):
        await gone(drop, bench)


async def test_stream_dropped_after_its_transaction(bench):
    """A stream that outlives its transaction keeps its reader, until it is dropped."""

    async def drop():
        connection = await reading(bench).connect()
        result = await connection.stream(READ)
        await result.fetchmany(1)
        await connection.rollback()

    with pytest.warns(exc.SAWarning, match=GARBAGE):
        await gone(drop, bench)


async def test_stream_dropped_alone(bench):
    """Its connection is closed later, and closes it."""
    async with reading(bench).connect() as connection:
        result = await connection.stream(READ)
        await result.fetchmany(1)
        del result
        gc.collect()
        assert (await connection.execute(READ)).all()


@pytest.mark.parametrize("statement", [READ, update(Item).values(value=1)])
async def test_generator_dropped(bench, statement):
    """A generator that holds a session is closed by the loop, as dependencies in frameworks are."""

    async def sessions():
        async with QSession(bench.engine) as session:
            yield session

    async def drop():
        generator = sessions()
        session = await generator.__anext__()
        await session.execute(statement)

    await gone(drop, bench)


async def test_task_dropped(bench):
    """A task that waits for something nobody knows of any more is collected, with its session."""
    reached = asyncio.Event()
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, told: complaints.append(told))

    async def wait_forever():
        session = AsyncSession(bench.engine)
        await session.execute(update(Item).values(value=1))
        reached.set()
        await asyncio.get_running_loop().create_future()

    async def drop():
        task = asyncio.create_task(wait_forever())
        await reached.wait()
        del task

    with pytest.warns(exc.SAWarning, match=GARBAGE):
        await gone(drop, bench)
    assert [told["message"] for told in complaints] == ["Task was destroyed but it is pending!"]


async def test_collector_runs_at_any_moment(bench):
    """Dropped sessions are cleaned up in the middle of whatever the queues are doing."""

    async def drop():
        session = AsyncSession(reading(bench))
        await session.execute(READ)
        session.me = session  # only the collector finds it

    async def work():
        for _ in range(3):
            async with QSession(bench.engine) as session:
                await session.execute(update(Item).values(value=Item.value + 1))
                await session.commit()

    async def work_and_collect():
        for _ in range(3):
            tasks = [asyncio.create_task(each()) for each in (work, drop, work, work)]
            while not all(task.done() for task in tasks):
                gc.collect()
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            del tasks
            await collected(bench.engine)

    with pytest.warns(exc.SAWarning, match=GARBAGE):
        await work_and_collect()
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(27,)]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_engine_dropped(tmp_path):
    """One that nobody disposes of gives back its files and threads when it is collected."""

    async def use():
        bench = await Bench.ready(tmp_path / "dropped.db")
        async with bench.engine.connect() as connection:
            await connection.execute(READ)
        return connection_threads()

    def collected():
        gc.collect()  # again and again: a thread refers to its connection until it is done
        return not threads & connection_threads()

    threads = await use()
    assert len(threads) == 2
    await eventually(collected)
