"""Engines and processes on one file: who waits for whom, for how long, and what they are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cancelling import PATIENCE, Bench, Item, eventually, rows
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import QSession, QueueTimeout
from qsession.sqlite.processes import locking
from qsession.sqlite.processes.lock_file import names
from qsession.sqlite.processes.lock_files import LockFiles
from qsession.testing import Program

LOCKS = Path("/proc/locks")
ADD = update(Item).where(Item.id == 1).values(value=Item.value + 1)

HOLDER = """
from qsession.sqlite.processes import lock_files, locking
locking.system = getattr(locking, sys.argv[2])()
locks = lock_files.LockFiles(sys.argv[1])
if not locks.try_lock():
    locks.wait()
held()
"""

FOREIGN = """
import sqlite3
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute("BEGIN IMMEDIATE")
held()
"""


@pytest.fixture(params=["Flock", "Portable"], autouse=True)
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the processes lock the files: flock(2), or what stands in for it on Windows."""
    monkeypatch.setattr(locking, "system", getattr(locking, request.param)())


def holder(path: Path, code: str = HOLDER) -> Program:
    """Another process that has the turn, or a lock, until it is told to let go."""
    return Program(code, path, type(locking.system).__name__)


async def add(bench: Bench) -> None:
    async with AsyncSession(bench.engine) as session:
        await session.execute(ADD)
        await session.commit()


def value(bench: Bench) -> int:
    (found,) = rows(bench.path, "SELECT value FROM items WHERE id = 1")
    return int(found[0])


def waits(bench: Bench) -> bool:
    """Whether the engine waits for its turn on the file."""
    found: bool = bench.engine.pool.write_queue.turn.waits
    return found


@contextlib.asynccontextmanager
async def ready(path: Path, **options: Any) -> Any:
    """An engine that takes nobody for stuck, unless told otherwise; found whole afterwards."""
    bench = await Bench.ready(path, **{"stall_after": PATIENCE, **options})
    yield bench
    await bench.check()
    await bench.engine.dispose()


async def test_an_idle_engine_is_in_nobody_s_way(tmp_path: Path) -> None:
    """Its turn is over soon after it has written."""
    async with ready(tmp_path / "app.db") as bench:
        await add(bench)
        other = LockFiles(str(bench.path))
        await eventually(other.try_lock)
        other.close()


@pytest.mark.skipif(not LOCKS.exists(), reason="needs the kernel's table of locks")
@pytest.mark.parametrize("locks", ["Flock"], indirect=True)
async def test_waits_in_the_kernel(tmp_path: Path) -> None:
    """An engine that waits for flock(2) is on the kernel's list, and polls nothing."""

    def wakes(bench: Bench) -> list[str]:
        inode = str(Path(names(str(bench.path))[1]).stat().st_ino)
        lines = LOCKS.read_text(encoding="ascii").splitlines()
        return [line for line in lines if "->" in line and f":{inode} " in line]

    async with ready(tmp_path / "app.db") as bench:
        async with holder(bench.path) as other:
            assert not wakes(bench)
            writing = asyncio.create_task(add(bench))
            await eventually(lambda: bool(wakes(bench)))
            assert f" {os.getpid()} " in wakes(bench)[0]
            other.let_go()
            await asyncio.wait_for(writing, PATIENCE)


@pytest.mark.parametrize("end", ["release", "kill"])
async def test_a_write_waits_for_another_process(tmp_path: Path, end: str) -> None:
    """Also when the process before it is killed."""
    async with ready(tmp_path / "app.db") as bench:
        async with holder(bench.path) as other:
            writing = asyncio.create_task(add(bench))
            await eventually(lambda: waits(bench))
            assert not writing.done()
            if end == "kill":
                other.kill()
            else:
                other.let_go()
            await asyncio.wait_for(writing, PATIENCE)
        assert value(bench) == 1


async def test_a_process_that_stands_still_delays_nobody_for_long(tmp_path: Path) -> None:
    """It has the turn and writes nothing: after ``stall_after`` others write beside it."""
    async with ready(tmp_path / "app.db", stall_after=0.02) as bench:
        async with holder(bench.path):
            await asyncio.wait_for(add(bench), PATIENCE)
            async with QSession(bench.engine) as session:
                (await session.get_one(Item, 1)).value += 1
                await session.commit()
        assert value(bench) == 2


async def test_cancelled_while_it_waits(tmp_path: Path) -> None:
    """Its place is given up; the next task takes over what waits in the kernel."""
    async with ready(tmp_path / "app.db") as bench:
        async with holder(bench.path) as other:
            for _ in range(3):
                writing = asyncio.create_task(add(bench))
                await eventually(lambda: waits(bench))
                writing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await writing
                assert not waits(bench)
            writing = asyncio.create_task(add(bench))
            await eventually(lambda: waits(bench))
            other.let_go()
            await asyncio.wait_for(writing, PATIENCE)


async def test_timeout_names_the_other_process(tmp_path: Path) -> None:
    """Its pid and command line; nothing was run, and the engine goes on."""
    async with ready(tmp_path / "app.db", queue_timeout=0.2) as bench:
        async with holder(bench.path) as other:
            with pytest.raises(QueueTimeout, match=rf"pid {other.pid} \(.*python"):
                await add(bench)
            with pytest.raises(QueueTimeout, match="NOWAIT"):
                async with AsyncSession(bench.engine) as session:
                    await session.execute(select(Item).with_for_update(nowait=True))


