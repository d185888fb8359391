"""OneAtATime: a connection runs one statement at a time, even if several tasks use it."""

from __future__ import annotations

import asyncio
from collections import deque

from sqlalchemy.util import await_only


class OneAtATime:
    """The statements of one connection. A statement waits in line while another one runs."""

    running = 0
    activity = 0
    """Changes after each statement."""
    _line: deque[asyncio.Future[None]] | None = None

    def wait(self) -> None:
        """Wait until no statement of another task runs. In a greenlet.

        SQLAlchemy's documentation tells applications not to use a connection in several tasks, but
        drivers run such statements in the order in which they come.
        """
        waited = False
        while self.running:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self._line = self._line or deque()
            if waited:
                self._line.appendleft(future)  # another task was faster; it keeps its place
            else:
                self._line.append(future)
            try:
                await_only(future)
            except BaseException:
                future.cancel()  # where nothing can wait, it was not awaited
                self._let_next()
                raise
            waited = True
        if waited and self._line:  # it may begin nothing, as after a conflict
            loop.call_soon(self._let_next)

    def begin(self) -> None:
        """Note that a statement begins."""
        self.running += 1

    def end(self) -> None:
        """Note that a statement has ended."""
        self.running -= 1
        self.activity += 1
        if self._line:
            self._let_next()

    def _let_next(self) -> None:
        while not self.running and self._line:
            future = self._line.popleft()
            if not future.done():
                future.set_result(None)
                return
