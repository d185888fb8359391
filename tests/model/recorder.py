"""What an application sees of its transactions, recorded where SQLAlchemy meets the library.

Everything goes through the cursors and connections of the DBAPI: the ORM, Core, text, savepoints,
streams. So the recorder stands there, and knows nothing of what is beneath.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from qsession.errors import DurabilityError, QSessionError
from qsession.sqlite.connection import RoutedConnection
from qsession.sqlite.cursor import RoutedCursor, StreamCursor

JOURNAL = "INSERT INTO journal (name) VALUES (?)"
_COMMENT = re.compile(r"/\*.*?\*/")
_READS = ("SELECT", "VALUES", "EXPLAIN", "PRAGMA", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK")


@dataclass(eq=False)
class Seen:
    """One statement, and what came back."""

    sql: str
    parameters: Any
    many: bool
    began: int
    locks: bool = False
    ended: int = 0
    rows: list[Any] | None = None
    columns: tuple[str, ...] = ()
    rowcount: int = -1
    lastrowid: int | None = None
    error: BaseException | None = None
    streamed: bool = False
    whole: bool = True
    """Whether all its rows were fetched."""
    frozen: bool = False
    """Whether rows that are fetched from here on may be any, since its transaction has written."""
    by_driver: bool = False
    """Whether it was sent on the driver's connection."""
    tag: str | None = None
    """What it puts into the journal by itself."""

    @property
    def writes(self) -> bool:
        """Whether it may write, or locks."""
        text = self._text
        if text.startswith("WITH"):
            return self.locks or any(word in text for word in ("INSERT", "UPDATE", "DELETE"))
        return self.locks or not text.startswith(_READS)

    @property
    def took(self) -> bool:
        """Whether it has written, or locked. What has failed may have the lock, or not."""
        return self.writes and (self.error is None or self.many or "OR FAIL" in self._text)

    @property
    def asks(self) -> bool:
        """Whether it reads, and nothing else."""
        return not self.writes and self._text.startswith(("SELECT", "WITH"))

    @property
    def fails_to_read(self) -> bool:
        return self.asks and self.error is not None

    @property
    def _text(self) -> str:
        return _COMMENT.sub("", self.sql).lstrip().upper()

    @property
    def key(self) -> Any:
        """Equal for the same question."""
        return self.sql, repr(self.parameters)

    def __repr__(self) -> str:
        what = self.rows if self.error is None else f"{type(self.error).__name__}: {self.error}"
        count = "" if self.rowcount < 0 else f" ({self.rowcount})"
        many = " many" if self.many else ""
        return f"[{self.began}-{self.ended}] {self.sql} {self.parameters}{many} -> {what}{count}"


@dataclass(eq=False)
class Record:
    """One transaction."""

    name: str
    access: str
    snapshot: bool
    autocommit: bool
    statements: list[Seen] = field(default_factory=list)
    commit_began: int | None = None
    ended: int = 0
    outcome: str = "open"
    """``committed``, ``rolled back``, ``failed`` (its COMMIT), or ``unknown``: cancelled in it."""
    error: BaseException | None = None
    """Of its COMMIT."""
    dead: BaseException | None = None
    """Why it was ended before its end."""
    lent: bool = False
    """Whether the application had the driver's connection by then: SQLite syncs its commits."""

    @property
    def writes(self) -> bool:
        return any(each.writes for each in self.statements)

    def __repr__(self) -> str:
        mode = f"{self.access}{' snapshot' * self.snapshot}{' autocommit' * self.autocommit}"
        end = f"{self.outcome} [{self.commit_began}-{self.ended}] {self.error!r} {self.dead!r}"
        lines = "".join(f"\n    {each}" for each in self.statements)
        return f"{self.name} {mode}: {end}{lines}"