@pytest.mark.parametrize("stall_after", [PATIENCE, 0.02])
async def test_timeout_names_the_task_of_another_engine(tmp_path: Path, stall_after: float) -> None:
    """It is the one that has written, not one that waits for the turn or the lock as well."""
    path = tmp_path / "app.db"
    async with ready(path) as first:
        third, second = (
            Bench(path, stall_after=stall_after, queue_timeout=seconds)
            for seconds in (PATIENCE, 0.5)
        )
        has_written, may_end = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            async with AsyncSession(first.engine) as session:
                session.add(Item(id=100))
                await session.flush()
                has_written.set()
                await may_end.wait()
                await session.commit()

        writing = asyncio.create_task(write(), name="the slow import")
        await asyncio.wait_for(has_written.wait(), PATIENCE)
        third.engine.pool.write_queue.turn._open_locks = lambda: None  # as without descriptors
        waiting = asyncio.create_task(add(third), name="the patient one")
        await eventually(lambda: third.engine.stats().holder is not None)
        with pytest.raises(QueueTimeout, match="this process") as caught:
            await asyncio.create_task(add(second))
        assert "the slow import" in str(caught.value)
        assert "INSERT INTO item" in str(caught.value)
        assert "the patient one" not in str(caught.value)
        may_end.set()
        await asyncio.wait_for(asyncio.gather(writing, waiting), PATIENCE)
        assert value(first) == 1
        await second.engine.dispose()
        await third.engine.dispose()


async def test_a_read_does_not_wait_for_another_process(tmp_path: Path) -> None:
    """A SELECT that is taken for one that writes goes without the turn after ``stall_after``."""
    async with ready(tmp_path / "app.db", stall_after=0.05) as bench:
        async with holder(bench.path):
            async with AsyncSession(bench.engine) as session:
                found = await asyncio.wait_for(session.scalars(select(Item.id)), PATIENCE)
                assert len(found.all()) == 5


async def test_a_foreign_writer_is_named(tmp_path: Path) -> None:
    """A timeout on SQLite's own lock says which process holds it, where the system tells."""
    async with ready(tmp_path / "app.db", queue_timeout=0.1) as bench:
        async with holder(bench.path, FOREIGN) as other:
            named = f"pid {other.pid}" if sys.platform == "linux" else "process"
            with pytest.raises(QueueTimeout, match=named):
                await add(bench)


async def test_engines_on_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, a relative one, and a symbolic link: one turn, no error, and nothing lost."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to(tmp_path / "app.db")
    benches = [await Bench.ready(tmp_path / "app.db"), Bench("app.db"), Bench("./link.db")]
    counted = await asyncio.gather(*(add(each) for each in benches * 30))
    assert len(counted) == 90
    assert value(benches[0]) == 90
    found = {each for each in os.listdir(tmp_path) if "-qsession" in each}
    assert found == {Path(each).name for each in names("app.db")}
    for each in benches:
        await each.check()
        await each.engine.dispose()


def test_event_loops_take_turns(tmp_path: Path) -> None:
    """Three threads, each with a loop and an engine of its own: nothing is lost."""
    path = tmp_path / "app.db"

    async def make() -> Bench:
        bench = await Bench.ready(path)
        await bench.engine.dispose()
        return bench

    async def work() -> None:
        bench = Bench(path)
        await asyncio.gather(*(add(bench) for _ in range(20)))
        await bench.engine.dispose()

    async def look() -> None:
        bench = Bench(path)
        await bench.check()
        await bench.engine.dispose()

    made = asyncio.run(make())
    with ThreadPoolExecutor(3) as threads:
        for each in [threads.submit(asyncio.run, work()) for _ in range(3)]:
            each.result()
    asyncio.run(look())  # when nobody else reads
    assert value(made) == 60


async def test_an_idle_reader_gives_the_turn_to_another_engine(tmp_path: Path) -> None:
    """What it has read is validated when it writes: here nobody has changed it."""
    one = await Bench.ready(tmp_path / "app.db", stall_after=0.05)
    two = Bench(one.path, stall_after=PATIENCE)
    async with QSession(one.engine) as session:
        item = await session.get_one(Item, 2)
        assert one.engine.pool.write_queue.turn.held
        await asyncio.wait_for(add(two), PATIENCE)
        item.value += 1
        await session.commit()
    assert rows(one.path, "SELECT value FROM items WHERE id < 3") == [(1,), (1,)]
    stats = one.engine.stats()
    assert (stats.taken_away, stats.validations, stats.conflicts) == (1, 1, 0)
    for each in (one, two):
        await each.check()
        await each.engine.dispose()


async def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes still work: SQLite's own lock is left."""
    async with ready(tmp_path / "app.db") as bench:

        def no_locks(*_: object) -> None:
            raise OSError("no locks here")

        with monkeypatch.context() as patch:
            patch.setattr(type(locking.system), "try_lock", no_locks)
            await asyncio.gather(*(add(bench) for _ in range(5)))
        assert value(bench) == 5


async def test_an_engine_under_load_passes_the_turn_on(tmp_path: Path) -> None:
    """One writes without a pause; the engine that waits has its turn all the same."""
    one, two = await Bench.ready(tmp_path / "app.db"), await Bench.ready(tmp_path / "app.db")
    done, over = 0, asyncio.Event()

    async def write() -> None:
        nonlocal done
        while not over.is_set() and done < 3_000:
            await add(one)
            done += 1

    async def wait() -> None:
        for _ in range(3):
            await add(two)
        over.set()

    await asyncio.gather(wait(), *(write() for _ in range(20)))
    assert done < 3_000
    for each in (one, two):
        await each.check()
        await each.engine.dispose()
