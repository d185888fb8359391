"""RoutedCursor and StreamCursor: what SQLAlchemy sees as a DBAPI cursor."""

from __future__ import annotations

import sqlite3
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import util

from .lease import ReaderLease
from .log import Outcome, Statement, StreamDigest, fetch
from .need import need_of

if TYPE_CHECKING:
    from .connection import RoutedConnection
    from .lease import Lease


class RoutedCursor:
    """A DBAPI cursor whose rows have all been fetched."""

    server_side = False
    stream: StreamCursor | None = None
    description: Any = None
    rowcount = -1
    lastrowid: int | None = None
    arraysize = 1

    def __init__(self, connection: RoutedConnection) -> None:
        self._connection = connection
        self._rows: deque[Any] = deque()

    def execute(self, operation: str, parameters: Any = None) -> RoutedCursor:
        self.run(operation, parameters)
        return self

    def executemany(self, operation: str, parameters: Any) -> RoutedCursor:
        self.run(operation, parameters, many=True)
        return self

    def run(self, sql: str, parameters: Any, context: Any = None, many: bool = False) -> None:
        """Send one statement; ``context`` is what SQLAlchemy knows of it."""
        need, nowait = need_of(context, sql)
        inserts = context is None or context.compiled is None or context.isinsert
        options = util.EMPTY_DICT if context is None else context.execution_options
        statement = Statement(sql, parameters or (), need, many, self.stream, nowait, inserts)
        self._take(self._connection.transaction.execute(statement, options))

    def _take(self, outcome: Outcome) -> None:
        self._rows = deque(outcome.rows)
        self.description = outcome.description
        self.rowcount = outcome.rowcount
        self.lastrowid = outcome.lastrowid

    def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        rows = self._rows
        return [rows.popleft() for _ in range(min(size or self.arraysize, len(rows)))]

    def fetchall(self) -> list[Any]:
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __iter__(self) -> Iterator[Any]:
        while self._rows:
            yield self._rows.popleft()

    def close(self) -> None:
        self._rows.clear()

    async def _async_soft_close(self) -> None:
        return

    def setinputsizes(self, *inputsizes: Any) -> None:
        """Without effect, as in SQLite."""


class StreamCursor(RoutedCursor):
    """A cursor that fetches its rows as they are asked for.

    On a reader it keeps its snapshot until it is closed. On the writer a commit fetches the rest.
    """

    server_side = True

    def __init__(self, connection: RoutedConnection) -> None:
        super().__init__(connection)
        self.stream = self
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
        # The holder of the ticket refers to its streams: a connection that nobody else knows of
        # any more must be collected all the same.
        self._connection = weakref.proxy(self._connection)

    def _fetch(self, size: int | None) -> None:
        if self._cut_off:
            raise sqlite3.InterfaceError(
                "The rest of this stream was lost when its transaction was rolled back."
            )
        if self._cursor is not None and self._lease is not None:
            self._rows.extend(self._lease.driver.run(fetch, self._cursor, size, self._seen))
            self._connection.transaction.activity += 1

    def fetchone(self) -> Any:
        if not self._rows:
            self._fetch(1)
        return super().fetchone()

    def fetchmany(self, size: int | None = None) -> list[Any]:
        wanted = size or self.arraysize
        if len(self._rows) < wanted:
            self._fetch(wanted - len(self._rows))
        return super().fetchmany(wanted)

    def fetchall(self) -> list[Any]:
        self._fetch(None)
        return super().fetchall()

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def keep(self, rows: list[Any]) -> None:
        """The rest of the rows, fetched when the transaction was committed."""
        self._rows.extend(rows)
        self._cut_off = False

    def forget(self) -> sqlite3.Cursor | None:
        """Let go of SQLite's cursor; whoever asks closes it."""
        cursor, self._cursor, self._lease = self._cursor, None, None
        self._cut_off = cursor is not None
        self._siblings.discard(self)
        return cursor

    def close(self) -> None:
        super().close()
        lease = self._lease
        cursor = self.forget()
        if lease is None or cursor is None:
            return
        lease.streams -= {self}
        lease.driver.post(lambda raw: cursor.close())
        if isinstance(lease, ReaderLease):
            lease.stream_closed()
