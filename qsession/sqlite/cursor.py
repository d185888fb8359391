"""RoutedCursor and StreamCursor: the DBAPI cursors that SQLAlchemy gets."""

from __future__ import annotations

import sqlite3
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from sqlalchemy import util

from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.transaction.digest import StreamDigest
from qsession.sqlite.transaction.sending import fetch
from qsession.sqlite.transaction.statement import Statement, kind_of
from qsession.sqlite.transaction.transaction import Transaction


class Connected(Protocol):
    """The connection of a cursor."""

    transaction: Transaction
    streams: set[StreamCursor] | None
    """The open streams; None before the first one."""


class RoutedCursor:
    """A DBAPI cursor whose rows have all been fetched."""

    server_side = False
    stream: StreamCursor | None = None
    description: Any = None
    rowcount = -1
    arraysize = 1
    lastrowid: int | None = None

    def __init__(self, connection: Connected) -> None:
        self._connection = connection
        self._rows: list[Any] | deque[Any] = []

    def execute(self, operation: str, parameters: Any = None) -> RoutedCursor:
        self.run(operation, parameters)
        return self

    def executemany(self, operation: str, parameters: Any) -> RoutedCursor:
        self.run(operation, parameters, many=True)
        return self

    def run(self, sql: str, parameters: Any, context: Any = None, many: bool = False) -> None:
        """Send one statement; ``context`` is SQLAlchemy's execution context."""
        self._rows = []
        kind, nowait, words = kind_of(context, sql)
        options = util.EMPTY_DICT if context is None else context.execution_options
        if many and not isinstance(parameters, list):
            parameters = list(parameters)
        statement = Statement(
            sql, parameters or (), kind, words, many, self.stream, nowait, context
        )
        outcome = self._connection.transaction.execute(statement, options)
        self._rows = outcome.rows
        self.description = outcome.description
        self.rowcount = outcome.rowcount
        self.lastrowid = outcome.lastrowid

    def _fetch(self, size: int) -> None:
        """Fetch more rows. Here all rows are already fetched."""

    def _one_by_one(self) -> deque[Any]:
        """The remaining rows as a deque. Fetching all at once does not need this copy."""
        if isinstance(self._rows, list):
            self._rows = deque(self._rows)
        return self._rows

    def fetchone(self) -> Any:
        if not self._rows:
            self._fetch(1)
        return self._one_by_one().popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        wanted = size or self.arraysize
        if len(self._rows) < wanted:
            self._fetch(wanted - len(self._rows))
        rows = self._one_by_one()
        return [rows.popleft() for _ in range(min(wanted, len(rows)))]

    def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows if isinstance(rows, list) else list(rows)

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def close(self) -> None:
        self._rows = []

    async def _async_soft_close(self) -> None:
        return

    def setinputsizes(self, *inputsizes: Any) -> None:
        """Without effect, as in SQLite."""

    def nextset(self) -> None:
        """No effect: a statement of SQLite has one result."""


class StreamCursor(RoutedCursor):
    """A cursor that fetches its rows on demand.

    It keeps the physical connection until it is closed. A commit of a transaction that has written
    fetches the remaining rows.
    """

    server_side = True

    def __init__(self, connection: Connected) -> None:
        super().__init__(connection)
        self.stream = self
        if connection.streams is None:
            connection.streams = set()
        self._siblings = connection.streams
        self._lease: Lease | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._seen = StreamDigest()
        self._cut_off = False

    def open(self, lease: Lease, cursor: sqlite3.Cursor, seen: StreamDigest) -> None:
        """Fetch from ``cursor`` from now on, and keep ``lease`` until it is closed."""
        self._lease, self._cursor, self._seen = lease, cursor, seen
        lease.streams |= {self}
        self._siblings.add(self)
        # The lease refers to its streams. A weak reference here lets an unclosed connection be
        # collected all the same.
        self._connection = weakref.proxy(self._connection)

    def _fetch(self, size: int | None) -> None:
        if self._cut_off:
            raise sqlite3.InterfaceError(
                "The remaining rows of this stream were lost: its transaction was rolled back, or "
                "its session gave its connection back. Read a stream to its end first."
            )
        if self._cursor is not None and self._lease is not None:
            self._rows.extend(self._lease.driver.run(fetch, self._cursor, size, self._seen))
            self._connection.transaction.statements.activity += 1

    def fetchall(self) -> list[Any]:
        self._fetch(None)
        return super().fetchall()

    def read_to_end(self) -> None:
        """Fetch the remaining rows at once, and give up the connection. In a greenlet."""
        self._fetch(None)
        self._let_go()
        self._cut_off = False

    def keep(self, rows: list[Any]) -> None:
        """Take the remaining rows, fetched when the transaction was committed."""
        self._rows.extend(rows)
        self._cut_off = False

    def forget(self) -> sqlite3.Cursor | None:
        """Give up SQLite's cursor; the caller closes it."""
        cursor, self._cursor, self._lease = self._cursor, None, None
        self._cut_off = cursor is not None
        self._siblings.discard(self)
        return cursor

    def close(self) -> None:
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        lease = self._lease
        cursor = self.forget()
        if lease is None or cursor is None:
            return
        lease.streams -= {self}
        lease.driver.post(lambda raw: cursor.close())
        lease.stream_closed()
