"""Turns on one file between engines and processes: order, cancellation, crashes, and messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from cancelling import PATIENCE, Bench, Item, assert_free, eventually, rows
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import QSession, QueueTimeout, create_async_engine
from qsession.sqlite.processes import lock_files as lockfiles
from qsession.sqlite.processes import locking
from qsession.sqlite.processes.lock_files import LockFiles, last_holder, names
from qsession.sqlite.processes.turn import FileTurn
from qsession.sqlite.watch import TICKS, StallWatch

ADD = update(Item).where(Item.id == 1).values(value=Item.value + 1)
WORKER = Path(__file__).parent / "storm" / "process_worker.py"

HOLDER = """
import sys
from qsession.sqlite import lockfiles, locking
from qsession.sqlite.lockfiles import LockFiles
lockfiles.system = getattr(locking, sys.argv[2])()
locks = LockFiles(sys.argv[1])
assert locks.try_lock()
print("held", flush=True)
sys.stdin.readline()
"""

FOREIGN = """
import sqlite3, sys
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(params=["Flock", "Portable"], autouse=True)
def locks(request, monkeypatch):
    """By what the processes lock the files: flock(2), or what stands in for it on Windows."""
    monkeypatch.setattr(lockfiles, "system", getattr(locking, request.param)())


@contextlib.contextmanager
def holder(path, code=HOLDER):
    """Another process that has the turn, or a lock, until it is told to let go."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), type(lockfiles.system).__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def let_go(process):
    """It ends, and so gives its turn back."""
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
async def bench(tmp_path):
    made = await Bench.ready(tmp_path / "app.db")
    yield made
    await made.check()
    await made.engine.dispose()


async def add(bench):
    async with AsyncSession(bench.engine) as session:
        await session.execute(ADD)
        await session.commit()


def turn_of(bench):
    return bench.engine.pool.writer.turn


async def test_free_when_nobody_writes(bench):
    """An engine that is idle keeps nobody waiting, and says who wrote last."""
    await add(bench)
    await eventually(lambda: not turn_of(bench).held)
    assert last_holder(str(bench.path))[0] == os.getpid()
    assert LockFiles(str(bench.path)).try_lock()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's table of locks")
@pytest.mark.parametrize("locks", ["Flock"], indirect=True)
async def test_waits_in_the_kernel(bench):
    """Who waits for flock(2) is in the kernel's list of those it will wake, and asks nobody."""

    def wakes():
        table = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        inode = str(Path(names(str(bench.path))[1]).stat().st_ino)
        return [line for line in table if "->" in line and f":{inode} " in line]

    with holder(bench.path) as other:
        assert not wakes()
        writing = asyncio.create_task(add(bench))
        await eventually(wakes)
        assert f" {os.getpid()} " in wakes()[0]
        let_go(other)
        await asyncio.wait_for(writing, PATIENCE)


@pytest.mark.parametrize("end", ["release", "kill"])
async def test_waits_for_another_process(bench, end):
    """A write waits for its turn, also when the process before it is killed."""
    with holder(bench.path) as other:
        writing = asyncio.create_task(add(bench))
        await eventually(lambda: turn_of(bench).waits)
        assert not writing.done()
        if end == "kill":
            other.send_signal(signal.SIGKILL)
        else:
            let_go(other)
        await asyncio.wait_for(writing, PATIENCE)
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(1,)]


