"""Handing things from one waiting task to another, across event loops and threads.

Shared by the ticket queue and the queue of readers; it knows what neither of them is about.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Serial:
    """Runs plain functions one at a time, without ever blocking a thread.

    Whoever finds another thread inside leaves its function for that one to run. So a function that
    the garbage collector starts in the middle of another one is safe as well: it runs behind it.
    """

    __slots__ = ("_changes", "_inside")

    def __init__(self) -> None:
        self._changes: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._inside = threading.Lock()

    def serve(self, change: Callable[[Any], None], subject: Any) -> None:
        """Run ``change(subject)``, at once or right behind those that are being run."""
        self._changes.append((change, subject))
        while self._changes and self._inside.acquire(blocking=False):
            try:
                while self._changes:
                    change, subject = self._changes.popleft()
                    change(subject)
            finally:
                self._inside.release()


class Waiter:
    """Something a task can wait for, and anybody can wake it up from."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None

    def prepare(self) -> asyncio.Future[None]:
        """The future to await. Look whether it is still needed before you do."""
        self._loop = asyncio.get_running_loop()
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
        """Await the future of ``prepare``; ``expire(self)`` is served after ``timeout`` seconds.

        Cancelled, or failing in another way: ``leave(self)`` is served first.
        """
        timer = None
        if timeout is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(timeout, serial.serve, expire, self)
        try:
            await future
        except BaseException:
            serial.serve(leave, self)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def wake(self) -> bool:
        """Let the waiting task go on; False if it is cancelled or its loop is closed."""
        future, loop = self._future, self._loop
        if future is None or loop is None:
            return True  # not waiting yet: it looks before it does
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


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread; None if none does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def to_end(future: asyncio.Future[T]) -> T:
    """Wait for a future through any cancellation, which is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException:
            if not future.done():  # else it is the function's own error, raised below
                raise
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # it has been seen
        raise cancelled
    return future.result()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
