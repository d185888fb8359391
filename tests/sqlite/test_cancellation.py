"""A task is cancelled at every one of its taken_away, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from cancelling import (
    ENDLESS,
    MARKS,
    READ,
    Base,
    Bench,
    Item,
    Mark,
    collected,
    eventually,
    until_it_paces,
)
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import NullPool

from qsession import QSessionError
from qsession.session.maker import QSession
from qsession.testing import When, cancel_at


@pytest.fixture(params=[False, True], ids=["threads", "inline"])
async def bench(request, tmp_path):
    """An engine whose tables are there; its short statements run in threads, or on the loop."""
    made = await Bench.ready(tmp_path / "app.db", inline=request.param)
    yield made
    await made.engine.dispose()


async def plain_session(bench: Bench) -> None:
    """Read, change, flush and commit, in one session."""
    async with AsyncSession(bench.engine) as session:
        item = (await session.scalars(select(Item).order_by(Item.id))).first()
        item.value += 1
        await session.flush()
        session.add_all([Mark(**mark) for mark in bench.marks()])
        await session.commit()
        bench.acknowledged.add(bench.run)
        await session.refresh(item)
        await session.rollback()


async def connection_block(bench: Bench) -> None:
    """Write text and tables in a block that commits."""
    async with bench.engine.begin() as connection:
        await connection.execute(text("UPDATE items SET value = value + 1"))
        await connection.execute(insert(Mark), bench.marks())
    bench.acknowledged.add(bench.run)


async def queued_session(bench: Bench) -> None:
    """The same in a session that tasks may share."""
    async with QSession(bench.engine) as session:
        await asyncio.gather(session.execute(select(Item)), session.execute(READ))
        async with session.begin_nested():
            session.add(Item(value=7))
        session.add_all([Mark(**mark) for mark in bench.marks()])
        await session.commit()
        bench.acknowledged.add(bench.run)


async def savepoints(bench: Bench) -> None:
    """One savepoint is rolled back, one is released."""
    async with AsyncSession(bench.engine) as session:
        async with session.begin():
            await session.execute(insert(Mark), bench.marks()[:1])
            async with session.begin_nested() as lost:
                await session.execute(insert(Mark), bench.marks())
                await lost.rollback()
            async with session.begin_nested():
                await session.execute(insert(Mark), bench.marks()[1:])
        bench.acknowledged.add(bench.run)


async def streams(bench: Bench) -> None:
    """A stream is left half read; another one is open during a commit."""
    async with bench.engine.connect() as connection:
        async with connection.stream(ENDLESS) as result:
            await result.fetchmany(3)
        await connection.execute(insert(Mark), bench.marks())
        async with connection.stream(select(Item.id)) as result:
            await result.fetchmany(2)
            await connection.commit()
            bench.acknowledged.add(bench.run)
            await result.all()


async def validates(bench: Bench) -> None:
    """A reader by prediction writes, so what it has read is read again."""
    bench.learn()
    async with AsyncSession(bench.engine) as session:
        await session.execute(READ)
        async with session.begin_nested():
            await session.execute(select(Mark.id).limit(1))
            await session.execute(insert(Mark), bench.marks())
        await session.commit()
        bench.acknowledged.add(bench.run)


async def snapshot(bench: Bench) -> None:
    """A snapshot is taken, given up for the ticket, and validated."""
    bench.learn()
    async with bench.engine.connect() as connection:
        await connection.execution_options(qsession_reads="snapshot")
        await connection.execute(READ)
        await connection.execute(text("PRAGMA foreign_keys=ON"))
        await connection.execute(READ)
        await connection.execute(insert(Mark), bench.marks())
        await connection.commit()
        bench.acknowledged.add(bench.run)


async def nested(bench: Bench) -> None:
    """The inner session takes the ticket of the outer one, which is validated afterwards."""
    async with AsyncSession(bench.engine.execution_options(qsession_access="write")) as outer:
        await outer.execute(select(Item.id))
        async with AsyncSession(bench.engine) as inner:
            await inner.execute(update(Item).values(value=Item.value + 1))
            await inner.commit()
        await outer.execute(insert(Mark), bench.marks())
        await outer.commit()
        bench.acknowledged.add(bench.run)


async def autocommit(bench: Bench) -> None:
    """Each statement is its own transaction."""
    async with bench.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(select(Item.id))
        await connection.execute(insert(Mark).values(bench.marks()))
        bench.acknowledged.add(bench.run)
        await connection.execute(text("PRAGMA user_version=7"))


async def driver_connection(bench: Bench) -> None:
    """Somebody uses the aiosqlite connection by hand."""
    async with bench.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.execute("PRAGMA user_version")
        await connection.execute(insert(Mark), bench.marks())
        await connection.commit()
        bench.acknowledged.add(bench.run)


async def dispose(bench: Bench) -> None:
    """Dispose in the middle of a transaction, which then writes, and once more at the end."""
    bench.learn()
    async with bench.engine.connect() as connection:
        await connection.execute(READ)
        await bench.engine.dispose()
        await connection.execute(insert(Mark), bench.marks())
        await connection.commit()
        bench.acknowledged.add(bench.run)
    await bench.engine.dispose()


async def crowd(bench: Bench) -> None:
    """Several transactions at once, made durable together; one of them rolls back."""

    async def write(run: int) -> None:
        async with AsyncSession(bench.engine) as session:
            await session.execute(update(Item).values(value=Item.value + 1))
            await session.execute(MARK, [{"run": run}] * MARKS)
            if run % 4 == 2:
                await session.rollback()
                return
            await session.commit()
            bench.acknowledged.add(run)

    async with AsyncSession(bench.engine) as session:
        await session.execute(MARK, bench.marks())
        others = [asyncio.create_task(write(bench.run * 1000 + number)) for number in range(4)]
        try:
            await eventually(lambda: bench.engine.stats().waiting > 2)
            await session.commit()
            bench.acknowledged.add(bench.run)
            await asyncio.gather(*others)
        finally:
            for other in others:
                other.cancel()
            await asyncio.wait(others)


MARK = text("INSERT INTO marks (run) VALUES (:run)")
SCENARIOS = [
    crowd,
    plain_session,
    connection_block,
    queued_session,
    savepoints,
    streams,
    validates,
    snapshot,
    nested,
    autocommit,
    driver_connection,
    dispose,
]


async def until_it_ends(bench: Bench, scenario: Any, when: When) -> None:
    """Cancel a scenario at its first suspension, then at its second, until there are no more."""
    ended = False
    while not ended:
        bench.run += 1
        ended = await cancel_at(scenario(bench), bench.run, when)
        if when is When.ALL:  # the task that was to close a connection may never have begun
            await collected(bench.engine)
        await bench.check()
    assert bench.run in bench.acknowledged


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_cancelled_at_every_suspension(bench, scenario, when):
    """Wherever it is cancelled, nothing stays held and nothing is half written."""
    await until_it_ends(bench, scenario, when)


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize(
    ("taken", "scenario"),
    [
        (update(Item).values(value=1), connection_block),
        (update(Item).values(value=1), plain_session),
        (update(Item).values(value=1), validates),
        (READ, validates),
        (READ, streams),
    ],
)
async def test_cancelled_while_it_waits_for_another(bench, taken, scenario, when):
    """Another task holds what it needs, and hands it over once somebody waits for it."""

    async def behind_another(bench: Bench) -> None:
        await scenario(bench)

    async def hold(taken_by_me: asyncio.Event, over: asyncio.Event) -> None:
        bench.learn()
        pool = bench.engine.pool
        async with bench.engine.connect() as connection:
            await connection.execute(taken)
            taken_by_me.set()
            await eventually(
                lambda: (
                    over.is_set() or pool.write_queue.queue.waiting > 0 or pool._pool.waiting > 0
                )
            )

    ended = False
    waited = 0
    while not ended:
        bench.run += 1
        held, over = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(hold(held, over))
        await held.wait()
        before = bench.engine.pool.write_queue.queue.acquired
        ended = await cancel_at(behind_another(bench), bench.run, when)
        waited += bench.engine.pool.write_queue.queue.acquired - before
        over.set()
        await asyncio.gather(holder, return_exceptions=True)
        if when is When.ALL:
            await collected(bench.engine)
        await bench.check()
    assert bench.run in bench.acknowledged


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize("scenario", [connection_block, queued_session, autocommit, dispose])
async def test_cancelled_while_a_connection_is_closed(tmp_path, caplog, scenario, when):
    """With NullPool each transaction ends with that; its place is free, and nothing has failed."""
    options = {"poolclass": NullPool, "pool_size": None, "max_overflow": None}
    bench = await Bench.ready(tmp_path / "app.db", **options)
    await until_it_ends(bench, scenario, when)
    await bench.engine.dispose()
    assert "Exception closing connection" not in caplog.text


@pytest.mark.parametrize("when", When)
async def test_cancelled_on_a_cold_engine(tmp_path, when):
    """Wherever the first connections are cancelled, the next task opens them anew."""
    runs = 0
    ended = False
    while not ended:
        runs += 1
        bench = Bench(tmp_path / f"{runs}.db")

        async def first(bench: Bench = bench) -> None:
            async with bench.engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            await plain_session_after(bench)

        ended = await cancel_at(first(), runs, when)
        await bench.check()
        await bench.engine.dispose()
    assert runs > 10


async def plain_session_after(bench: Bench) -> None:
    async with AsyncSession(bench.engine) as session:
        session.add(Item())
        await session.commit()
        await plain_session(bench)


async def test_a_reader_gets_what_a_cancelled_holder_leaves(tmp_path):
    """A connection that was handed to the holder of the ticket is for readers again."""
    bench = await Bench.ready(tmp_path / "small.db", pool_timeout=5, stall_after=0.01)
    pool, reading = bench.engine.pool, bench.engine.execution_options(qsession_access="read")
    writing = bench.engine.execution_options(qsession_access="write")

    async def work(engine, statement):
        async with engine.connect() as connection:
            return (await connection.execute(statement)).all()

    async with writing.connect() as keeper, reading.connect() as first:
        stream = await keeper.stream(READ)  # its ticket is taken away, and the reserved one is not
        await first.execute(READ)
        holder = asyncio.create_task(work(bench.engine, select(Item).with_for_update()))
        await eventually(lambda: pool._reserved.waiting)
        reader = asyncio.create_task(work(reading, READ))
        await eventually(lambda: pool._pool.waiting)
        closing = asyncio.create_task(first.close())
        while pool._reserved.waiting:
            await asyncio.sleep(0)
        holder.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holder
        await closing
        assert len(await reader) == 5
        await stream.close()
    await bench.check()
    await bench.engine.dispose()


@pytest.mark.parametrize("ending", ["cancelled", "rolled back"])
async def test_a_stream_that_nobody_receives_keeps_no_snapshot(tmp_path, monkeypatch, ending):
    """It ends between SQLite's answer and the task, which waits for a later turn of the loop."""
    bench = await Bench.ready(tmp_path / "app.db")

    async def read(connection):
        await connection.stream(READ)

    async with bench.engine.connect() as connection:
        task, later = await until_it_paces(read(connection), monkeypatch)
        if ending == "cancelled":
            task.cancel()
        else:
            await connection.rollback()
            later.set_result(None)
        await asyncio.wait([task])  # its exception keeps the frames, and what they refer to
    async with bench.engine.connect() as another:
        assert len((await another.execute(READ)).all()) == 5
        with closing(sqlite3.connect(bench.path, isolation_level=None)) as outside:
            outside.execute("DELETE FROM items WHERE id > 2")
        await another.rollback()
        assert len((await another.execute(READ)).all()) == 2
    with pytest.raises((asyncio.CancelledError, QSessionError)):
        await task
    await bench.engine.dispose()
