"""A member of a commit group that stops: the finished ones do not wait for it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from cancelling import PATIENCE, assert_free, eventually, rows, settled
from grouping import ADD, COUNT, RAISE, marks, ready, steady, traced, waiters, write

from qsession import ConflictError, GroupAborted
from qsession.sqlite import commits, group


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine whose groups are closed by nothing but a member that stops."""
    monkeypatch.setattr(group, "MAX_AGE", 3600.0)
    steady(monkeypatch)
    made = await ready(tmp_path / "app.db", stall_after=3600.0)
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


class Stopped:
    """A member that writes and stops, until it is told how to end."""

    def __init__(self, bench, run=9):
        self.bench = bench
        self.run = run
        self.writes = True
        self.joined = asyncio.Event()
        self.over = asyncio.Event()
        self.keep = True
        self.seen = None

    async def member(self):
        async with self.bench.engine.connect() as connection:
            self.seen = (await connection.execute(COUNT)).scalar()
            if self.writes:
                await connection.execute(RAISE)
                await connection.execute(ADD, {"run": self.run})
            self.joined.set()
            await self.over.wait()
            if self.keep:
                await connection.commit()
            else:
                await connection.rollback()


async def others_return(made):
    """The first member, and those in front of the one that stopped, are acknowledged."""
    await asyncio.wait_for(made.first.commit(), PATIENCE)
    made.bench.acknowledged.add(0)
    await asyncio.wait_for(made.tasks[0], PATIENCE)
    await made.first.close()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("behind", [True, False])
async def test_goes_on_unnoticed(bench, keep, behind):
    """Taken out and replayed, it commits or rolls back as if nothing had happened."""
    slow = Stopped(bench)
    slow.keep = keep
    made = await waiters(bench, write(bench, 1), slow.member())
    if behind:
        await made.add(write(bench, 2))
    await others_return(made)
    assert slow.joined.is_set()
    assert not made.tasks[1].done()
    assert marks(bench) == [0, 1]
    slow.over.set()
    assert await made.outcomes() == [None] * len(made.tasks)
    assert slow.seen == 6
    assert marks(bench) == [0, 1, *[9] * keep, *[2] * behind]
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(int(keep),)]
    assert bench.engine.stats().conflicts == 0


async def test_keeps_its_turn(bench):
    """What waits behind it waits until it has ended: it lost its group, not the ticket."""
    slow = Stopped(bench)
    made = await waiters(bench, write(bench, 1), slow.member(), write(bench, 2))
    await others_return(made)
    await eventually(slow.joined.is_set)
    assert bench.engine.pool.writer.queue.waiting == 1
    slow.over.set()
    await made.outcomes()
    assert marks(bench) == [0, 1, 9, 2]


async def test_goes_on_with_another_statement(bench):
    """The statement that follows is the one behind which the replay happens."""
    over = asyncio.Event()

    async def member():
        async with bench.engine.begin() as connection:
            before = (await connection.execute(COUNT)).scalar()
            await connection.execute(ADD, {"run": 9})
            await over.wait()
            return before, (await connection.execute(COUNT)).scalar()

    sent = traced(bench)
    made = await waiters(bench, write(bench, 1), member())
    await others_return(made)
    over.set()
    assert await made.outcomes() == [None, (6, 9)]
    assert sent.count("BEGIN IMMEDIATE") == 2
    assert marks(bench) == [0, 1, 9]


async def test_stops_again_and_again(bench):
    """Each time it has lost its group it is alone, and is not taken out of anything."""
    steps = asyncio.Queue()

    async def member():
        async with bench.engine.begin() as connection:
            for run in (7, 8, 9):
                await connection.execute(ADD, {"run": run})
                await steps.get()

    made = await waiters(bench, write(bench, 1), member())
    await others_return(made)
    await made.add(write(bench, 2))
    for _ in range(3):
        steps.put_nowait(None)
        await eventually(steps.empty)
    await made.outcomes()
    assert marks(bench) == [0, 1, 7, 8, 9, 2]


@pytest.mark.parametrize("stopped", [True, False])
async def test_is_cancelled(bench, stopped):
    """Before or after it was taken out: its work is gone, the others' is there."""
    slow = Stopped(bench)
    made = await waiters(bench, write(bench, 1), slow.member(), write(bench, 2))
    if stopped:
        await others_return(made)
        made.tasks[1].cancel()
    else:
        going = asyncio.create_task(others_return(made))
        await slow.joined.wait()
        made.tasks[1].cancel()
        await going
    outcomes = await made.outcomes()
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert marks(bench) == [0, 1, 2]


