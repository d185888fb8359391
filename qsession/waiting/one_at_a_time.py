"""OneAtATime: a connection runs one statement at a time, whoever else uses it meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque

from sqlalchemy.util import await_only


class OneAtATime:
    """The statements of one connection. Those that come while one runs wait in line."""

    __slots__ = ("_line", "activity", "running")

    def __init__(self) -> None:
        self.running = 0
        self.activity = 0
        """Changes whenever something has run."""
        self._line: deque[asyncio.Future[None]] | None = None

    def wait(self) -> None:
        """Let what other tasks have begun end before. In a greenlet. Cancelled: as if never here.

        SQLAlchemy's documentation tells applications not to use a connection in several tasks, but
        drivers run what comes in the order of asking.
        """
        while self.running:
            future = asyncio.get_running_loop().create_future()
            self._line = self._line or deque()
            self._line.append(future)
            try:
                await_only(future)
            except BaseException:
                self._let_next()
                raise

    def begin(self) -> None:
        """A statement runs from here on."""
        self.running += 1

    def end(self) -> None:
        """It has ended."""
        self.running -= 1
        self.activity += 1
        self._let_next()

    def _let_next(self) -> None:
        while not self.running and self._line:
            future = self._line.popleft()
            if not future.done():
                future.set_result(None)
                return
