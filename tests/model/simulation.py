"""A simulation of the machine: one thread, a clock that jumps, and threads that are greenlets.

The event loop asks here instead of a selector what happens next. A drawn choice lets a simulated
thread run to its next call of SQLite, opens a gate at which a task stands, lets the clock jump to
the next timer, or cancels a task. So each run can be repeated by its seed, no interleaving is left
to the machine, and nothing is waited for: what cannot go on any more is told at once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import selectors
import sqlite3
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest import mock

import aiosqlite.core
import greenlet

from qsession.sqlite.driver import physical, processor
from qsession.sqlite.durability import syncer, wal_file
from qsession.sqlite.processes import lock_files, status, turn
from qsession.sqlite.transaction import runner
from qsession.waiting import pacing

T = TypeVar("T")
MOST_STEPS = 20_000
"""Choices after which a run is taken for one that does not end."""
A_LITTLE = 0.02
"""Seconds that may pass while somebody is ready to go on."""


class Stuck(Exception):
    """Nothing can happen any more, or the same happens again and again."""


class SimulatedThread:
    """Stands for a ``threading.Thread``."""

    def __init__(
        self,
        target: Callable[..., None],
        args: tuple[Any, ...] = (),
        name: str = "",
        daemon: bool = True,
    ) -> None:
        self.name = name
        self.daemon = daemon
        self.condition: Callable[[], bool] | None = None
        self.deadline: float | None = None
        self._target = target
        self._args = args
        self._greenlet = greenlet.greenlet(self._run, parent=simulation()._hub)

    def start(self) -> None:
        simulation().threads.append(self)

    def join(self, timeout: float | None = None) -> None:
        """A later test forks before the garbage collector has seen this one: it runs no more."""

    @property
    def over(self) -> bool:
        return self._greenlet.dead

    @property
    def is_ready(self) -> bool:
        if self.condition is None or self.condition():
            return True
        return self.deadline is not None and self.deadline <= simulation().now

    def go_on(self) -> None:
        """Run until it waits, or calls SQLite. Called outside of any other greenlet."""
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            self._greenlet.switch()
        finally:
            asyncio._set_running_loop(loop)

    def _run(self) -> None:
        self._target(*self._args)


class SimulatedQueue:
    """Stands for a ``queue.SimpleQueue``."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()

    def put_nowait(self, item: Any) -> None:
        self._items.append(item)

    def get(self) -> Any:
        simulation().block(lambda: bool(self._items))
        return self._items.popleft()


class SimulatedAlarm:
    """Stands for the syncer's alarm."""

    def __init__(self) -> None:
        self._rung = False

    def sleep(self, seconds: float | None) -> None:
        simulation().block(lambda: self._rung, seconds)
        self._rung = False

    def ring(self) -> None:
        self._rung = True


class SteppingCursor(sqlite3.Cursor):
    """Lets others run before each statement."""

    def execute(self, *args: Any) -> Any:
        simulation().yield_thread()
        return super().execute(*args)

    def executemany(self, *args: Any) -> Any:
        simulation().yield_thread()
        return super().executemany(*args)

    def fetchall(self) -> Any:
        simulation().yield_thread()
        return super().fetchall()

    def fetchmany(self, *args: Any) -> Any:
        simulation().yield_thread()
        return super().fetchmany(*args)


class SteppingConnection(sqlite3.Connection):
    """Lets others run before each statement; for ``connect_args={"factory": ...}``."""

    def execute(self, *args: Any) -> Any:
        if args[0].startswith("PRAGMA busy_timeout="):
            return super().execute("PRAGMA busy_timeout=0")  # nobody else could go on meanwhile
        simulation().yield_thread()
        return super().execute(*args)

    def cursor(self, *args: Any) -> Any:
        return super().cursor(*args or (SteppingCursor,))

    def commit(self) -> None:
        simulation().yield_thread()
        super().commit()