async def test_only_read(bench):
    """One that only read ends without a replay, once what it read is durable."""
    slow = Stopped(bench)
    slow.writes = False
    made = await waiters(bench, write(bench, 1), slow.member())
    await others_return(made)
    slow.over.set()
    assert await made.outcomes() == [None, None]
    assert bench.engine.stats().replays == 0


@pytest.mark.parametrize("writes", [True, False])
async def test_what_it_had_read_is_undone(bench, monkeypatch, writes):
    """The COMMIT of its group fails: it has read what never was, and is told so."""
    slow = Stopped(bench)
    slow.writes = writes
    made = await waiters(bench, write(bench, 1), slow.member())
    monkeypatch.setattr(group, "_commit", lambda raw, timeout: OSError("made up"))
    with pytest.raises(OSError, match="made up"):
        await made.first.commit()
    monkeypatch.undo()
    slow.over.set()
    _, outcome = await made.outcomes()
    assert isinstance(outcome, ConflictError if writes else GroupAborted)
    assert marks(bench) == []
    await made.first.close()


def test_its_loop_is_closed(tmp_path, monkeypatch):
    """The loop of a member is closed while it has stopped: members of other loops go on."""
    monkeypatch.setattr(group, "MAX_AGE", 3600.0)
    steady(monkeypatch)
    bench = asyncio.run(ready(tmp_path / "app.db"))
    joined = threading.Event()
    left_open = []

    async def dies():
        left_open.append(connection := await bench.engine.connect())
        await connection.execute(COUNT)
        await connection.execute(ADD, {"run": 9})
        joined.set()
        await asyncio.Event().wait()

    def other_loop():
        loop = asyncio.new_event_loop()
        task = loop.create_task(dies())
        while not joined.is_set():
            loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False
        loop.close()

    async def main():
        made = await waiters(bench)
        thread = threading.Thread(target=other_loop)
        thread.start()
        await eventually(lambda: bench.engine.pool.writer.queue.waiting == 1)
        await made.first.commit()
        await asyncio.to_thread(thread.join)
        assert marks(bench) == [0]
        await asyncio.wait_for(write(bench, 1), PATIENCE)
        assert marks(bench) == [0, 1]
        await made.first.close()
        await left_open.pop().close()
        await settled(bench.engine)
        await bench.engine.dispose()

    asyncio.run(main())
    assert_free(bench.path)


def test_it_is_in_another_loop(tmp_path, monkeypatch):
    """Taken out in its own loop, it goes on there."""
    monkeypatch.setattr(group, "MAX_AGE", 3600.0)
    steady(monkeypatch)
    bench = asyncio.run(ready(tmp_path / "app.db"))
    over = threading.Event()

    async def stops():
        async with bench.engine.begin() as connection:
            assert (await connection.execute(COUNT)).scalar() == 3
            await connection.execute(ADD, {"run": 9})
            await asyncio.to_thread(over.wait, PATIENCE)
        assert marks(bench) == [0, 9]

    async def main():
        made = await waiters(bench)
        thread = threading.Thread(target=asyncio.run, args=(stops(),))
        thread.start()
        await eventually(lambda: bench.engine.pool.writer.queue.waiting == 1)
        await asyncio.wait_for(made.first.commit(), PATIENCE)
        assert not over.is_set()
        assert marks(bench) == [0]
        over.set()
        await asyncio.to_thread(thread.join)
        await made.first.close()
        assert marks(bench) == [0, 9]
        await bench.engine.dispose()

    asyncio.run(main())
    assert_free(bench.path)


async def test_slow_is_counted_from_joining(bench, monkeypatch):
    """A member that was quick so far is left in its group, and shares the COMMIT."""
    monkeypatch.setattr(commits, "SLOW", 3600.0)
    slow = Stopped(bench)
    sent = traced(bench)
    made = await waiters(bench, write(bench, 1), slow.member())
    going = asyncio.create_task(others_return(made))
    await slow.joined.wait()
    slow.over.set()
    await going
    await made.outcomes()
    assert sent.count("COMMIT") == 1
