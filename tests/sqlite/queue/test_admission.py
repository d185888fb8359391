"""Draining an engine: those at work come to their end, and nobody new begins."""

from __future__ import annotations

import asyncio
import gc

import pytest
from cancelling import Bench, Item, eventually, rows
from sqlalchemy import text, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import EngineDraining, QueueTimeout
from qsession.testing import When, cancel_at

ADD = update(Item).where(Item.id == 1).values(value=Item.value + 1)
READ = text("SELECT value FROM items")


@pytest.fixture
async def bench(tmp_path):
    made = await Bench.ready(tmp_path / "app.db")
    yield made
    await made.engine.dispose()
    await made.check()
    await made.engine.dispose()


async def add(bench):
    async with AsyncSession(bench.engine) as session:
        await session.execute(ADD)
        await session.commit()


async def begun(bench, statement=ADD):
    """A connection with an open transaction."""
    connection = await bench.engine.connect()
    await connection.execute(statement)
    return connection


async def drains(bench, timeout=None):
    """A drain that has shut the door."""
    task = asyncio.create_task(bench.engine.drain(timeout))
    await eventually(lambda: bench.engine.pool.admission.is_shut)
    return task


@pytest.mark.parametrize("statement", [ADD, READ], ids=["write", "read"])
async def test_those_at_work_go_on_and_others_are_refused(bench, statement):
    """An open transaction reads, writes and commits; a new one hears why it may not begin."""
    connection = await begun(bench, statement)
    draining = await drains(bench)
    with pytest.raises(EngineDraining, match=r"being drained.*UPDATE items"):
        await add(bench)
    async with bench.engine.connect() as other:
        with pytest.raises(InvalidRequestError, match="being drained"):
            await other.execute(READ)
    await connection.execute(ADD)
    assert not draining.done()
    await connection.commit()
    await draining
    with pytest.raises(EngineDraining):
        await connection.execute(READ)
    await connection.close()
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1")[0][0] == 1 + (statement is ADD)


async def test_the_queue_is_waited_for(bench):
    """Whoever waits for the ticket by then still gets it, and its commit is on disk."""
    connection = await begun(bench)
    waiting = [asyncio.create_task(add(bench)) for _ in range(20)]
    await eventually(lambda: bench.engine.stats().waiting == 20)
    draining = await drains(bench)
    await connection.commit()
    await connection.close()
    await draining
    await asyncio.gather(*waiting)
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(21,)]


async def test_out_of_time(bench):
    """The error names who is still at work; the door stays shut, and the transaction goes on."""
    connection = await begun(bench)
    with pytest.raises(QueueTimeout, match=r"1 transactions .* still open .*UPDATE items"):
        await bench.engine.drain(0.01)
    with pytest.raises(EngineDraining):
        await add(bench)
    await connection.commit()
    await connection.close()
    await bench.engine.drain(0.01)
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(1,)]


async def test_an_idle_engine_is_drained_at_once(bench):
    """Twice is once, and dispose() opens the door again."""
    await bench.engine.drain(0)
    await bench.engine.drain(0)
    await bench.engine.dispose()
    await add(bench)


@pytest.mark.parametrize("ending", ["rollback", "close", "invalidate", "forget", "fail"])
async def test_every_end_counts(bench, ending):
    """However a transaction ends, it is not waited for any more."""
    connection = await begun(bench)
    draining = await drains(bench)
    if ending == "forget":
        with pytest.warns(match="garbage collector"):  # noqa: PT031
            del connection
            gc.collect()
    elif ending == "fail":
        with pytest.raises(Exception, match="no such table"):
            await connection.execute(text("SELECT * FROM nowhere"))
        await connection.close()
    else:
        await getattr(connection, ending)()
    await draining
    if ending != "forget":
        await connection.close()


@pytest.mark.parametrize("access", ["auto", "read", "write"])
async def test_none_is_left_inside(bench, access):
    """Whatever transactions do, and however they fail, nobody is counted for ever."""
    engine = bench.engine.execution_options(qsession_access=access)
    for statement in (READ, ADD, text("nonsense"), text("PRAGMA user_version"), text("VACUUM")):
        for level in (None, "AUTOCOMMIT"):
            options = {} if level is None else {"isolation_level": level}
            async with engine.connect() as connection:
                await connection.execution_options(**options)
                try:
                    await connection.execute(statement)
                    await connection.begin_nested()
                    await connection.execute(READ)
                    await connection.commit()
                except Exception:
                    await connection.rollback()
            assert bench.engine.pool.admission.inside == 0
    await bench.engine.drain(1)


async def test_a_holder_that_loses_the_ticket_meanwhile(tmp_path):
    """One that has only read loses the ticket to the queue; it is at work until it ends."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.001)
    reader = await begun(bench, text("SELECT value FROM items WHERE id = 2"))
    await add(bench)
    assert bench.engine.stats().taken_away == 1
    draining = await drains(bench)
    await reader.execute(READ)
    assert not draining.done()
    await reader.close()
    await draining
    await bench.engine.dispose()


@pytest.mark.parametrize("when", list(When))
async def test_drain_cancelled_at_every_suspension(bench, when):
    """A cancelled drain leaves nothing behind, and the next one works."""
    n, over = 0, False
    while not over:
        n += 1
        connection = await begun(bench)

        async def drain(connection=connection):
            closing = asyncio.create_task(connection.close())
            try:
                await bench.engine.drain(5)
            finally:
                await asyncio.gather(closing, return_exceptions=True)

        over = await cancel_at(drain(), n, when)
        await connection.close()
        await bench.engine.drain(5)
        assert bench.engine.pool.admission._drains == []
        await bench.engine.dispose()
    assert n > 1


async def test_the_door_is_shut_for_threads(bench):
    """A transaction that another thread's loop begins is refused, or waited for: none is missed."""

    async def work():
        done = 0
        while True:
            try:
                await add(bench)
            except EngineDraining:
                return done
            done += 1

    threads = [asyncio.create_task(asyncio.to_thread(asyncio.run, work())) for _ in range(3)]
    await eventually(lambda: rows(bench.path, "SELECT value FROM items WHERE id = 1")[0][0] > 20)
    await bench.engine.drain(10)
    count = rows(bench.path, "SELECT value FROM items WHERE id = 1")[0][0]
    assert sum(await asyncio.gather(*threads)) == count