class _Selector(selectors.SelectSelector):
    def __init__(self, owner: Simulation) -> None:
        super().__init__()
        self._owner = owner

    def select(self, timeout: float | None = None) -> list[Any]:
        self._owner.step(timeout)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, owner: Simulation) -> None:
        self._owner = owner
        super().__init__(_Selector(owner))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._owner.now

    def _write_to_self(self) -> None:
        """There is no other thread to wake it from."""


class Simulation:
    """One run. ``chance`` draws everything."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 1000.0
        self.steps = 0
        self.threads: list[SimulatedThread] = []
        self.gates: list[asyncio.Future[None]] = []
        self.cancels: list[tuple[int, asyncio.Task[Any]]] = []
        self.on_step: Callable[[], None] = lambda: None
        self.toggle_fault: Callable[[bool], None] | None = None
        self._faulty_until = 0
        self.on_sync: Callable[[int], None] = lambda file: None
        self._running: SimulatedThread | None = None
        self._hub = greenlet.getcurrent()

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with _no_garbage(), _installed(self), self._patches():
            loop = _Loop(self)
            try:
                asyncio.set_event_loop(loop)
                return loop.run_until_complete(main())
            finally:
                asyncio.set_event_loop(None)
                loop.close()
                _left_over.extend(self.threads)

    @contextmanager
    def _patches(self) -> Iterator[None]:
        threading = types.SimpleNamespace(Thread=SimulatedThread)
        for name in ("Lock", "RLock", "local", "Event", "get_ident", "current_thread"):
            setattr(threading, name, getattr(__import__("threading"), name))
        with ExitStack() as stack:
            for target, name, stand_in in (
                (time, "monotonic", lambda: self.now),
                (time, "perf_counter", self._clock),
                (time, "thread_time", self._clock),
                (pacing, "clock", self._clock),
                (processor, "_blocks", lambda: 0),
                (aiosqlite.core, "Thread", SimulatedThread),
                (aiosqlite.core, "SimpleQueue", SimulatedQueue),
                (syncer, "threading", threading),
                (syncer, "Alarm", SimulatedAlarm),
                (wal_file, "fsync", self._fsync),
                (turn, "threading", threading),
                (lock_files.LockFiles, "wait", self._wait_for_lock()),
                (status, "serve", lambda: None),
                (runner, "STEPS", 50),
                (physical.DriverConnection, "thread_time", lambda driver: self.now),
            ):
                stack.enter_context(mock.patch.object(target, name, stand_in))
            yield

    def _wait_for_lock(self) -> Any:
        def wait(files: Any) -> None:
            got: list[bool] = []  # once it has the lock, it is not asked for again

            def get() -> bool:
                if not got and files.try_lock():
                    got.append(True)
                return bool(got)

            self.block(get)

        return wait

    def _clock(self) -> float:
        """Whoever reads the clock finds that some time has passed."""
        self.now += self.chance.choice((1e-6, 1e-6, 1e-5, 1e-5, 1e-5, 1e-5, 1e-4, 2e-3))
        return self.now

    def _fsync(self, file: int) -> None:
        self.on_sync(file)

    # What simulated threads do.

    def block(self, condition: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait until a condition holds, or for ``timeout`` seconds. In a simulated thread."""
        thread = self._running
        assert thread is not None
        thread.condition = condition
        thread.deadline = None if timeout is None else self.now + timeout
        self._hub.switch()
        thread.condition = thread.deadline = None

    def yield_thread(self) -> None:
        """Let others run; no effect outside of a simulated thread."""
        thread = self._running
        if thread is not None and greenlet.getcurrent() is thread._greenlet:
            self._hub.switch()

    # What tasks do.

    async def gate(self) -> None:
        """Stand here until a draw lets this task go on."""
        future = asyncio.get_running_loop().create_future()
        self.gates.append(future)
        try:
            await future
        finally:
            if future in self.gates:
                self.gates.remove(future)

    def cancel_later(self, task: asyncio.Task[Any], steps: int) -> None:
        """Cancel a task after so many choices."""
        self.cancels.append((self.steps + steps, task))

    def call_off(self, task: asyncio.Task[Any]) -> None:
        self.cancels = [each for each in self.cancels if each[1] is not task]

    # Choices.

    def step(self, timeout: float | None) -> None:
        self.steps += 1
        self.on_step()
        self._step_faults()
        if self.steps > MOST_STEPS:
            raise Stuck(f"{self.steps} steps, and no end\n{self._standing()}")
        for each in self.cancels:
            if each[0] <= self.steps:
                self.cancels.remove(each)
                each[1].cancel()
                return
        ready = [each for each in self.threads if each.is_ready]
        if timeout == 0:
            if ready and self.chance.random() < 0.2:
                self._run(self.chance.choice(ready))
            return
        chosen = self.chance.random()
        if ready and (chosen < 0.6 or not self.gates):
            if chosen < 0.57 or timeout is None:
                self._run(self.chance.choice(ready))
                return
        elif self.gates and chosen < 0.93:
            self.gates.pop(self.chance.randrange(len(self.gates))).set_result(None)
            return
        self._pass_time(timeout, at_rest=not (ready or self.gates))

    def _step_faults(self) -> None:
        if self.toggle_fault is None:
            return
        if self._faulty_until:
            if self.steps >= self._faulty_until:
                self.toggle_fault(False)
                self._faulty_until = 0
        elif self.chance.random() < 0.03:
            self.toggle_fault(True)
            self._faulty_until = self.steps + self.chance.randrange(1, 40)

    def _run(self, thread: SimulatedThread) -> None:
        self._running = thread
        try:
            thread.go_on()
        finally:
            self._running = None
            if thread.over:
                self.threads.remove(thread)

    def _pass_time(self, timeout: float | None, at_rest: bool) -> None:
        """Up to the next timer; a little only, where somebody could do something instead."""
        ends = [each.deadline for each in self.threads if each.deadline is not None]
        if timeout is not None:
            ends.append(self.now + timeout)
        if ends:
            end = max(self.now, min(ends)) + 1e-6
            self.now = end if at_rest else min(end, self.now + A_LITTLE)
        elif self.gates:
            self.gates.pop(self.chance.randrange(len(self.gates))).set_result(None)
        elif not self.cancels:
            raise Stuck(f"everybody waits for ever\n{self._standing()}")

    def _standing(self) -> str:
        """Where all tasks stand."""
        lines = [f"clock {self.now:.3f}, threads {[each.name for each in self.threads]}"]
        for task in asyncio.all_tasks(asyncio.get_event_loop_policy().get_event_loop()):
            lines.append(f"{task.get_name()}, cancelling {getattr(task, 'cancelling', int)()}")
            lines += (f"    {place}" for place in places(task.get_coro()))
        return "\n".join(lines)


def places(awaited: Any) -> Iterator[str]:
    """The lines at which a coroutine, and what it awaits, stand."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        elif not hasattr(awaited, "cr_await"):
            yield repr(awaited)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


_simulation: list[Simulation] = []
_left_over: list[SimulatedThread] = []
"""Threads of runs that went wrong: to end one means to raise something in it."""


@contextmanager
def _no_garbage() -> Iterator[None]:
    """The collector comes when it likes, and runs finalizers. It comes between two runs."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def simulation() -> Simulation:
    """The one that runs."""
    return _simulation[-1]


@contextmanager
def _installed(one: Simulation) -> Iterator[None]:
    _simulation.append(one)
    try:
        yield
    finally:
        _simulation.remove(one)


def is_wal(file: int) -> bool:
    """Whether a descriptor is one of a WAL."""
    try:
        return os.readlink(f"/proc/self/fd/{file}").endswith("-wal")
    except OSError:
        return True
