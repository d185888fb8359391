"""OwnConnection: who changes settings on the writing connection has it to itself from then on.

A PRAGMA, a temporary table, an attached database or a function of the application's belongs to a
physical connection, and outlives the transaction. On the one that all write on it would hold for
everybody. So before such a statement is sent, the connection is taken away from the writer, which
goes on with another one. All later transactions of the same :class:`RoutedConnection` run on it,
still with the ticket, and it is closed with that.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from qsession.sqlite.driver.listeners import check_in
from qsession.sqlite.driver.setup import plain_cursor
from qsession.sqlite.processes import fork

if TYPE_CHECKING:
    from qsession.sqlite.driver.physical import DriverConnection
    from qsession.sqlite.place import Place
    from qsession.sqlite.pool import WriteQueuePool


_kept: set[DriverConnection] = set()
"""Those that are open, so that they are whole when the garbage collector finds who kept them."""


class OwnConnection:
    """A physical connection that was the writer's, and its place in the pool."""

    __slots__ = ("_open", "begin", "driver", "record")

    def __init__(self, record: Any) -> None:
        self.record = record
        self.driver: DriverConnection = record.dbapi_connection
        self.begin = "BEGIN IMMEDIATE"
        self._open = [record]
        _kept.add(self.driver)

    @property
    def usable(self) -> bool:
        """Whether the next transaction can have it; if not, what was set on it is lost."""
        invalidated = self.record._is_hard_or_soft_invalidated()
        return bool(self._open) and not (invalidated or self.driver.suspect)

    def look(self) -> None:
        """Find out how a transaction begins here: with ``PRAGMA query_only`` none may write."""
        self.begin = self.driver.run(_begin)

    def checkin(self, pool: WriteQueuePool) -> None:
        """A transaction has ended: listeners are told, and what is broken is closed."""
        check_in(pool, self.record)
        if self.driver.suspect:
            self.close(wait=False)

    def close(self, wait: bool) -> None:
        """Close it, once; without ``wait`` from anywhere, the garbage collector included."""
        try:
            record = self._open.pop()  # in one step: its thread may be about to close it as well
        except IndexError:
            return
        try:
            if wait:
                record.close()
            else:
                record.invalidate()
        finally:
            _kept.discard(self.driver)


def own_of(transaction: Place) -> OwnConnection | None:
    """The connection that a transaction has kept; it is let go if it cannot be used any more."""
    own = transaction.own
    if own is None:
        return None
    fork.refuse_carried(own.driver.path, own.driver.identity)
    if not own.usable:
        transaction.let_go(wait=False)
    return transaction.own


def _begin(raw: sqlite3.Connection) -> str:
    with plain_cursor(raw) as cursor:
        (query_only,) = cursor.execute("PRAGMA query_only").fetchone()
    return "BEGIN" if query_only else "BEGIN IMMEDIATE"
