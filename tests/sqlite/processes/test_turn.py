"""Turns on one file between engines and processes: slices, stalls, order, cancellation, crashes.

No engine is needed: a test is the holder of the ticket. Calling ``take`` outside of a greenlet
proves that it does not wait: there it could not.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.util import greenlet_spawn

from qsession.sqlite.processes import locking
from qsession.sqlite.processes import turn as module
from qsession.sqlite.processes.lock_file import names
from qsession.sqlite.processes.lock_files import LockFiles, last_holder
from qsession.sqlite.processes.turn import SLICE, FileTurn

PATIENCE = 20.0
"""Seconds after which something that should have ended is taken for stuck."""
SOON = 0.02
"""Seconds without a move after which a turn is taken for stalled here."""

HOLDER = """
import sys
from qsession.sqlite.processes import lock_files, locking
locking.system = getattr(locking, sys.argv[2])()
locks = lock_files.LockFiles(sys.argv[1])
assert locks.try_lock()
print("held", flush=True)
sys.stdin.readline()
locks.unlock()
print("free", flush=True)
sys.stdin.read()
"""

TURNS = """
import asyncio, os, sys
from sqlalchemy.util import greenlet_spawn
from qsession.sqlite.processes import lock_files, locking, turn as module
locking.system = getattr(locking, sys.argv[2])()
module.SLICE = 0.0
turn = module.FileTurn()
turn.on(sys.argv[1], None)
log = os.open(sys.argv[1] + ".log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
line = f"{os.getpid():>10}\\n".encode()
print("held", flush=True)
sys.stdin.readline()

async def main():
    over = False
    while not over:
        assert await greenlet_spawn(turn.take, 20.0, float("inf"))
        assert turn.held
        over = os.fstat(log).st_size >= 60 * len(line)
        while not (over or turn.wanted()):
            await asyncio.sleep(0)
        if not over:
            os.write(log, line)
        turn.release(True)
    turn.close()

asyncio.run(main())
"""


class Clock:
    """The slices' time, which a test sets forward."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Counted:
    """Locks, and how many calls of the system they took."""

    def __init__(self, system: locking.Locking) -> None:
        self.system = system
        self.note_at = system.note_at
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.system, name)

        def counted(file: int) -> Any:
            self.calls.append(name)
            return call(file)

        return counted

    def count(self) -> int:
        """Since this was asked last."""
        calls, self.calls = self.calls, []
        return len(calls)


