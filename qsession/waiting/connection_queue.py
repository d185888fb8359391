"""ConnectionQueue: the idle connections of a pool, and the tasks that wait for one.

SQLAlchemy's own queue belongs to the event loop that first waited on it. This queue serves tasks
of any loop, first come, first served, and accepts connections from any thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy.util import await_only
from sqlalchemy.util.queue import Empty, Full, QueueCommon

from qsession.waiting.handoff import Serial, Waiter


class _Place(Waiter):
    """A task that waits for a connection."""

    __slots__ = ("connection", "queued")

    def __init__(self) -> None:
        super().__init__()
        self.queued = False
        self.connection: Any = None


class ConnectionQueue(QueueCommon[Any]):
    """The queue of a :class:`sqlalchemy.pool.QueuePool`. Those that are open are taken first."""

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        self.maxsize = maxsize
        self.limit = maxsize
        """The largest number of idle connections; 0 for no limit."""
        self.use_lifo = use_lifo
        self._idle: deque[Any] = deque()
        self._unopened: deque[Any] = deque()
        """Places for connections that could not be opened, or were lost."""
        self._places: deque[_Place] = deque()
        self._serial = Serial()
        self.waiting = 0
        """The number of waiting tasks."""

    def __iter__(self) -> Iterator[Any]:
        """The idle connections."""
        return iter((*self._idle, *self._unopened))

    @property
    def coldest(self) -> Any:
        """With ``use_lifo`` the connection that has been idle for longest; None if there is none.

        It stays in the queue.
        """
        try:
            return self._idle[0]
        except IndexError:  # also if another thread took it
            return None

    @property
    def open(self) -> int:
        """The number of idle connections that are open; the others are opened when taken."""
        return sum(1 for each in self if each.dbapi_connection is not None)

    def qsize(self) -> int:
        return len(self._idle) + len(self._unopened)

    def empty(self) -> bool:
        return not (self._idle or self._unopened)

    def full(self) -> bool:
        return 0 < self.limit <= self.qsize()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if self.limit and self.full():
            raise Full
        self._shelf(item).append(item)
        if self._places:  # a task that joins after this check finds the idle connection itself
            self._serial.serve(self._match, None)

    def put_nowait(self, item: Any) -> None:
        self.put(item)

    def take(self) -> Any:
        """An idle connection; None if there is none."""
        try:
            return self._idle.pop() if self.use_lifo else self._idle.popleft()
        except IndexError:
            return self._oldest(self._unopened)

    def _shelf(self, item: Any) -> deque[Any]:
        unopened = getattr(item, "dbapi_connection", item) is None
        return self._unopened if unopened else self._idle

    def _oldest(self, shelf: deque[Any]) -> Any:
        try:
            return shelf.popleft()
        except IndexError:  # also if another thread took it
            return None

    def get_nowait(self) -> Any:
        connection = self.take()
        if connection is None:
            raise Empty
        return connection

    def pick(self, wanted: Callable[[Any], bool]) -> Any:
        """Remove and return the first idle connection that is wanted; None if there is none."""
        for each in self:
            if wanted(each):
                for shelf in (self._idle, self._unopened):
                    with suppress(ValueError):  # it is not there, or another thread was faster
                        shelf.remove(each)
                        return each
        return None

    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        joined: Callable[[], None] | None = None,
    ) -> Any:
        """Wait up to ``timeout`` seconds for a connection, then raise ``Empty``. In a greenlet.

        ``joined`` is called when the task has joined the line, before it waits.

        If cancelled, or if ``joined`` raises, the task leaves the line. A connection that it just
        got goes to the next task.
        """
        try:
            return self.get_nowait()
        except Empty:
            if not block:
                raise
        place = _Place()
        self._serial.serve(self._join, place)
        if joined is not None:
            try:
                joined()
            except BaseException:
                self._serial.serve(self._leave, place)
                raise
        if place.connection is None:
            await_only(self._wait(place, timeout))
        if place.connection is None:
            raise Empty
        return place.connection

    async def _wait(self, place: _Place, timeout: float | None) -> None:
        future = place.prepare()
        if place.connection is not None:
            return
        await place.wait(future, timeout, self._serial, self._expire, self._leave)

    def _join(self, place: _Place) -> None:
        self._places.append(place)
        place.queued = True
        self.waiting += 1
        self._match(None)

    def _quit(self, place: _Place) -> None:
        if place.queued:
            place.queued = False
            self.waiting -= 1

    def _match(self, _: None) -> None:
        while self._places:
            if not self._places[0].queued:
                self._places.popleft()
                continue
            connection = self._oldest(self._idle) or self._oldest(self._unopened)
            if connection is None:
                return
            place = self._places.popleft()
            self._quit(place)
            place.connection = connection
            if not place.wake():
                place.connection = None  # or _leave() would return it a second time
                self._shelf(connection).appendleft(connection)

    def _leave(self, place: _Place) -> None:
        self._quit(place)
        if place.connection is not None:  # cancelled at the moment of hand-off
            self._shelf(place.connection).append(place.connection)
            self._match(None)

    def _expire(self, place: _Place) -> None:
        if place.queued:
            self._quit(place)
            place.wake()
