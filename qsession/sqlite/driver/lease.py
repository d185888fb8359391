"""Lease: a connection of the pool while one transaction uses it.

It is given back exactly once: by the task itself, by a cleanup in another thread, or by the garbage
collector.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from qsession.sqlite.driver.physical import DriverConnection

logger = logging.getLogger("qsession")


class Stream(Protocol):
    """An open cursor whose rows are fetched in parts."""

    def open(self, lease: Lease, cursor: sqlite3.Cursor, seen: Any) -> None:
        """Fetch from ``cursor`` from now on, and keep ``lease`` until it is closed."""

    def read_to_end(self) -> None:
        """Fetch the remaining rows at once."""

    def keep(self, rows: list[Any]) -> None:
        """Take the remaining rows, which were fetched elsewhere."""

    def forget(self) -> sqlite3.Cursor | None:
        """Give up SQLite's cursor; the caller closes it."""


_NO_STREAMS: frozenset[Any] = frozenset()


class Lease:
    """A physical connection that one transaction uses."""

    __slots__ = ("_give_back", "driver", "ended", "opened", "record", "reserved", "streams")

    def __init__(self, record: Any, give_back: Callable[[Lease], None]) -> None:
        self.driver: DriverConnection = record.dbapi_connection
        self.record = record
        """SQLAlchemy's pool record of the connection."""
        self.reserved: bool = record.reserved
        """Whether it is the connection reserved for the holder of the ticket."""
        self.streams: frozenset[Stream] = _NO_STREAMS
        self.opened: list[sqlite3.Cursor] = []
        """Cursors of no stream: the thread has opened one that its task has not received yet, or a
        COMMIT is about to close those of all streams.
        """
        self.ended = False
        """Whether its transaction has ended; open streams may still use it."""
        self._give_back: Callable[[Lease], None] | None = give_back

    def end(self) -> None:
        """The transaction is over. An open stream keeps the connection until it is closed."""
        self.ended = True
        if not self.streams:
            self.give_back()

    def stream_closed(self) -> None:
        """Note that one of the streams was closed."""
        if self.ended and not self.streams:
            self.give_back()

    def take_up(self) -> Lease | None:
        """Use it for the next transaction of the same user, if an open stream still keeps it."""
        if not self.ended or not self.streams:
            return None
        self.ended = False
        return self

    def give_back(self) -> None:
        """Give the connection back. Its transaction must have ended."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            if self.opened:
                self.tidy(close_cursors, self.opened)
            if self.driver.is_left_open():
                logger.error("A connection was returned with an open transaction; it is closed")
                self.driver.suspect = True
            if self.driver.being_set:
                self.driver.suspect = True
            self.record.kept = False
            give_back(self)

    def tidy(self, function: Callable[..., Any], *args: Any) -> None:
        """Run ``function(raw, *args)`` without waiting: at once, if the thread is idle.

        If it fails, the connection becomes suspect, and is closed when it is given back.
        """
        if not self.driver.quiet:
            self.driver.post(function, *args)
            return
        try:
            function(self.driver.raw, *args)
        except Exception:
            self.driver.suspect = True

    def abandon(self, busy: bool, undo: Callable[..., Any], done: Callable[[], None]) -> None:
        """Interrupt what runs, without waiting, run ``undo`` in the thread, then ``done()``."""
        cursors = self.forget_streams()
        if busy:
            self.driver.interrupt()
        self.driver.post(undo, cursors, done=done)

    def forget_streams(self) -> list[sqlite3.Cursor]:
        """Give up the cursors of open streams; the caller closes them in the thread.

        The thread may still add one, of a statement that is running.
        """
        cursors, self.opened = self.opened, []
        found = [stream.forget() for stream in self.streams]
        cursors[:0] = [cursor for cursor in found if cursor is not None]
        self.streams = _NO_STREAMS
        return cursors


def close_cursors(raw: sqlite3.Connection, cursors: Iterable[sqlite3.Cursor]) -> None:
    """Close cursors that nobody reads any more. A cursor keeps the snapshot of its statement."""
    for cursor in cursors:
        cursor.close()
