"""Passing something from one task to a waiting task, across event loops and threads.

The ticket queue and the connection queue are built on this module.
"""

from __future__ import annotations

import asyncio
import math
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Serial:
    """Runs plain functions one at a time, without blocking a thread.

    A thread that finds another thread inside leaves its function for that thread to run. So it is
    also safe if the garbage collector calls a function in the middle of another one: it runs later.
    """

    __slots__ = ("_changes", "_inside")

    def __init__(self) -> None:
        self._changes: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._inside = threading.Lock()

    def serve(self, change: Callable[[Any], None], subject: Any) -> None:
        """Run ``change(subject)`` at once, or after the functions that are running."""
        self._changes.append((change, subject))
        while self._changes and self._inside.acquire(blocking=False):
            try:
                while self._changes:
                    change, subject = self._changes.popleft()
                    change(subject)
            finally:
                self._inside.release()


class Waiter:
    """Something that one task waits for. Any thread may wake the task."""

    __slots__ = ("__weakref__", "_deadline", "_expire", "_future", "_loop", "_serial")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._serial: Serial | None = None
        self._expire: Callable[[Any], None] | None = None

    def prepare(self, loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Future[None]:
        """A future of the running loop. Check that waiting is still necessary, then await it."""
        self._loop = loop or this_loop()
        self._future = self._loop.create_future()
        return self._future

    async def wait(
        self,
        future: asyncio.Future[None],
        timeout: float | None,
        serial: Serial,
        expire: Callable[[Any], None],
        leave: Callable[[Any], None],
    ) -> None:
        """Await the future from ``prepare``; ``expire(self)`` is served after ``timeout`` seconds.

        After a cancellation or another error, ``leave(self)`` is served, and the error is raised.
        """
        if timeout is not None:
            assert self._loop is not None
            self._serial, self._expire = serial, expire
            _deadlines.of(self._loop).add(self, timeout)
        try:
            await future
        except BaseException:
            serial.serve(leave, self)
            raise

    def expire(self) -> None:
        """Serve ``expire``, unless the wait is over."""
        if not self.is_over and self._serial is not None and self._expire is not None:
            self._serial.serve(self._expire, self)

    @property
    def is_over(self) -> bool:
        """Whether its future was resolved or cancelled."""
        return self._future is None or self._future.done()

    def wake(self) -> bool:
        """Wake the waiting task; False if it was cancelled or its loop is closed."""
        future, loop = self._future, self._loop
        if future is None or loop is None:
            return True  # it does not wait yet, and checks before it does
        if future.cancelled():
            return False
        if running_loop() is loop:
            _resolve(future)
            return True
        try:
            loop.call_soon_threadsafe(_resolve, future)
        except RuntimeError:  # the loop is closed
            return False
        return True


class Deadlines:
    """The timeouts of the waiters of one loop. Waiters with nearly equal timeouts share a timer.

    A timer for each waiter would cost more than the rest of a hand-off, and nearly all timers are
    cancelled. References to waiters are weak: a waiter belongs to the task that waits.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lines: dict[float, _Line] = {}

    def add(self, waiter: Waiter, timeout: float) -> None:
        """Expire ``waiter`` after ``timeout`` seconds or slightly later, unless it is over."""
        timeout = _rounded_up(timeout)
        waiter._deadline = self.loop.time() + timeout
        line = self._lines.get(timeout)
        if line is None:
            line = self._lines[timeout] = _Line()
            self.loop.call_at(waiter._deadline, self._expire, timeout)
        line.add(waiter)

    def _expire(self, timeout: float) -> None:
        line = self._lines[timeout]
        try:
            while (waiter := line.first()) is not None and waiter._deadline <= self.loop.time():
                line.waiters.popleft()
                waiter.expire()
        finally:  # the waiters behind it must expire, even if this one failed
            waiter = line.first()
            if waiter is None:
                del self._lines[timeout]
            else:
                self.loop.call_at(waiter._deadline, self._expire, timeout)


def _rounded_up(timeout: float) -> float:
    """Round up by at most one percent, so that there are few different timeouts."""
    if timeout <= 0.0 or math.isinf(timeout):
        return timeout
    step: float = 10.0 ** (math.floor(math.log10(timeout)) - 2)
    return math.ceil(timeout / step) * step


class _Line:
    """Waiters in the order of their deadlines; finished ones are dropped from time to time."""

    __slots__ = ("_room", "waiters")
    ROOM = 64

    def __init__(self) -> None:
        self.waiters: deque[weakref.ref[Waiter]] = deque()
        self._room = self.ROOM

    def first(self) -> Waiter | None:
        """The first waiter that still waits."""
        while self.waiters:
            waiter = self.waiters[0]()
            if waiter is not None and not waiter.is_over:
                return waiter
            self.waiters.popleft()
        return None

    def add(self, waiter: Waiter) -> None:
        self.first()
        self.waiters.append(weakref.ref(waiter))
        if len(self.waiters) > self._room:
            kept = [each for each in self.waiters if (it := each()) is not None and not it.is_over]
            self.waiters = deque(kept)
            self._room = max(self.ROOM, 2 * len(kept))


class _OfLoops(threading.local):
    """The deadlines of the loop that runs in this thread. The timers of a loop keep its own."""

    _latest: Deadlines | None = None

    def of(self, loop: asyncio.AbstractEventLoop) -> Deadlines:
        if self._latest is None or self._latest.loop is not loop:
            self._latest = Deadlines(loop)
        return self._latest


_deadlines = _OfLoops()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread; None if there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def this_loop() -> asyncio.AbstractEventLoop:
    """The loop that runs in this thread. Raises `RuntimeError` if there is none of asyncio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(_NO_LOOP) from None


def this_task() -> asyncio.Task[Any] | None:
    """The running task. Raises `RuntimeError` if no loop of asyncio runs in this thread."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        raise RuntimeError(_NO_LOOP) from None


_NO_LOOP = (
    "no event loop of asyncio is running: qsession needs one, as SQLAlchemy does, and does not "
    "work with Trio"
)


async def to_end(work: Awaitable[T]) -> T:
    """Wait until a future has ended, and raise a cancellation afterwards.

    A coroutine runs in a separate task. The task is created here, because the caller may be in a
    greenlet of SQLAlchemy: an eager task (Python 3.12) would begin in that greenlet, and what it
    awaits later would be lost.
    """
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # mark it as retrieved
        raise cancelled
    return future.result()


class Uninterrupted(Awaitable[T]):
    """An awaitable that runs a coroutine to its end, and raises a cancellation afterwards.

    It does the same as :func:`to_end`, but without a new task: the coroutine runs in the task that
    awaits it, and mostly does not wait for anything.
    """

    __slots__ = ("_work",)

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, Any, T]:
        work, cancelled = self._work, None
        try:
            while True:
                try:
                    future = work.send(None)
                except StopIteration as end:
                    if cancelled is not None:
                        raise cancelled from None
                    return end.value  # type: ignore[no-any-return]
                cancelled = (yield from _until_done(future)) or cancelled
        except BaseException as error:
            work.close()
            if cancelled is not None and error is not cancelled:
                raise cancelled from error
            raise
        finally:
            cancelled = None  # its traceback refers to this frame


def _until_done(future: Any) -> Generator[Any, Any, asyncio.CancelledError | None]:
    """Wait for the future that a coroutine yielded. Returns a cancellation that came meanwhile."""
    cancelled = None
    if future is None:  # a turn of the loop
        try:
            yield
        except asyncio.CancelledError as error:
            cancelled = error
        return cancelled
    future._asyncio_future_blocking = False  # the task waits for another future instead
    while not future.done():
        shield = future.get_loop().create_future()
        done = partial(_resolve_by, shield)
        future.add_done_callback(done)
        try:
            yield from shield
        except asyncio.CancelledError as error:
            cancelled = error
        finally:
            future.remove_done_callback(done)
    return cancelled


def _resolve_by(shield: asyncio.Future[None], _: asyncio.Future[Any]) -> None:
    _resolve(shield)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
