"""Opening: how connections are opened while the server cannot be reached.

While the server answers, connections are opened as needed. The first attempt that fails raises its
error at once. After that, only one attempt runs at a time, after a growing pause; other tasks wait
for their turn, first come, first served. So a restarted server is not overloaded.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.util import await_only, greenlet_spawn

from qsession.errors import QueueTimeout
from qsession.waiting.handoff import this_loop
from qsession.waiting.ticket import Ticket, TicketQueue, TicketState

FIRST_PAUSE = 0.05
"""The longest pause in seconds after the first failure. It doubles with each further failure."""
LONGEST_PAUSE = 1.0
"""The limit of this doubling, in seconds."""
LEAST_PATIENCE = 10.0
"""Seconds that an attempt may always take, even if ``queue_timeout`` is shorter. Otherwise a slow
connection would never be opened."""

_jitter = random.SystemRandom().uniform


def longest_pause(failures: int) -> float:
    """The longest pause in seconds after this number of consecutive failures."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 30)))


class Opening:
    """The state of the server as far as known, and the line of tasks that wait to try."""

    def __init__(self, discard: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        self._discard = discard
        self._discarding: set[asyncio.Task[None]] = set()
        self.failures = 0
        """The number of consecutive failed attempts."""
        self._not_before = 0.0
        self._last = ""
        self._turn = TicketQueue()
        self.patience: float | None = None
        """For a server that others can stand in for: how many seconds an attempt may take. A task
        whose turn it is not gets an error at once. None: tasks wait for their turn."""

    @property
    def is_away(self) -> bool:
        """Whether the server was not reached, and it is not time yet for another attempt."""
        early = time.monotonic() < self._not_before
        return self.failures > 0 and (early or self._turn.holder is not None)

    @property
    def waiting(self) -> int:
        """The number of tasks that wait to try."""
        return self._turn.waiting

    def open(self, connect: Callable[[], Any], deadline: float) -> Any:
        """Call ``connect()`` in its turn, and return its result. In a greenlet.

        Raises its errors, or :class:`QueueTimeout` if the turn does not come by ``deadline``. If
        cancelled, the turn goes to the next task, and a connection from the attempt is discarded.
        """
        this_loop()  # raises if there is none
        if not self.failures:
            return self._attempt(connect, deadline)
        if self.patience is not None and self.is_away:
            raise ConnectionError(f"the server could not be reached a moment ago: {self._last}")
        ticket = Ticket(self)
        state = self._turn.take(ticket)
        if state is not TicketState.HELD:
            state = await_only(self._turn.wait(ticket, _left(deadline)))
        if state is not TicketState.HELD:
            raise self._too_late()
        try:
            if self.failures:
                pause = self._not_before - time.monotonic()
                await_only(asyncio.sleep(min(max(0.0, pause), _left(deadline))))
            if not _left(deadline):
                raise self._too_late()
            return self._attempt(connect, deadline)
        finally:
            self._turn.release(ticket)

    def _attempt(self, connect: Callable[[], Any], deadline: float) -> Any:
        before = self.failures
        seconds = self.patience or max(_left(deadline), LEAST_PATIENCE)
        try:
            connection = await_only(self._within(seconds, greenlet_spawn(connect)))
        except Exception as error:
            self.fail(error, before)
            raise
        self.failures = 0
        return connection

    def fail(self, error: Exception, before: int) -> None:
        """Note that the server was not reached, after ``before`` consecutive failures."""
        # Concurrent attempts saw the same failure, so they count as one.
        self.failures = max(self.failures, before + 1)
        longest = longest_pause(self.failures)
        self._not_before = time.monotonic() + _jitter(longest / 2, longest)
        self._last = repr(error)  # the error itself would keep the frames of its caller

    async def _within(self, seconds: float, attempt: Coroutine[Any, Any, Any]) -> Any:
        # In a separate task: if a driver is cancelled after the server's answer, it leaves the
        # connection to the garbage collector.
        task = asyncio.ensure_future(attempt)
        try:
            await asyncio.wait([task], timeout=seconds)
        except asyncio.CancelledError:
            task.add_done_callback(self._came_too_late)
            raise
        if task.done():
            return task.result()
        task.cancel()
        task.add_done_callback(self._came_too_late)
        raise asyncio.TimeoutError("the server did not answer in time")

    def _came_too_late(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        discarding = asyncio.ensure_future(self._discard(task.result()))
        self._discarding.add(discarding)
        discarding.add_done_callback(self._discarding.discard)

    def _too_late(self) -> QueueTimeout:
        return QueueTimeout(
            f"The server cannot be reached: {self.failures} attempts to open a connection have "
            f"failed, and {self._turn.waiting} more tasks are waiting to try. The last error was: "
            f"{self._last}"
        )


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
