"""Groups while the engine is disposed of or recycles connections, and in several event loops."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter

import pytest
from cancelling import PATIENCE, Item, assert_free, eventually, rows, settled
from grouping import (
    ADD,
    COUNT,
    Gate,
    marks,
    patient,
    raw_writer,
    ready,
    together,
    traced,
    waiters,
    whole,
    write,
)
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.sqlite import group


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine that is found whole and free after the test."""
    async with whole(tmp_path / "app.db", monkeypatch) as made:
        yield made


class Pausing:
    """A member that pauses after it has joined."""

    def __init__(self, bench, keep=True):
        self.bench = bench
        self.keep = keep
        self.joined = asyncio.Event()
        self.over = asyncio.Event()

    async def member(self):
        async with self.bench.engine.connect() as connection:
            await connection.execute(COUNT)
            await connection.execute(ADD, {"run": 9})
            self.joined.set()
            await self.over.wait()
            await (connection.commit() if self.keep else connection.rollback())


@pytest.mark.parametrize("end", ["commit", "rollback", "cancel"])
async def test_dispose_while_a_member_is_at_work(bench, end):
    """It ends in its group, whose COMMIT comes before the connection is closed."""
    slow = Pausing(bench, end == "commit")
    made = await waiters(bench, write(bench, 1), slow.member(), write(bench, 2))
    going = asyncio.create_task(made.go())
    await slow.joined.wait()
    old = bench.engine.pool.writer
    driver = old._record.dbapi_connection
    await bench.engine.dispose()
    assert bench.engine.pool.writer is not old
    if end == "cancel":
        made.tasks[1].cancel()
    slow.over.set()
    outcomes = await asyncio.wait_for(going, PATIENCE)
    await made.first.close()
    assert outcomes[::2] == [None, None]
    assert outcomes[1] is None or end == "cancel"
    assert marks(bench) == [0, 1, *[9] * (end == "commit"), 2]
    await eventually(lambda: not driver._connection._running)


async def test_dispose_while_the_next_one_is_woken_up(bench):
    """A group is open, its first member waits, and the next has not had its turn of the loop."""
    made = await waiters(bench, write(bench, 1), write(bench, 2))
    release = bench.engine.pool.writer.queue._release
    disposed = []

    def dispose(ticket):
        release(ticket)
        if not disposed:
            disposed.append(asyncio.create_task(bench.engine.dispose()))
            made.tasks[0].cancel()

    bench.engine.pool.writer.queue._release = dispose
    outcomes = await asyncio.wait_for(made.go(), PATIENCE)
    await disposed[0]
    await made.first.close()
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1] is None
    assert marks(bench) == [0, 2]


async def test_dispose_while_the_commit_runs(bench, monkeypatch):
    """The group that was sent off is made durable; a new connection serves those who come."""
    gate = Gate(monkeypatch, group, "_commit")
    made = await waiters(bench, write(bench, 1))
    going = asyncio.create_task(made.go())
    await gate.is_reached()
    disposing = asyncio.create_task(bench.engine.dispose())
    later = asyncio.create_task(write(bench, 2))
    await asyncio.wait([disposing, later], timeout=0)
    gate.opened.set()
    assert await going == [None]
    await asyncio.gather(disposing, later)
    await made.first.close()
    assert marks(bench) == [0, 1, 2]


async def test_dispose_over_and_over(bench):
    """Nobody waits for ever, and nothing that was acknowledged is lost."""
    choice = random.Random(1)

    async def disposes():
        for _ in range(50):
            await bench.engine.dispose()
            for _ in range(choice.randint(0, 20)):
                await asyncio.sleep(0)

    writes = [write(bench, run) for run in range(100)]
    await asyncio.wait_for(asyncio.gather(disposes(), *writes), PATIENCE)
    assert sorted(marks(bench)) == list(range(100))


