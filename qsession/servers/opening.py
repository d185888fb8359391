"""Opening: who may try to open a connection while the server is away, and when.

While the server answers, connections are opened as they are needed. The attempt that finds it away
fails at once. From then on one attempt is made at a time, after a pause that grows; the others wait
for their turn, first come, first served. So nobody storms a server that comes back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.util import await_only, greenlet_spawn

from qsession.errors import QueueTimeout
from qsession.waiting.ticket import Ticket, TicketQueue, TicketState

FIRST_PAUSE = 0.05
"""Seconds: the longest pause after the first failure; it doubles with every further one."""
LONGEST_PAUSE = 1.0
"""Seconds: where the doubling ends."""
LEAST_PATIENCE = 10.0
"""Seconds that an attempt may take even where who asked is in a hurry: a connection that needs
longer than ``queue_timeout`` to open would never be opened."""

_jitter = random.SystemRandom().uniform


def longest_pause(failures: int) -> float:
    """Seconds to wait at the most after so many failures in a row."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 30)))


class Opening:
    """Whether the server is known to be away, and the line of those who would try."""

    def __init__(self, discard: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        self._discard = discard
        self._discarding: set[asyncio.Task[None]] = set()
        self.failures = 0
        """Attempts that failed since the last one that did not."""
        self._not_before = 0.0
        self._last = ""
        self._turn = TicketQueue()

    @property
    def waiting(self) -> int:
        """How many wait for their turn to try."""
        return self._turn.waiting

    def open(self, connect: Callable[[], Any], deadline: float) -> Any:
        """What ``connect()`` returns, in a greenlet; its turn has to come by ``deadline``.

        Raises what it raises, or :class:`QueueTimeout` when its turn does not come in time.
        Cancelled, the turn goes to the next; a connection that comes of the attempt is discarded.
        """
        if not self.failures:
            return self._attempt(connect, deadline)
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
        try:
            connection = await_only(
                self._within(max(_left(deadline), LEAST_PATIENCE), greenlet_spawn(connect))
            )
        except Exception as error:
            # Those that were under way at the same time saw one failure, not many.
            self.failures = max(self.failures, before + 1)
            longest = longest_pause(self.failures)
            self._not_before = time.monotonic() + _jitter(longest / 2, longest)
            self._last = repr(error)  # not itself: it would keep the frames of its caller
            raise
        self.failures = 0
        return connection

    async def _within(self, seconds: float, attempt: Coroutine[Any, Any, Any]) -> Any:
        # In a task of its own: a driver that is cancelled between the server's answer and its own
        # leaves the connection to the garbage collector.
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
