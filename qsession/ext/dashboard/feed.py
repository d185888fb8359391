"""Feed: looks at the databases once a second for all who watch, and not at all when nobody does."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qsession import events
from qsession.ext.dashboard.database import Database
from qsession.ext.dashboard.slow import SlowPlaces

LINGER = 10.0
"""Seconds after the last request for which it goes on, so that one who asks again gets rates."""
STEP = 0.2
"""Seconds between two looks at whether the server is about to stop."""

logger = logging.getLogger("qsession")


class Feed:
    """The figures as JSON, made anew every ``interval`` seconds, on one event loop.

    All who watch share them. One who is slow misses some; nothing is kept for anybody.
    """

    def __init__(self, databases: Sequence[Database], interval: float, slow: float) -> None:
        self.watching = 0
        self.version = 0
        self.state = b""
        self.ended = False
        """Whether the server stops. Streams end then, as the server waits for them."""
        self._databases = databases
        self._interval = interval
        self._places = SlowPlaces(slow)
        self._changed = asyncio.Event()
        self._until = 0.0
        self._task: asyncio.Task[None] | None = None

    async def newer(self, version: int) -> None:
        """Wait until there are figures after ``version``, or the server stops."""
        self._begin()
        while self.version <= version and not self.ended:
            await self._changed.wait()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keep looking."""
        self.watching += 1
        try:
            yield
        finally:
            self.watching -= 1
            self._until = time.monotonic() + LINGER

    @property
    def _is_wanted(self) -> bool:
        return not self.ended and (self.watching > 0 or time.monotonic() < self._until)

    def _begin(self) -> None:
        self._until = time.monotonic() + LINGER
        if self._task is None or self._task.done():
            self.ended = server_stops()
            if not self.ended:
                self._task = asyncio.create_task(self._run(), name="qsession dashboard")

    async def _run(self) -> None:
        unsubscribe = events.subscribe(self._places.observe)
        since = time.time()
        try:
            while self._is_wanted:
                databases = await asyncio.to_thread(self._look)
                self._publish({"at": time.time(), "since": since, "databases": databases})
                await self._pause()
        finally:
            unsubscribe()
            self.state, self.ended = b"", True
            self._wake()
            for each in self._databases:
                each.forget()

    def _look(self) -> list[dict[str, Any]]:
        return [self._look_at(each) for each in self._databases]

    def _look_at(self, database: Database) -> dict[str, Any]:
        try:
            return database.look(self._places)
        except Exception as error:
            logger.debug("The dashboard cannot look at a database", exc_info=True)
            return {"failed": f"{type(error).__name__}: {error}"}

    def _publish(self, told: dict[str, Any]) -> None:
        told = {"pid": os.getpid(), "interval": self._interval, **told}
        self.state = json.dumps(told, separators=(",", ":")).encode()
        self.version += 1
        self._wake()

    async def _pause(self) -> None:
        end = time.monotonic() + self._interval
        while self._is_wanted and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, STEP))
            if server_stops():
                self.ended = True
                self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def server_stops() -> bool:
    """Whether uvicorn is about to stop.

    It waits for all answers to end before it tells the application
    (https://www.uvicorn.org/server-behavior/#graceful-process-shutdown), so a stream has to find
    out by itself. While it serves, a method of its server handles the signals; the server has
    ``should_exit``. Elsewhere this is False, and streams end when their time is over.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        server = getattr(signal.getsignal(number), "__self__", None)
        if getattr(server, "should_exit", False) is True:
            return True
    return False
