"""The engine is disposed of, or a connection recycled, while transactions are at work."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cancelling import PATIENCE, Bench, Item, assert_free, connection_threads, eventually, rows
from queueing import ADD, marks, together, waiters, write
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.testing import held_disk


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """An engine that is found whole and free after the test."""
    made = await Bench.ready(tmp_path / "app.db")
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


@pytest.mark.parametrize("end", ["commit", "rollback", "cancel"])
async def test_while_a_transaction_is_at_work(bench: Bench, end: str) -> None:
    """It ends on the connection that it has, which is closed then; the next gets a new one."""
    written, over = asyncio.Event(), asyncio.Event()
    closes: set[threading.Thread] = set()

    async def slow() -> None:
        async with bench.engine.connect() as connection:
            await connection.execute(ADD, {"run": 9})
            closes.update(connection_threads())
            written.set()
            await over.wait()
            await (connection.commit() if end == "commit" else connection.rollback())

    made = await waiters(bench, write(bench, 1), slow(), write(bench, 2))
    going = asyncio.create_task(made.go())
    await written.wait()
    await bench.engine.dispose()
    if end == "cancel":
        made.tasks[1].cancel()
    over.set()
    outcomes = await asyncio.wait_for(going, PATIENCE)
    await made.holder.close()
    assert outcomes[::2] == [None, None]
    assert outcomes[1] is None or end == "cancel"
    assert marks(bench) == [0, 1, *[9] * (end == "commit"), 2]
    await eventually(lambda: not any(each.is_alive() for each in closes))


async def test_while_the_next_one_is_woken_up(bench: Bench) -> None:
    """The ticket is handed to a task that is cancelled; the next one is not forgotten."""
    made = await waiters(bench, write(bench, 1), write(bench, 2))
    queue = bench.engine.pool.write_queue.queue
    release = queue.release
    disposed: list[asyncio.Task[None]] = []

    def dispose(ticket: object) -> None:
        release(ticket)
        if not disposed:
            disposed.append(asyncio.create_task(bench.engine.dispose()))
            made.tasks[0].cancel()

    queue.release = dispose
    outcomes = await asyncio.wait_for(made.go(), PATIENCE)
    await disposed[0]
    await made.holder.close()
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1] is None
    assert marks(bench) == [0, 2]


async def test_while_a_commit_waits_for_the_disk(bench: Bench) -> None:
    """It is acknowledged when it is on the disk; a new connection serves those who come."""
    with held_disk() as disk:
        writing = asyncio.create_task(write(bench, 1))
        sync = await disk.begun()
        await bench.engine.dispose()
        assert not writing.done()
        later = asyncio.create_task(write(bench, 2))
        await eventually(lambda: marks(bench) == [1, 2])
        assert not later.done()
        sync.end()
        await asyncio.wait_for(writing, PATIENCE)
        disk.open()
        await asyncio.wait_for(later, PATIENCE)


async def test_over_and_over(bench: Bench) -> None:
    """Nobody waits for ever, and nothing that was acknowledged is lost."""
    choice = random.Random(1)

    async def disposes() -> None:
        for _ in range(50):
            await bench.engine.dispose()
            for _ in range(choice.randint(0, 20)):
                await asyncio.sleep(0)

    writes = [write(bench, run) for run in range(100)]
    await asyncio.wait_for(asyncio.gather(disposes(), *writes), PATIENCE)
    assert sorted(marks(bench)) == list(range(100))


async def test_a_connection_is_recycled(tmp_path: Path) -> None:
    """``pool_recycle`` closes a connection between two transactions, and in none."""
    bench = await Bench.ready(tmp_path / "app.db", pool_recycle=0)
    assert await together(bench, *(write(bench, run) for run in range(1, 5))) == [None] * 4
    assert marks(bench) == list(range(5))
    await bench.check()
    await bench.engine.dispose()


async def test_a_connection_is_invalidated(bench: Bench) -> None:
    """What it had written is gone, and nothing of anybody else's."""

    async def invalidate() -> None:
        connection = await bench.engine.connect()
        await connection.execute(ADD, {"run": 9})
        await connection.invalidate()
        await connection.close()

    outcomes = await together(bench, write(bench, 1), invalidate(), write(bench, 2))
    assert outcomes == [None] * 3
    assert marks(bench) == [0, 1, 2]


def test_one_fsync_for_two_loops(tmp_path: Path) -> None:
    """Those who commit while an fsync runs share the next one, and each is told in its loop."""
    told = []

    async def other(bench: Bench) -> None:
        await write(bench, 9)
        told.append(threading.get_ident())

    async def main() -> None:
        bench = await Bench.ready(tmp_path / "app.db")
        before = bench.engine.stats()
        with held_disk() as disk:
            first = asyncio.create_task(write(bench, 1))
            sync = await disk.begun()
            thread = threading.Thread(target=asyncio.run, args=(other(bench),))
            thread.start()
            second = asyncio.create_task(write(bench, 2))
            await eventually(lambda: bench.engine.stats().commits == before.commits + 3)
            assert not first.done()
            sync.end()
            await first
            assert not second.done()
            (await disk.begun()).end()
            await second
            await asyncio.to_thread(thread.join)
            assert disk.is_quiet
        assert told == [thread.ident]
        assert bench.engine.stats().syncs - before.syncs == 2
        assert sorted(marks(bench)) == [1, 2, 9]
        await bench.check()
        await bench.engine.dispose()

    asyncio.run(main())
    assert_free(tmp_path / "app.db")


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_storm_of_two_loops(tmp_path: Path, durability: str) -> None:
    """Readers that write, some roll back and some are cancelled, in two loops: none is lost."""
    options = {"durability": durability, "access": "write", "stall_after": PATIENCE}
    bench = asyncio.run(Bench.ready(tmp_path / "app.db", **options))
    counted: Counter[object] = Counter()

    async def change(item: int, end: str) -> None:
        async with AsyncSession(bench.engine) as session:
            found = await session.get_one(Item, item)
            found.value += 1
            await session.flush()
            await (session.rollback() if end == "rollback" else session.commit())

    async def task(choice: random.Random) -> None:
        for _ in range(15):
            end = choice.choice(["commit", "rollback", "cancel"])
            item = choice.randint(1, 2)
            running = asyncio.create_task(change(item, end))
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

    async def loop(seed: int) -> None:
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
