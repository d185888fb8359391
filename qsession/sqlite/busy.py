"""Busy: a connection runs one statement at a time, whoever else uses it meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque

from sqlalchemy.util import await_only


class Busy:
    """Something that is busy or at rest; those who want it meanwhile wait in line."""

    __slots__ = ("_behind", "activity", "busy")

    def __init__(self) -> None:
        self.busy = 0
        self.activity = 0
        """Changes whenever it has done something."""
        self._behind: deque[asyncio.Future[None]] | None = None

    def wait_for_others(self) -> None:
        """Let what other tasks have begun end before. In a greenlet. Cancelled: as if never here.

        SQLAlchemy's documentation tells applications not to use a connection in several tasks, but
        drivers run what comes in the order of asking.
        """
        while self.busy:
            future = asyncio.get_running_loop().create_future()
            self._behind = self._behind or deque()
            self._behind.append(future)
            try:
                await_only(future)
            except BaseException:
                self._let_next()
                raise

    def rest(self) -> None:
        """What it was busy with is done."""
        self.busy -= 1
        self.activity += 1
        self._let_next()

    def _let_next(self) -> None:
        while not self.busy and self._behind:
            future = self._behind.popleft()
            if not future.done():
                future.set_result(None)
                return