@pytest.fixture(params=["Flock", "Portable"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """By what the processes lock the files: flock(2), or what stands in for it on Windows."""
    made = Counted(getattr(locking, request.param)())
    monkeypatch.setattr(locking, "system", made)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "clock", made)
    return made


@pytest.fixture
def long_slice(monkeypatch: pytest.MonkeyPatch) -> float:
    """A slice does not end by itself; its length."""
    monkeypatch.setattr(module, "SLICE", 2 * PATIENCE)
    return 2 * PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> str:
    made = tmp_path / "app.db"
    made.touch()
    return str(made)


def turn_on(path: str) -> FileTurn:
    turn = FileTurn()
    turn.on(path, None)
    return turn


@pytest.fixture
async def turn(path: str) -> AsyncIterator[FileTurn]:
    made = turn_on(path)
    yield made
    made.close()
    await eventually(lambda: is_free(path))  # the thread that brought the turn may do it
    assert not made.held


def is_free(path: str) -> bool:
    """Whether nobody has the turn, nor waits for it."""
    locks = LockFiles(path)
    try:
        free = locks.try_lock()
        if free:
            locks.unlock()
        else:
            locks.give_up()
    finally:
        locks.close()
    return free


@contextlib.contextmanager
def process(path: str, system: Counted, code: str = HOLDER) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the turn until it is told to let go."""
    started = subprocess.Popen(
        [sys.executable, "-c", code, path, type(system.system).__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "held\n"
        yield started
    finally:
        started.kill()
        started.communicate()


def let_go(other: subprocess.Popen[str]) -> None:
    """It gives its turn back."""
    assert other.stdin is not None
    other.stdin.write("\n")
    other.stdin.flush()


def take(turn: FileTurn, timeout: float = PATIENCE, stall_after: float = PATIENCE) -> Any:
    return asyncio.ensure_future(greenlet_spawn(turn.take, timeout, stall_after))


def write(wal: str) -> None:
    """As a commit does."""
    Path(wal).write_bytes(os.urandom(10))


async def eventually(condition: Callable[[], bool]) -> None:
    """Give the loop and the threads turns until ``condition`` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.to_thread(time.sleep, 0)


async def test_taken_and_given_back(path: str, turn: FileTurn) -> None:
    """Somebody who took the turn is named; an engine that does not want it keeps nobody waiting."""
    assert turn.take_now()
    assert turn.held
    assert not turn.wanted()
    holder = turn.holder()
    assert holder is not None
    assert holder[0] == os.getpid()
    assert not is_free(path)
    turn.release(True)
    assert turn.held
    assert turn.take_now()
    turn.release(False)
    assert not turn.held
    assert is_free(path)


async def test_a_slice_costs_nothing(turn: FileTurn, system: Counted, clock: Clock) -> None:
    """Within a slice a turn passes from one to the next of the engine without a system call."""
    assert turn.take_now()
    assert system.count() == 3
    for each in range(50):
        turn.release(True)
        clock.now += SLICE / 100
        assert turn.take(PATIENCE, PATIENCE) if each % 3 else turn.take_now()
    assert system.count() == 0


async def test_a_new_slice_where_nobody_else_waits(
    turn: FileTurn, system: Counted, clock: Clock
) -> None:
    """Past the slice the engine looks for others once, and keeps the turn for a slice more."""
    assert turn.take_now()
    system.count()
    for _ in range(3):
        clock.now += SLICE
        turn.release(True)
        assert turn.held
        assert system.count() == 2
        assert turn.take_now()
        turn.release(True)
        assert system.count() == 0
    turn.release(False)


async def test_past_the_slice_another_engine_is_next(
    path: str, turn: FileTurn, clock: Clock
) -> None:
    """However many of this engine wait: the next one takes the turn behind the other engine."""
    other = turn_on(path)
    assert turn.take_now()
    theirs = take(other)
    await eventually(turn.wanted)
    turn.release(True)
    assert turn.held
    assert turn.take_now()
    clock.now += SLICE
    turn.release(True)
    assert not turn.held
    ours = take(turn)
    assert await theirs
    assert other.held
    await eventually(other.wanted)
    assert not ours.done()
    clock.now += SLICE
    other.release(True)
    assert await ours
    other.close()


async def contended(path: str, turn: FileTurn) -> FileTurn:
    """``turn`` gets the turn from another engine, which waits for it again and is returned."""
    other = turn_on(path)
    assert other.take_now()
    ours = take(turn)
    await eventually(lambda: turn.waits)
    other.release(False)
    assert await ours
    return other


async def test_step_aside_while_others_may_want_the_turn(
    path: str, turn: FileTurn, clock: Clock, long_slice: float
) -> None:
    """Who stepped aside goes on when the turn is given back, and not while it is used here."""
    other = await contended(path, turn)
    theirs = take(other)
    await eventually(turn.wanted)
    aside = [asyncio.ensure_future(greenlet_spawn(turn.step_aside)) for _ in range(2)]
    await eventually(lambda: len(turn._aside) == 2)
    turn.release(True)
    assert turn.take_now()
    assert len(turn._aside) == 2
    clock.now += long_slice
    turn.release(True)
    assert not turn.held
    await asyncio.gather(*aside)
    assert await theirs
    other.close()


async def test_nobody_steps_aside_for_nothing(
    path: str, turn: FileTurn, clock: Clock, long_slice: float
) -> None:
    """Outside of a greenlet: it does not wait, for nobody else had the turn or wants it now."""
    turn.step_aside()
    assert turn.take_now()
    turn.step_aside()
    turn.release(False)
    other = await contended(path, turn)
    aside = asyncio.ensure_future(greenlet_spawn(turn.step_aside))
    await eventually(lambda: len(turn._aside) == 1)
    clock.now += long_slice
    turn.release(True)
    assert turn.held
    await aside
    turn.step_aside()
    turn.release(False)
    other.close()


async def test_aside_for_no_longer_than_a_slice(path: str, turn: FileTurn) -> None:
    """Although the turn is still used."""
    other = await contended(path, turn)
    await asyncio.wait_for(greenlet_spawn(turn.step_aside), PATIENCE)
    assert turn.held
    assert not turn._aside
    other.close()


@pytest.mark.parametrize("end", ["cancelled", "closed"])
async def test_the_end_of_stepping_aside(
    path: str, turn: FileTurn, long_slice: float, end: str
) -> None:
    """A cancellation is raised at once, and nobody waits for an engine that is disposed of."""
    other = await contended(path, turn)
    aside = asyncio.ensure_future(greenlet_spawn(turn.step_aside))
    await eventually(lambda: len(turn._aside) == 1)
    if end == "cancelled":
        aside.cancel()
        with pytest.raises(asyncio.CancelledError):
            await aside
    else:
        turn.close()
        await aside
    assert not turn._aside
    other.close()


def test_loops_of_two_threads(path: str, system: Counted, clock: Clock) -> None:
    """One engine: the turn passes from one loop to the other within the slice, and is kept.

    The timer of the loop that used it before does no harm.
    """
    turn = turn_on(path)
    ours, theirs = threading.Semaphore(1), threading.Semaphore(0)
    assert turn.take_now()
    turn.release(True)
    system.count()

    async def work(mine: threading.Semaphore, other: threading.Semaphore) -> None:
        for _ in range(20):
            await asyncio.to_thread(mine.acquire)
            assert turn.take(PATIENCE, PATIENCE)
            turn.release(False)
            other.release()

    threads = [
        threading.Thread(target=asyncio.run, args=(work(*each),))
        for each in ((ours, theirs), (theirs, ours))
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    assert not turn.held
    assert is_free(path)


def test_two_loops_wait_for_two_engines(path: str) -> None:
    """Each of three threads with a loop and an engine of its own gets its turns."""
    counts = [0, 0, 0]

    async def work(number: int) -> None:
        turn = turn_on(path)
        for _ in range(10):
            assert await greenlet_spawn(turn.take, PATIENCE, PATIENCE)
            assert turn.held
            counts[number] += 1
            turn.release(False)
            await asyncio.sleep(0)
        turn.close()

    threads = [threading.Thread(target=asyncio.run, args=(work(each),)) for each in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    assert not any(each.is_alive() for each in threads)
    assert counts == [10, 10, 10]
    assert is_free(path)


@pytest.mark.parametrize("end", ["release", "kill"])
async def test_waits_for_another_process(
    path: str, turn: FileTurn, system: Counted, end: str
) -> None:
    """The turn comes when the process before gives it back, or is killed."""
    with process(path, system) as other:
        assert not turn.take_now()
        waiting = take(turn)
        await eventually(lambda: turn.waits)
        assert not turn.held
        holder = turn.holder()
        assert holder is not None
        assert holder[0] == other.pid
        if end == "kill":
            other.send_signal(signal.SIGKILL)
        else:
            let_go(other)
        assert await waiting
        assert turn.held
        assert not turn.waits


async def test_a_stopped_process_delays_once(path: str, turn: FileTurn, system: Counted) -> None:
    """The first goes on without the turn after a while, the others at once.

    When the process goes on and gives the turn back, it comes to whoever is at work.
    """
    with process(path, system) as other:
        other.send_signal(signal.SIGSTOP)
        assert await take(turn, stall_after=SOON)
        assert not turn.held
        turn.release(True)
        for wanted_here in (True, False, True):
            assert turn.take(PATIENCE, SOON)
            assert not turn.held
            assert not turn.waits
            turn.release(wanted_here)
        assert not turn.take_now()
        assert turn.take(PATIENCE, SOON)
        other.send_signal(signal.SIGCONT)
        let_go(other)
        await eventually(lambda: turn.held)
        turn.release(False)
        await eventually(lambda: not turn.held)


async def test_a_late_turn_that_nobody_uses_is_given_back(
    path: str, turn: FileTurn, system: Counted
) -> None:
    """Those who went on without it are done when it comes."""
    with process(path, system) as other:
        assert await take(turn, stall_after=SOON)
        turn.release(False)
        let_go(other)
        await eventually(lambda: not turn._pending and is_free(path))  # its thread does it
        assert not turn.held
    assert turn.take_now()  # the stall is over


async def test_two_engines_beside_a_stopped_process(
    path: str, turn: FileTurn, system: Counted
) -> None:
    """They write in turns that SQLite keeps, and never take each other for a sign of life."""
    other = turn_on(path)
    wal = f"{path}-wal"
    with process(path, system) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        assert all(await asyncio.gather(take(turn, stall_after=SOON), take(other, PATIENCE, SOON)))
        for _ in range(3):
            for each in (turn, other):
                assert each.take(PATIENCE, PATIENCE)
                assert not each.held
                write(wal)
                each.release(True)
    for each in (turn, other):
        await eventually(lambda: not (each._pending or each.held))  # noqa: B023
    other.close()


async def test_a_turn_that_moves_is_waited_for(
    path: str, turn: FileTurn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others take the turn one after the other, nobody goes on without it.

    It is looked at three times as often as it takes to find a stall.
    """
    looks = 0
    look = FileTurn._look

    def moved(turn: FileTurn, request: Any) -> None:
        nonlocal looks
        looks += 1
        if looks % module.LOOKS == 0:
            other._got_it()  # somebody has taken it anew
        look(turn, request)

    other = LockFiles(path)
    assert other.try_lock()
    monkeypatch.setattr(FileTurn, "_look", moved)
    waiting = take(turn, stall_after=SOON)
    await eventually(lambda: looks >= 3 * module.LOOKS)
    assert not waiting.done()
    other.unlock()
    assert await waiting
    assert turn.held
    other.close()


async def test_a_holder_that_is_at_work_is_waited_for(
    path: str, turn: FileTurn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it says so, nobody goes on without the turn. Since when it has it stays told."""
    looks = 0
    look = FileTurn._look

    def renewed(turn: FileTurn, request: Any) -> None:
        nonlocal looks
        looks += 1
        if looks % (module.LOOKS - 1) == 0:
            other.renew()
        look(turn, request)

    other = FileTurn()
    other.on(path, None)
    other.renew()  # without the turn it says nothing
    assert other.holder() is None
    assert other.take_now()
    held = other.holder()
    monkeypatch.setattr(FileTurn, "_look", renewed)
    waiting = take(turn, stall_after=SOON)
    await eventually(lambda: looks >= 3 * module.LOOKS)
    assert not waiting.done()
    now = other.holder()
    assert held is not None
    assert now is not None
    assert held != now
    assert now[1] - held[1] == pytest.approx(0, abs=1e-4)
    other.release(False)
    assert await waiting
    other.close()


async def test_a_stall_ends_when_the_turn_moves(path: str, turn: FileTurn) -> None:
    """The process that stood still takes the turn anew: it is waited for as before."""
    other = LockFiles(path)
    assert other.try_lock()
    assert await take(turn, stall_after=SOON)
    turn.release(True)
    other._got_it()
    with pytest.raises(MissingGreenlet):
        turn.take(PATIENCE, SOON)
    assert not turn.waits
    waiting = take(turn, stall_after=PATIENCE)
    await eventually(lambda: turn.waits)
    other.unlock()
    assert await waiting
    assert turn.held
    other.close()


async def test_a_pause_of_this_loop_is_no_stall(path: str, turn: FileTurn) -> None:
    """However long it was: the others were not seen to stand still but for one look."""
    other = LockFiles(path)
    assert other.try_lock()
    waiting = take(turn, stall_after=SOON)
    await eventually(lambda: turn.waits)
    threading.Event().wait(2 * SOON)  # it stands still
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    other.unlock()
    assert await waiting
    other.close()


async def test_timeout(path: str, turn: FileTurn) -> None:
    """Its time was up before the turn came, or was seen to be stalled."""
    other = LockFiles(path)
    assert other.try_lock()
    assert not await take(turn, timeout=SOON)
    assert not turn.waits
    assert not turn.held
    other.unlock()
    await eventually(lambda: not turn._pending and is_free(path))
    other.close()


async def test_cancelled_while_it_waits(path: str, turn: FileTurn) -> None:
    """The next one takes over the wait of the thread: one thread, and no place is lost."""
    other = LockFiles(path)
    assert other.try_lock()
    threads = set()
    for _ in range(3):
        waiting = take(turn)
        await eventually(lambda: turn.waits)
        threads |= {each for each in threading.enumerate() if each.name == "qsession turn"}
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not turn.waits
    assert len(threads) == 1
    waiting = take(turn)
    await eventually(lambda: turn.waits)
    other.unlock()
    assert await waiting
    other.close()


async def test_cancelled_before_it_waits(path: str, turn: FileTurn) -> None:
    """The task is cancelled when it begins to wait."""
    other = LockFiles(path)
    assert other.try_lock()

    def ask() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        turn.take(PATIENCE, PATIENCE)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(greenlet_spawn(ask))
    assert not turn.waits
    other.unlock()
    await eventually(lambda: not turn._pending and is_free(path))
    assert not turn.held
    other.close()


@pytest.mark.parametrize("cause", ["turn", "stall", "timeout"])
async def test_cancelled_at_the_moment_it_is_answered(
    path: str, turn: FileTurn, cause: str
) -> None:
    """It was told to go on, and has not done so: what it was given is free for others."""
    other = LockFiles(path)
    assert other.try_lock()
    waiting = take(turn)
    await eventually(lambda: turn.waits)
    (request,) = turn._requests
    if cause == "turn":
        other.unlock()
        while turn._pending:  # the loop stands still meanwhile
            time.sleep(0)  # noqa: ASYNC251
        assert turn.held
    elif cause == "stall":
        for _ in range(module.LOOKS):
            turn._look(request)
    else:
        turn._expire(request)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert turn._user is None
    assert not turn.waits
    other.unlock()
    await eventually(lambda: not turn._pending and is_free(path))
    other.close()


def test_a_loop_that_is_closed_while_it_waits(path: str) -> None:
    """Nobody is there to take the turn when it comes: others get it."""
    turn = turn_on(path)
    other = LockFiles(path)
    assert other.try_lock()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(greenlet_spawn(turn.take, PATIENCE, PATIENCE))
    while not turn.waits:
        loop.run_until_complete(asyncio.sleep(0))
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    other.unlock()
    deadline = time.monotonic() + PATIENCE
    while turn._pending or not is_free(path):  # the thread unlocks it behind that
        assert time.monotonic() < deadline
        time.sleep(0)
    assert not turn.held
    other.close()


def test_outside_of_a_greenlet(path: str) -> None:
    """SQLAlchemy's error leaves everything usable."""
    turn = turn_on(path)
    other = LockFiles(path)
    assert other.try_lock()
    with pytest.raises(MissingGreenlet):
        turn.take(PATIENCE, PATIENCE)
    assert not turn.waits
    other.unlock()
    deadline = time.monotonic() + PATIENCE
    while not turn.take_now():
        assert time.monotonic() < deadline
        time.sleep(0)
    turn.close()
    other.close()


async def test_no_thread_to_wait_in(
    path: str, turn: FileTurn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who cannot wait goes on without the turn, and keeps nobody else out of the line."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    other = LockFiles(path)
    assert other.try_lock()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert turn.take(PATIENCE, PATIENCE)
    assert not turn.held
    turn.release(False)
    other.unlock()
    assert is_free(path)
    other.close()


@pytest.mark.parametrize("call", ["try_lock", "lock", "unlock"])
async def test_without_locks(
    path: str, turn: FileTurn, system: Counted, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Where the file system has no locks, or loses them, SQLite's own is left."""

    def no_locks(file: int) -> None:
        raise OSError("no locks here")

    other = LockFiles(path)
    if call == "lock":
        assert other.try_lock()
    monkeypatch.setattr(system, call, no_locks, raising=False)
    for _ in range(3):
        turn.on(path, None)
        assert await take(turn)
        assert turn.held
        turn.release(False)
    monkeypatch.undo()
    other.close()
    turn.close()


async def test_a_file_without_locks_needs_none() -> None:
    """A database in memory has no path, and nobody to share its turn with."""
    turn = FileTurn()
    turn.on("", None)
    assert turn.take(PATIENCE, PATIENCE)
    turn.release(False)
    assert not turn.wanted()


async def test_another_file(path: str, tmp_path: Path, turn: FileTurn) -> None:
    """The file was replaced: a turn that is only kept is given back; one that is used stays."""
    assert turn.take_now()
    turn.on(path, "replaced")
    assert turn.held
    turn.release(True)
    turn.on(path, "replaced")
    assert not turn.held
    other = tmp_path / "other.db"
    other.touch()
    turn.on(str(other), None)
    assert turn.take_now()
    assert is_free(path)
    assert not is_free(str(other))


async def test_another_file_while_a_thread_waits(
    path: str, tmp_path: Path, system: Counted
) -> None:
    """The wait for the turn on the file before keeps nobody from the new one."""
    turn = turn_on(path)
    other = tmp_path / "other.db"
    other.touch()
    with process(path, system) as holding:
        assert await take(turn, stall_after=SOON)
        turn.release(False)
        turn.on(str(other), None)
        assert turn.take_now()
        assert turn.held
        let_go(holding)
        await eventually(lambda: is_free(path))
        assert turn.held
        turn.close()


async def test_closed(path: str, turn: FileTurn) -> None:
    """The files are closed, the turn is free, and the engine may go on with files opened anew."""
    assert turn.take_now()
    assert turn._locks is not None
    files = [each._file for each in (turn._locks._next, turn._locks._hold)]
    turn.close()
    assert is_free(path)
    for each in files:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(each)
    turn.release(False)
    assert turn.take_now()  # as an engine does that is used again
    assert turn.held
    assert not is_free(path)


async def test_an_engine_that_only_reads_makes_no_files(path: str, turn: FileTurn) -> None:
    """The lock files come with the first turn."""
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    assert turn.take_now()
    assert len(os.listdir(os.path.dirname(path))) == 3


async def test_closed_while_a_thread_waits(path: str, turn: FileTurn, system: Counted) -> None:
    """Whoever waits goes on; the thread closes the files when the lock comes."""
    with process(path, system) as other:
        waiting = take(turn)
        await eventually(lambda: turn.waits)
        locks = turn._locks
        assert locks is not None
        turn.close()
        assert await waiting
        assert not turn.held
        turn.release(False)
        assert locks.is_open
        let_go(other)
        await eventually(lambda: not locks.is_open)
    assert is_free(path)


async def test_nobody_keeps_a_forgotten_engine(path: str, system: Counted) -> None:
    """Neither a timer nor a thread that waits; the lock is free again when it comes."""
    turn = turn_on(path)
    assert turn.take_now()
    turn.release(False)
    known = weakref.ref(turn)
    del turn
    gc.collect()
    assert known() is None
    assert is_free(path)
    with process(path, system) as other:
        turn = turn_on(path)
        assert await take(turn, stall_after=SOON)
        known = weakref.ref(turn)
        del turn
        gc.collect()
        assert known() is None
        let_go(other)
        await eventually(lambda: is_free(path))


def test_taken_now_while_another_thread_changes_it(path: str) -> None:
    """The answer is no; a turn that is granted a moment later is given back: nobody has it."""
    turn = turn_on(path)
    inside, go = threading.Event(), threading.Event()

    def change(_: None) -> None:
        inside.set()
        assert go.wait(PATIENCE)

    other = threading.Thread(target=turn._serve, args=(change, None))
    other.start()
    assert inside.wait(PATIENCE)
    assert not turn.take_now()
    assert not turn.wanted()
    go.set()
    other.join(PATIENCE)
    assert not turn.held
    assert is_free(path)


def test_released_in_the_middle_of_a_change(path: str) -> None:
    """As the garbage collector may do: it runs right behind the change."""
    turn = turn_on(path)
    assert turn.take_now()
    seen = []

    def change(_: None) -> None:
        turn.release(False)
        seen.append(turn.held)

    turn._serve(change, None)
    assert seen == [True]
    assert not turn.held
    assert is_free(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_leaves_the_turn_alone(path: str) -> None:
    """What the parent holds stays with the parent, and is free when it ends its turn."""
    turn = turn_on(path)
    assert turn.take_now()
    child = os.fork()
    if child == 0:  # pragma: no cover
        turn.release(False)
        turn.close()
        os._exit(0 if not turn.held and not is_free(path) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert turn.held
    turn.release(False)
    assert is_free(path)


@pytest.mark.storm
def test_nobody_has_two_turns_while_others_wait(path: str, system: Counted) -> None:
    """Three processes take turn after turn, each until it is wanted: it is not the next one."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(process(path, system, TURNS)) for _ in range(3)]
        for each in running:
            let_go(each)
        assert [each.wait(PATIENCE) for each in running] == [0] * 3
    found = Path(f"{path}.log").read_text().split()
    assert len(found) == 60
    assert all(one != other for one, other in pairwise(found))
    assert len(set(found)) == 3


async def test_first_come_first_served(path: str, clock: Clock) -> None:
    """Whoever had the turn takes it behind all who waited by then."""
    one, two, three = (turn_on(path) for _ in range(3))

    def pass_on(turn: FileTurn) -> None:
        clock.now += SLICE
        turn.release(True)
        assert not turn.held

    assert one.take_now()
    second = take(two)
    await eventually(one.wanted)
    pass_on(one)
    assert await second
    third = take(three)
    await eventually(two.wanted)
    again = take(one)
    await eventually(lambda: one.waits)
    pass_on(two)
    assert await third
    assert not again.done()
    await eventually(three.wanted)
    pass_on(three)
    assert await again
    for each in (one, two, three):
        each.close()
    await eventually(lambda: is_free(path))


def test_wanted_while_another_thread_changes_it(path: str) -> None:
    """The answer is the one of the look before, and not always no."""
    turn, other = turn_on(path), LockFiles(path)
    assert turn.take_now()
    assert not other.try_lock()
    assert turn.wanted()
    inside, go = threading.Event(), threading.Event()

    def change(_: None) -> None:
        inside.set()
        assert go.wait(PATIENCE)

    thread = threading.Thread(target=turn._serve, args=(change, None))
    thread.start()
    assert inside.wait(PATIENCE)
    assert turn.wanted()
    go.set()
    thread.join(PATIENCE)
    turn.close()
    assert not turn.wanted()
    other.close()


def test_one_that_stands_at_hold_stays_there(path: str, system: Counted) -> None:
    """Who has ``next`` does not lock it again: on Windows that would wait for itself."""
    one, other, third = (LockFiles(path) for _ in range(3))
    assert one.try_lock()
    assert not other.try_lock()  # it has "next" now
    assert one.wanted()
    one.unlock()
    assert not third.try_lock()  # there is one before it
    system.calls.clear()
    other.wait()
    assert system.calls.count("lock") == 1
    assert not third.try_lock()
    other.unlock()
    third.wait()
    for each in (one, other, third):
        each.close()


def test_lock_files_have_the_mode_of_the_database(path: str) -> None:
    """Whoever may write to the file may wait for it, whatever the umask says."""
    Path(path).chmod(0o660)
    before = os.umask(0o077)
    try:
        LockFiles(path).close()
    finally:
        os.umask(before)
    assert [Path(each).stat().st_mode & 0o777 for each in names(path)] == [0o660] * 2


def test_the_note_is_new_with_each_turn(path: str) -> None:
    """That is how others see that it moves."""
    locks = LockFiles(path)
    assert last_holder(path) is None
    notes = set()
    for _ in range(3):
        assert locks.try_lock()
        notes.add(last_holder(path))
        locks.unlock()
    assert len(notes) == 3
    found = last_holder(path)
    assert found is not None
    assert found[0] == os.getpid()
    locks.close()