class Recorder:
    """Keeps all transactions of a run, on one clock: its own, or one of the whole machine.

    ``note`` is called with each transaction before its COMMIT is sent, and when it has ended.
    """

    def __init__(
        self,
        tick: Callable[[], int] | None = None,
        note: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.records: list[Record] = []
        self.tick = tick or itertools.count(1).__next__
        self._note = note
        self._names = itertools.count(1)
        self._current: weakref.WeakKeyDictionary[RoutedConnection, Record] = (
            weakref.WeakKeyDictionary()
        )
        self._lent: weakref.WeakSet[RoutedConnection] = weakref.WeakSet()
        self.prefix = ""

    def of(self, connection: Any) -> Record | None:
        """The transaction of a connection."""
        return self._current.get(connection)

    def by_driver(self, connection: Any, sql: str, parameters: Any, options: Any) -> Seen:
        """A statement that is about to be sent on the driver's connection, past all cursors."""
        record = self._current.get(connection) or self._begin(connection, options)
        self._lent.add(connection)
        record.lent = True
        seen = Seen(sql, parameters, False, self.tick(), by_driver=True)
        if record.dead is None:
            record.statements.append(seen)
        return seen

    def _begin(self, connection: Any, options: Any) -> Record:
        access = options.get("qsession_access", "auto")
        reads = options.get("qsession_reads", "latest")
        autocommit = connection.transaction.autocommit
        name = options.get("model_tag") or f"{self.prefix}{next(self._names)}"
        record = Record(name, access, reads == "snapshot" or access != "auto", autocommit)
        record.lent = connection in self._lent
        self.records.append(record)
        if not autocommit:
            self._current[connection] = record
        return record

    def _end(self, connection: Any, outcome: str, error: BaseException | None = None) -> None:
        record = self._current.pop(connection, None)
        if record is not None:
            record.outcome, record.error, record.ended = outcome, error, self.tick()
            self._note(record)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Record everything in this process from here on."""
        with ExitStack() as stack:

            def put(target: Any, name: str, make: Callable[[Any], Any]) -> None:
                stand_in = make(getattr(target, name))
                stack.enter_context(mock.patch.object(target, name, stand_in))

            put(RoutedCursor, "run", self._run)
            for name in ("fetchone", "fetchmany", "fetchall"):
                put(StreamCursor, name, self._fetch)
            put(RoutedConnection, "commit", self._commit)
            put(RoutedConnection, "rollback", self._rollback)
            put(RoutedConnection, "_close_special", self._closed)
            put(RoutedConnection, "invalidate", self._closed)
            yield

    def _run(self, original: Any) -> Any:
        def run(
            cursor: Any, sql: str, parameters: Any, context: Any = None, many: bool = False
        ) -> None:
            connection = cursor._connection
            options = {} if context is None else context.execution_options
            record = self._current.get(connection) or self._begin(connection, options)
            parameters = list(parameters) if many else parameters
            seen = Seen(sql, parameters, many, self.tick())
            seen.locks = bool(options.get("model_locks")) or sql == "BEGIN IMMEDIATE"
            record.snapshot = record.snapshot or sql == "BEGIN"
            seen.tag = options.get("model_tag")
            if seen.writes:
                for each in record.statements:
                    each.frozen = each.frozen or not each.whole
            if record.dead is None:
                record.statements.append(seen)
            alone = record.autocommit
            record.commit_began = seen.began if alone else None
            if alone:
                self._note(record)
            try:
                original(cursor, sql, parameters, context, many)
            except BaseException as error:
                seen.error, seen.ended = error, self.tick()
                if isinstance(error, (QSessionError, asyncio.CancelledError)):
                    record.dead = record.dead or error
                if alone:
                    cut = isinstance(error, (asyncio.CancelledError, DurabilityError))
                    record.outcome = "unknown" if cut else "rolled back"
                    record.ended = seen.ended
                    self._note(record)
                raise
            seen.ended = self.tick()
            seen.columns = tuple(each[0] for each in cursor.description or ())
            seen.rowcount, seen.lastrowid = cursor.rowcount, cursor.lastrowid
            if cursor.server_side:
                seen.streamed, seen.rows, seen.whole = True, [], False
                cursor.model_seen = seen
            elif cursor.description is not None:
                seen.rows = list(cursor._rows)
            if alone:
                record.outcome, record.ended = "committed", seen.ended
                self._note(record)

        return run

    def _fetch(self, original: Any) -> Any:
        single = original.__name__ == "fetchone"

        def fetch(cursor: Any, *args: Any) -> Any:
            rows = original(cursor, *args)
            seen = getattr(cursor, "model_seen", None)
            if seen is not None and not seen.frozen:
                found = ([] if rows is None else [rows]) if single else rows
                seen.rows += found
                asked = 1 if single else (args[0] if args and args[0] else None)
                seen.whole = seen.whole or asked is None or len(found) < asked
            return rows

        return fetch

    def _commit(self, original: Any) -> Any:
        def commit(connection: Any) -> None:
            record = self._current.get(connection)
            if record is not None:
                record.commit_began = self.tick()
                self._note(record)
            try:
                original(connection)
            except BaseException as error:
                # The disk has not confirmed it: the commit has happened all the same.
                cut = isinstance(error, (asyncio.CancelledError, DurabilityError))
                self._end(connection, "unknown" if cut else "failed", error)
                raise
            self._end(connection, "committed")

        return commit

    def _rollback(self, original: Any) -> Any:
        def rollback(connection: Any) -> None:
            try:
                original(connection)
            finally:
                self._end(connection, "rolled back")

        return rollback

    def _closed(self, original: Any) -> Any:
        def close(connection: Any, *args: Any, **kwargs: Any) -> None:
            try:
                original(connection, *args, **kwargs)
            finally:
                self._end(connection, "rolled back")

        return close
