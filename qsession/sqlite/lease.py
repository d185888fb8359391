"""Leases: what a transaction has while it is attached to a physical connection.

A reader's lease is a checked-out connection of the pool; the writer's is the ticket. Both are
given back once, from wherever they end: by the task itself, by another thread's clean-up, or by
the garbage collector.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.group import leave

if TYPE_CHECKING:
    from qsession.sqlite.cursor import StreamCursor
    from qsession.sqlite.own import OwnConnection
    from qsession.sqlite.writer import Writer
    from qsession.waiting.ticket import Ticket


_NO_STREAMS: frozenset[StreamCursor] = frozenset()


class Lease:
    """A physical connection that one transaction uses."""

    __slots__ = ("driver", "ended", "streams")
    begin = ""

    def __init__(self, driver: DriverConnection) -> None:
        self.driver = driver
        self.streams: frozenset[StreamCursor] = _NO_STREAMS
        self.ended = False

    def give_back(self) -> None:
        """Let the next one have the connection. It must be clean by then."""
        raise AssertionError("a lease is a reader's or the writer's")

    def abandon(self, busy: bool) -> None:
        """End without waiting: break off what runs, roll back in the thread, then give back."""
        if self.ended:
            return
        self.ended = True
        cursors = self.forget_streams()
        if busy:
            self.driver.interrupt()
        self.driver.post(self.undo, cursors, done=self.give_back)

    def tidy(self, function: Callable[..., Any], *args: Any) -> None:
        """Run ``function(raw, *args)`` without waiting: at once, if the thread is quiet.

        If it fails, the connection is suspect, and closed when it is given back.
        """
        if not self.driver.quiet:
            self.driver.post(function, *args)
            return
        try:
            function(self.driver.raw, *args)
        except sqlite3.Error:
            self.driver.suspect = True

    @property
    def undo(self) -> Callable[[sqlite3.Connection, list[sqlite3.Cursor]], None]:
        """What rolls this transaction back, in the connection's thread."""
        return clean_up

    def forget_streams(self) -> list[sqlite3.Cursor]:
        cursors = [stream.forget() for stream in self.streams]
        self.streams = _NO_STREAMS
        return [cursor for cursor in cursors if cursor is not None]


class ReaderLease(Lease):
    """A reader of the pool, with a snapshot from its first statement on."""

    __slots__ = ("_checkin",)
    begin = "BEGIN"

    def __init__(self, driver: DriverConnection, checkin: Callable[[], None]) -> None:
        super().__init__(driver)
        self._checkin: Callable[[], None] | None = checkin

    def end(self) -> None:
        """The transaction is over. An open stream keeps the reader until it is closed.

        COMMIT ends the snapshot but for the statements that still run
        (https://sqlite.org/lang_transaction.html); it runs behind whoever else it may concern.
        """
        if self.ended:
            return
        self.ended = True
        self.tidy(finish_reading)
        if not self.streams:
            self.give_back()

    def stream_closed(self) -> None:
        if self.ended and not self.streams:
            self.give_back()

    def give_back(self) -> None:
        checkin, self._checkin = self._checkin, None
        if checkin is not None:
            checkin()


class WriterLease(Lease):
    """The writing connection, or one of its own, for as long as the ticket is held."""

    __slots__ = ("_lent", "_writer", "begin", "joined_at", "own", "ticket")

    def __init__(
        self,
        writer: Writer,
        ticket: Ticket,
        driver: DriverConnection,
        own: OwnConnection | None = None,
    ) -> None:
        super().__init__(driver)
        self.ticket = ticket
        self.own = own
        self.begin = "BEGIN IMMEDIATE" if own is None else own.begin
        self.joined_at: float | None = None
        """When it joined a group, by :func:`time.monotonic`; None while it is not in one."""
        self._writer = writer
        self._lent = False

    @property
    def undo(self) -> Callable[[sqlite3.Connection, list[sqlite3.Cursor]], None]:
        if self.joined_at is not None:
            return leave
        group = self._writer.group
        return close_cursors if group and group.driver is self.driver else clean_up

    def lend(self) -> None:
        """Let the application use the driver's connection, which begins transactions by itself.

        As it does for whoever opens one (https://docs.python.org/3/library/sqlite3.html,
        "Transaction control"), but so that it never has to ask for the lock in the middle.
        """
        self._lent = True
        self.driver.raw.isolation_level = "IMMEDIATE"

    def give_back(self) -> None:
        if self._lent:
            self.driver.post(take_over)  # before the next one's statements, in the same thread
        self._writer.give_back(self.ticket, self.own)

    def suspend(self, heir: Ticket | None) -> None:
        """End what was only read; ``heir``, or the next in the queue, holds the ticket at once.

        What they send runs behind the ROLLBACK, in the same thread.
        """
        self.ended = True
        self.tidy(self.undo, self.forget_streams())
        if heir is None:
            self.give_back()
        else:
            self._writer.turn.done(self.ticket)
            self._writer.queue.transfer(self.ticket, heir)


def nothing(raw: sqlite3.Connection) -> None:
    """What one runs in the thread to wait for what was given to it before."""


def take_over(raw: sqlite3.Connection) -> None:
    """From now on BEGIN is ours to send. Setting this commits: only where nothing is begun."""
    if raw.isolation_level is not None:
        raw.isolation_level = None


def close_cursors(raw: sqlite3.Connection, cursors: list[sqlite3.Cursor]) -> None:
    for cursor in cursors:
        cursor.close()


def clean_up(raw: sqlite3.Connection, cursors: list[sqlite3.Cursor]) -> None:
    """Close cursors, then roll back. In the connection's thread."""
    close_cursors(raw, cursors)
    if raw.in_transaction:
        raw.execute("ROLLBACK")


def finish_reading(raw: sqlite3.Connection) -> None:
    if raw.in_transaction:
        raw.execute("COMMIT")


def commit(
    raw: sqlite3.Connection, cursors: list[sqlite3.Cursor]
) -> tuple[Exception | None, bool, list[list[Any]]]:
    """Read open streams to their end, then commit: the error if any, whether SQLite still has the
    transaction, and the rows. In the connection's thread.
    """
    rest = []
    for cursor in cursors:
        rest.append(cursor.fetchall())
        cursor.close()
    try:
        if raw.in_transaction:
            raw.execute("COMMIT")
    except sqlite3.Error as error:
        return error, raw.in_transaction, rest
    return None, raw.in_transaction, rest


def data_version(raw: sqlite3.Connection) -> tuple[int, int]:
    """``PRAGMA data_version`` inside the snapshot and after it.

    The two differ if another connection has committed in between
    (https://sqlite.org/pragma.html#pragma_data_version).
    """
    (inside,) = raw.execute("PRAGMA data_version").fetchone()
    raw.execute("COMMIT")
    (after,) = raw.execute("PRAGMA data_version").fetchone()
    return inside, after
