"""ReaderQueue: where idle readers wait for tasks, and tasks for readers.

SQLAlchemy's own queue belongs to the loop that first waited on it. This one serves the tasks of
any loop, first come, first served, and takes a reader back from any thread.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sqlalchemy.util import await_only
from sqlalchemy.util.queue import Empty, Full, QueueCommon

from ..handoff import Serial, Waiter


class _Place(Waiter):
    """A task that waits for a reader."""

    __slots__ = ("left", "reader")

    def __init__(self) -> None:
        super().__init__()
        self.left = False
        self.reader: Any = None


class ReaderQueue(QueueCommon[Any]):
    """The queue of a :class:`sqlalchemy.pool.QueuePool`."""

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        self.maxsize = maxsize
        self.use_lifo = use_lifo
        self._idle: deque[Any] = deque()
        self._places: deque[_Place] = deque()
        self._serial = Serial()

    def qsize(self) -> int:
        return len(self._idle)

    def empty(self) -> bool:
        return not self._idle

    def full(self) -> bool:
        return 0 < self.maxsize <= len(self._idle)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if 0 < self.maxsize <= len(self._idle):
            raise Full
        self._idle.append(item)
        if self._places:  # who comes only now looks for an idle reader after this
            self._serial.serve(self._match, None)

    def put_nowait(self, item: Any) -> None:
        self.put(item)

    def take(self) -> Any:
        """An idle reader; None if there is none."""
        try:
            return self._idle.pop() if self.use_lifo else self._idle.popleft()
        except IndexError:
            return None

    def get_nowait(self) -> Any:
        reader = self.take()
        if reader is None:
            raise Empty
        return reader

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """A reader; waits ``timeout`` seconds for one, then raises ``Empty``. In a greenlet.

        Cancelled: the place is given up, and a reader that was just handed over goes to the next.
        """
        try:
            return self.get_nowait()
        except Empty:
            if not block:
                raise
        place = _Place()
        self._places.append(place)
        self._serial.serve(self._match, None)
        if place.reader is None:
            await_only(self._wait(place, timeout))
        if place.reader is None:
            raise Empty
        return place.reader

    async def _wait(self, place: _Place, timeout: float | None) -> None:
        future = place.prepare()
        if place.reader is not None:
            return
        await place.wait(future, timeout, self._serial, self._expire, self._leave)

    def _match(self, _: None) -> None:
        while self._places:
            if self._places[0].left:
                self._places.popleft()
                continue
            try:
                reader = self._idle.popleft()
            except IndexError:
                return  # there is none, or another thread was faster
            place = self._places.popleft()
            place.reader = reader
            if not place.wake():
                place.reader = None  # or it would come back once more when the task leaves
                self._idle.appendleft(reader)

    def _leave(self, place: _Place) -> None:
        place.left = True
        if place.reader is not None:  # cancelled at the moment of hand-off
            self._idle.append(place.reader)
            self._match(None)

    def _expire(self, place: _Place) -> None:
        if place.reader is None and not place.left:
            place.left = True
            place.wake()