async def test_no_thread_to_wait_in(bench, monkeypatch):
    """Who cannot wait for its turn leaves the line, and keeps nobody else out of it."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with holder(bench.path) as other:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                await add(bench)
        let_go(other)
        other.wait(PATIENCE)
        assert LockFiles(str(bench.path)).try_lock()
    await add(bench)


async def test_cancelled_while_it_waits(bench):
    """The claim is given up; the next task takes over what waits in the kernel."""
    with holder(bench.path) as other:
        for _ in range(3):
            writing = asyncio.create_task(add(bench))
            await eventually(lambda: turn_of(bench).waits)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            assert not turn_of(bench).waits
        writing = asyncio.create_task(add(bench))
        await eventually(lambda: turn_of(bench).waits)
        let_go(other)
        await asyncio.wait_for(writing, PATIENCE)
    await eventually(lambda: not turn_of(bench).held)


async def test_a_turn_that_comes_too_late_is_given_back(bench):
    """Nobody of this engine wants it any more when the kernel grants it."""
    with holder(bench.path) as other:
        writing = asyncio.create_task(add(bench))
        await eventually(lambda: turn_of(bench).waits)
        writing.cancel()
        await asyncio.wait([writing])
        let_go(other)
        other.wait(PATIENCE)
    await eventually(lambda: not turn_of(bench)._coming)
    assert not turn_of(bench).held
    assert LockFiles(str(bench.path)).try_lock()


async def test_timeout_names_the_other_process(tmp_path):
    """Its pid and command line; nothing was run, and the engine goes on."""
    bench = await Bench.ready(tmp_path / "app.db", queue_timeout=0.2)
    with holder(bench.path) as other:
        with pytest.raises(QueueTimeout, match=rf"pid {other.pid} \(.*python"):
            await add(bench)
        with pytest.raises(QueueTimeout, match="NOWAIT"):
            async with AsyncSession(bench.engine) as session:
                await session.execute(select(Item).with_for_update(nowait=True))
    await bench.check()
    await bench.engine.dispose()


async def test_a_read_does_not_wait_for_another_process(tmp_path):
    """A SELECT that is taken for a writer goes to a snapshot, after ``stall_after``."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.05)
    with holder(bench.path):
        async with AsyncSession(bench.engine) as session:
            found = await asyncio.wait_for(session.scalars(select(Item.id)), PATIENCE)
            assert len(found.all()) == 5
    await bench.check()
    await bench.engine.dispose()