async def test_connection_is_not_recycled_under_a_group(tmp_path, monkeypatch):
    """``pool_recycle`` waits for the COMMIT of the members that the old connection has."""
    patient(monkeypatch)
    bench = await ready(tmp_path / "app.db", pool_recycle=0)
    assert await together(bench, *(write(bench, run) for run in range(1, 5))) == [None] * 4
    assert marks(bench) == list(range(5))
    await bench.check()
    await bench.engine.dispose()


async def test_invalidated_under_a_group(bench):
    """A member gives up its physical connection: the group is saved before it is closed."""

    async def invalidate():
        connection = await bench.engine.connect()
        await connection.execute(ADD, {"run": 9})
        await connection.invalidate()
        await connection.close()

    before = raw_writer(bench)
    outcomes = await together(bench, write(bench, 1), invalidate(), write(bench, 2))
    assert outcomes == [None] * 3
    assert marks(bench) == [0, 1, 2]
    assert raw_writer(bench) is not before


def test_members_of_two_loops(tmp_path, monkeypatch):
    """One COMMIT serves tasks of both loops, and each is told in its own."""
    patient(monkeypatch)
    bench = asyncio.run(ready(tmp_path / "app.db"))
    told = []

    async def other():
        await write(bench, 9)
        told.append(threading.get_ident())

    async def main():
        sent = traced(bench)
        made = await waiters(bench, write(bench, 1))
        thread = threading.Thread(target=asyncio.run, args=(other(),))
        thread.start()
        await eventually(lambda: bench.engine.pool.writer.queue.waiting == 2)
        await made.add(write(bench, 2))
        assert await made.go() == [None, None]
        await asyncio.to_thread(thread.join)
        assert told == [thread.ident]
        await made.first.close()
        await settled(bench.engine)
        await bench.engine.dispose()
        assert sent.count("COMMIT") == 1

    asyncio.run(main())
    assert marks(bench) == [0, 1, 9, 2]
    assert_free(bench.path)


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_storm_of_two_loops(tmp_path, durability):
    """Readers that write, members that roll back and are cancelled, in two loops: none is lost."""
    bench = asyncio.run(ready(tmp_path / "app.db", durability=durability))
    counted = Counter()

    async def task(choice):
        for _ in range(15):
            end = choice.choice(["commit", "rollback", "cancel"])
            item = choice.randint(1, 2)

            async def work(end=end, item=item):
                async with AsyncSession(bench.engine) as session:
                    found = await session.get(Item, item)
                    found.value += 1
                    await session.flush()
                    await (session.rollback() if end == "rollback" else session.commit())

            running = asyncio.create_task(work())
            if end == "cancel":
                for _ in range(choice.randint(0, 12)):
                    await asyncio.sleep(0)
                running.cancel()
            outcome = (await asyncio.gather(running, return_exceptions=True))[0]
            if outcome is None:
                counted[item] += end != "rollback"
            else:
                assert isinstance(outcome, asyncio.CancelledError), outcome
                counted["unsure", item] += 1

    async def loop(seed):
        await asyncio.gather(*(task(random.Random(f"{seed} {each}")) for each in range(8)))

    threads = [threading.Thread(target=asyncio.run, args=(loop(seed),)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for item, value in rows(bench.path, "SELECT id, value FROM items WHERE id < 3"):
        assert counted[item] <= value <= counted[item] + counted["unsure", item]
    asyncio.run(bench.check())
    asyncio.run(bench.engine.dispose())
    assert_free(bench.path)


async def test_stall_of_the_first_member(bench):
    """Before it has ended there is no group, so nobody waits for its COMMIT but in the queue."""
    first = await bench.engine.connect()
    await first.execute(update(Item).values(value=1))
    other = asyncio.create_task(write(bench, 1))
    await eventually(lambda: bench.engine.pool.writer.queue.waiting == 1)
    assert bench.engine.pool.writer.group is None
    await first.rollback()
    await other
    await first.close()
    assert marks(bench) == [1]