async def test_access_write_waits_for_another_process(tmp_path):
    """Its first SELECT goes to no snapshot, however long the other one idles: no conflict."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.02)

    async def change():
        async with QSession(bench.engine) as session:
            item = await session.get_one(Item, 1)
            item.value += 1
            await session.commit()

    with holder(bench.path) as other:
        first, second = (asyncio.create_task(change()) for _ in range(2))
        await eventually(lambda: turn_of(bench).waits)
        await eventually(bench.engine.pool.writer.watch.stalled)
        third = asyncio.create_task(change())
        await eventually(lambda: bench.engine.stats().waiting == 2)
        with contextlib.closing(sqlite3.connect(bench.path)) as raw, raw:
            raw.execute("UPDATE items SET value = 10 WHERE id = 1")
        let_go(other)
        await asyncio.wait_for(asyncio.gather(first, second, third), PATIENCE)
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(13,)]
    assert bench.engine.stats().conflicts == 0
    await bench.check()
    await bench.engine.dispose()


BUSY = """
import select, sqlite3, sys
from qsession.sqlite import lockfiles, locking
lockfiles.system = getattr(locking, sys.argv[2])()
locks = lockfiles.LockFiles(sys.argv[1])
assert locks.try_lock()
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute("PRAGMA synchronous=OFF")
print("held", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    raw.execute("UPDATE items SET value = value + 1 WHERE id = 1")
locks.unlock()
sys.stdin.read()
"""


async def test_a_turn_that_moves_is_waited_for(tmp_path, monkeypatch):
    """While another process writes, a first SELECT goes to no snapshot: its update would be lost.

    It is looked at three times as often as it takes to find an idle holder.
    """
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.5)
    looks = []
    judge = StallWatch._judge
    monkeypatch.setattr(StallWatch, "_judge", lambda watch: (looks.append(1), judge(watch)))

    async def change():
        async with AsyncSession(bench.engine) as session:
            item = await session.get_one(Item, 1)
            assert turn_of(bench).held
            seen, item.value = item.value, -1
            await session.commit()
            return seen

    with holder(bench.path, BUSY) as other:
        changing = asyncio.create_task(change())
        await eventually(lambda: turn_of(bench).waits)
        looks.clear()
        await eventually(lambda: len(looks) >= 3 * TICKS)
        assert not changing.done()
        let_go(other)
        assert await asyncio.wait_for(changing, PATIENCE) > 0
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(-1,)]
    assert bench.engine.stats().conflicts == 0
    await bench.check()
    await bench.engine.dispose()


async def test_foreign_writer_is_named(tmp_path):
    """A timeout on SQLite's own lock says which process holds it, where the system tells."""
    bench = await Bench.ready(tmp_path / "app.db", queue_timeout=0.1)
    with holder(bench.path, FOREIGN) as other:
        named = f"pid {other.pid}" if sys.platform == "linux" else "a process"
        with pytest.raises(QueueTimeout, match=named):
            await add(bench)
    await bench.check()
    await bench.engine.dispose()


async def test_engines_on_one_file(tmp_path, monkeypatch):
    """By its path, a relative one, and a symbolic link: one turn, no error, and nothing lost."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to(tmp_path / "app.db")
    benches = [await Bench.ready(tmp_path / "app.db"), Bench("app.db"), Bench("./link.db")]
    counted = await asyncio.gather(*(add(each) for each in benches * 30))
    assert len(counted) == 90
    assert rows("app.db", "SELECT value FROM items WHERE id = 1") == [(90,)]
    assert {each.name for each in tmp_path.glob("*-qsession*")} == {
        Path(each).name for each in names("app.db")
    }
    for each in benches:
        await each.check()
        await each.engine.dispose()


def test_event_loops_take_turns(tmp_path):
    """Three threads, each with a loop and an engine of its own: nothing is lost."""
    path = tmp_path / "app.db"

    async def make():
        bench = await Bench.ready(path)
        await bench.engine.dispose()

    async def work():
        bench = Bench(path)
        await asyncio.gather(*(add(bench) for _ in range(20)))
        await bench.check()
        await bench.engine.dispose()

    asyncio.run(make())
    with ThreadPoolExecutor(3) as threads:
        for each in [threads.submit(asyncio.run, work()) for _ in range(3)]:
            each.result()
    assert rows(path, "SELECT value FROM items WHERE id = 1") == [(60,)]


async def test_idle_reader_gives_the_turn_to_another_engine(tmp_path):
    """A transaction that has only read is suspended when another engine wants to write."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.05)
    other = Bench(bench.path, stall_after=0.05)
    async with AsyncSession(bench.engine) as session:
        item = await session.get_one(Item, 2)  # taken for a writer: it has the turn
        assert turn_of(bench).held
        await asyncio.wait_for(add(other), PATIENCE)
        item.value += 1
        await session.commit()
    assert rows(bench.path, "SELECT value FROM items WHERE id < 3") == [(1,), (1,)]
    assert bench.engine.stats().suspensions == 1
    for each in (bench, other):
        await each.check()
        await each.engine.dispose()


def test_one_that_stands_at_hold_stays_there(tmp_path, monkeypatch):
    """Who has ``next`` does not lock it again: on Windows that would wait for itself."""
    path = str(tmp_path / "app.db")
    Path(path).touch()
    one, other, third = (LockFiles(path) for _ in range(3))
    assert one.try_lock()
    assert not other.try_lock()  # it has "next" now
    asked = []
    lock = lockfiles.system.lock

    def note(file):
        asked.append(file)
        lock(file)

    monkeypatch.setattr(lockfiles.system, "lock", note)
    assert one.wanted()
    one.unlock()
    assert not third.try_lock()  # there is one before it
    other.wait()
    assert asked == [other._hold]
    assert not third.try_lock()
    other.unlock()
    third.wait()


def test_lock_files_have_the_mode_of_the_database(tmp_path):
    """Whoever may write to the file may wait for it, whatever the umask says."""
    path = tmp_path / "app.db"
    sqlite3.connect(path).close()
    path.touch()
    path.chmod(0o660)
    before = os.umask(0o077)
    try:
        LockFiles(str(path))
    finally:
        os.umask(before)
    assert [Path(each).stat().st_mode & 0o777 for each in names(str(path))] == [0o660] * 2


async def test_without_locks_writes_still_work(tmp_path, monkeypatch):
    """Where the file system has no locks, SQLite's own is left."""
    bench = await Bench.ready(tmp_path / "app.db")

    def no_locks(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(type(lockfiles.system), "try_lock", no_locks)
    await asyncio.gather(*(add(bench) for _ in range(5)))
    monkeypatch.undo()
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(5,)]
    await bench.check()
    await bench.engine.dispose()


def test_taken_now_while_another_thread_changes_it(tmp_path):
    """The answer is no; a turn that is granted a moment later is given back: nobody has it."""
    path = str(tmp_path / "app.db")
    Path(path).touch()
    turn = FileTurn()
    turn.on(path, None)
    inside, go = threading.Event(), threading.Event()

    def change(_):
        inside.set()
        assert go.wait(PATIENCE)

    other = threading.Thread(target=turn._serve, args=(change, None))
    other.start()
    assert inside.wait(PATIENCE)
    assert not turn.take_now("claimant")
    go.set()
    other.join(PATIENCE)
    assert not turn.held
    assert not turn._claims
    assert LockFiles(path).try_lock()


async def test_those_who_cannot_join_a_group_end_the_turn_as_well(tmp_path):
    """One group follows another at once; the engine that waits has its turn all the same."""
    one, two = await Bench.ready(tmp_path / "app.db"), await Bench.ready(tmp_path / "app.db")
    returning = text("UPDATE items SET value = value + 1 WHERE id = 1 RETURNING value, random()")
    done, waited_for = 0, asyncio.Event()

    async def write():
        nonlocal done
        while not waited_for.is_set() and done < 3_000:
            async with one.engine.begin() as connection:
                await connection.execute(returning)
            done += 1

    async def wait():
        for _ in range(3):
            await add(two)
        waited_for.set()

    await asyncio.gather(wait(), *(write() for _ in range(20)))
    assert done < 3_000
    for each in (one, two):
        await each.check()
        await each.engine.dispose()


def test_forked_child_leaves_the_turn_alone(tmp_path):
    """What the parent holds stays with the parent, and is free when it ends its turn."""
    path = str(tmp_path / "app.db")
    Path(path).touch()
    turn = FileTurn()
    turn.on(path, None)
    assert turn.take_now("parent")
    child = os.fork()
    if child == 0:  # pragma: no cover
        os._exit(0 if not turn.held and not LockFiles(path).try_lock() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert turn.held
    turn.done("parent")
    assert LockFiles(path).try_lock()


TURNS = """
import os, sys, time
from qsession.sqlite import lockfiles, locking
lockfiles.system = getattr(locking, sys.argv[2])()
locks = lockfiles.LockFiles(sys.argv[1])
log = os.open(sys.argv[1] + ".log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print("held", flush=True)
sys.stdin.readline()
line = f"{os.getpid():>10}\\n".encode()
over = False
while not over:
    if not locks.try_lock():
        locks.wait()
    over = os.fstat(log).st_size >= 60 * len(line)
    while not (over or locks.wanted()):
        time.sleep(0)
    if not over:
        os.write(log, line)
    locks.unlock()
"""


@pytest.mark.storm
def test_nobody_has_two_turns_while_others_wait(tmp_path):
    """Three processes take turn after turn, each until it is wanted: it is not the next one."""
    path = tmp_path / "app.db"
    path.touch()
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(holder(path, TURNS)) for _ in range(3)]
        for each in running:
            let_go(each)
        assert [each.wait(PATIENCE) for each in running] == [0] * 3
    turns = Path(f"{path}.log").read_text().split()
    assert len(turns) == 60
    assert all(one != other for one, other in pairwise(turns))


@pytest.mark.storm
def test_storm_of_processes(tmp_path):
    """Read-modify-writes of one row and inserts by 4 processes: no error, and nothing lost."""
    sys.path.append(str(WORKER.parent))
    from tables import Base, Counter

    path, processes, tasks, times = tmp_path / "app.db", 4, 10, 5

    async def make():
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(Counter.__table__.insert(), [{"id": 1, "value": 0}])
        await engine.dispose()

    asyncio.run(make())
    makers = {"Flock": "qsession", "Portable": "portable"}
    maker = makers[type(lockfiles.system).__name__]
    command = [str(tasks), str(times), f"{maker}:create_async_engine"]
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(path), str(each), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for each in range(processes)
    ]
    assert [each.stdout.readline() for each in running] == ["ready\n"] * processes
    for each in running:
        each.stdin.write("go\n")
        each.stdin.flush()
    outcomes = [json.loads(each.communicate(timeout=120)[0]) for each in running]
    assert [each["error"] for each in outcomes] == [[]] * processes
    assert [each["disorder"] for each in outcomes] == [0] * processes
    assert all(each["served"] >= tasks * times for each in outcomes)
    total = processes * tasks * times
    assert rows(path, "SELECT value FROM counters") == [(total,)]
    assert rows(path, "SELECT count(DISTINCT name) FROM events") == [(total,)]
    assert_free(path)
