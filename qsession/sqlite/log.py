"""The log of a transaction: what it sent and what came back, so that it can be replayed.

The functions at the end run in a connection's thread. They decide nothing: they report.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qsession.errors import SQLITE_BUSY, SQLITE_READONLY, sqlite_code
from qsession.sqlite.driver.processor import Spent, mark, spent
from qsession.sqlite.driver.setup import plain_cursor
from qsession.sqlite.need import Need
from qsession.sqlite.transaction.digest import StreamDigest, error_seen, rows_seen
from qsession.sqlite.transaction.parameters import size_of

if TYPE_CHECKING:
    from qsession.sqlite.cursor import StreamCursor

MAX_STATEMENTS = 1_000
MAX_BYTES = 4 * 1024 * 1024


class Rowid:
    """The rowid that an INSERT was given, and whether the application has asked for it."""

    __slots__ = ("asked", "value")

    def __init__(self) -> None:
        self.value: int | None = None
        self.asked = False

    def ask(self) -> int | None:
        self.asked = True
        return self.value

    def is_now(self, value: int | None) -> bool:
        """Take note of the rowid in a replay; false if the application has got another one.

        It may ask in its own thread meanwhile, so the value comes before the question.
        """
        before, self.value = self.value, value
        return before == value or not self.asked


@dataclass(slots=True)
class Statement:
    """One statement on its way to the database."""

    sql: str
    parameters: Any = ()
    need: Need = Need.UNKNOWN
    many: bool = False
    stream: StreamCursor | None = None
    """Who fetches the rows little by little; None where all are fetched at once."""
    nowait: bool = False
    rowid: Rowid | None = None
    """Where it may insert; for other statements SQLite repeats an older rowid."""
    alone: bool = False
    """One of several slices: it joins no group."""
    unclaimed: sqlite3.Cursor | None = None
    """The cursor of a stream, until the task that asked for it has got it."""


@dataclass(slots=True)
class Outcome:
    """What came back for a statement; ``cursor`` is open only for a stream."""

    rows: list[Any] = field(default_factory=list)
    description: Any = None
    rowcount: int = -1
    lastrowid: int | None = None
    changed: bool = False
    """Whether rows were changed, or something was done that yields no rows."""
    cursor: sqlite3.Cursor | None = None

    def add(self, slice_: Outcome) -> None:
        """What came back for the next rows of an executemany."""
        self.rowcount += slice_.rowcount
        self.lastrowid = slice_.lastrowid
        self.changed = self.changed or slice_.changed
        self.description = slice_.description


@dataclass(slots=True)
class Entry:
    """A statement and what was seen of its result."""

    statement: Statement
    seen: Any


class Log:
    """The statements of one transaction. When it is full it is dropped: ``complete`` is False."""

    __slots__ = ("_bytes", "complete", "entries")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.complete = True
        self._bytes = 0

    def append(self, statement: Statement, seen: Any) -> bool:
        """Add a statement; true if the log has grown past what is kept."""
        if not self.complete:
            return False
        self.entries.append(Entry(statement, seen))
        self._bytes += len(statement.sql) + size_of(statement.parameters, statement.many)
        return len(self.entries) > MAX_STATEMENTS or self._bytes > MAX_BYTES

    def drop(self) -> None:
        """Forget everything: this transaction can no longer be replayed."""
        self.complete = False
        self.entries = []


@dataclass(slots=True)
class Report:
    """What happened when a statement was run, for the transaction to decide on."""

    outcome: Outcome | None = None
    error: Exception | None = None
    in_transaction: bool = False
    busy: bool = False
    """Another connection holds a lock, and nothing of this transaction is lost by trying again."""
    diverged: Entry | None = None
    """The first entry whose replay saw something else."""
    changed: bool = False
    """Whether rows were changed before the error."""
    spent: Spent | None = None
    """How long the statement took; None if it was not reached."""

    @property
    def half_replayed(self) -> bool:
        """Whether a transaction is open of which only a part has been replayed."""
        return self.spent is None and self.error is not None and self.in_transaction

    @property
    def refused(self) -> bool:
        """Whether a reader said that the statement writes."""
        return self.error is not None and sqlite_code(self.error) == SQLITE_READONLY


def digest(outcome: Outcome) -> Any:
    """What the application has seen of an outcome, in a form that can be compared."""
    return rows_seen(outcome.rows), outcome.rowcount


def run(
    raw: sqlite3.Connection, begin: str | None, entries: Sequence[Entry], statement: Statement
) -> Report:
    """Begin if asked to, replay, execute. In the connection's thread."""
    began_before = raw.in_transaction
    if (
        begin is not None and began_before and begin.startswith("BEGIN")
    ):  # left over from a clean-up that failed
        raw.execute("ROLLBACK")
        began_before = False
    changes = raw.total_changes
    started = None
    try:
        if begin is not None:
            raw.execute(begin)
        for entry in entries:
            if not same_again(raw, entry) or not raw.in_transaction:
                return Report(diverged=entry, in_transaction=raw.in_transaction)
        changes = raw.total_changes
        started = mark()
        outcome = execute(raw, statement)
        took = spent(started)
        return Report(outcome, in_transaction=raw.in_transaction, spent=took)
    except Exception as error:
        busy = sqlite_code(error) == SQLITE_BUSY
        if busy and raw.in_transaction and not began_before:
            raw.execute("ROLLBACK")
        return Report(
            error=error,
            in_transaction=raw.in_transaction,
            busy=busy,
            changed=raw.total_changes != changes,
            spent=None if started is None else spent(started),
        )


def execute(raw: sqlite3.Connection, statement: Statement) -> Outcome:
    """Run one statement and fetch all its rows, unless it is streamed.

    The cursor is closed before anything else can happen: an INSERT ... RETURNING that was not read
    to its end keeps its transaction, and the lock, past ``close()`` of the connection.
    """
    before = raw.total_changes
    cursor = raw.cursor()
    keep = False
    try:
        if statement.many:
            cursor.executemany(statement.sql, statement.parameters)
        else:
            cursor.execute(statement.sql, statement.parameters)
        description = cursor.description
        keep = statement.stream is not None and description is not None
        rows = cursor.fetchall() if description is not None and not keep else []
        changed = description is None or raw.total_changes != before
        statement.unclaimed = cursor if keep else None
        return Outcome(
            rows,
            description,
            cursor.rowcount,
            cursor.lastrowid,
            changed=changed or (keep and _writes(raw, statement)),
            cursor=cursor if keep else None,
        )
    finally:
        if not keep:
            cursor.close()


def _writes(raw: sqlite3.Connection, statement: Statement) -> bool:
    """Whether a stream of text writes: SQLite counts its rows only when it is read to its end.

    Its program says so (https://sqlite.org/opcode.html#Transaction), which EXPLAIN lists.
    """
    if statement.need is not Need.UNKNOWN:
        return statement.need is Need.WRITE
    try:
        with plain_cursor(raw) as cursor:
            program = cursor.execute(f"EXPLAIN {statement.sql}", statement.parameters)
            return any(opcode == "Transaction" and p2 for _, opcode, _, p2, *_ in program)
    except sqlite3.Error:
        return False  # an EXPLAIN


def close_unclaimed(raw: sqlite3.Connection, statement: Statement) -> None:
    """Close what was opened for a task that was cancelled before it got it."""
    if statement.unclaimed is not None:
        statement.unclaimed.close()


def fetch(
    raw: sqlite3.Connection, cursor: sqlite3.Cursor, size: int | None, seen: StreamDigest
) -> list[Any]:
    """The next rows of a stream (all of them: None), added to what was seen of it."""
    rows = cursor.fetchall() if size is None else cursor.fetchmany(size)
    seen.add(rows)
    seen.ended = size is None or len(rows) < size
    return rows


def same_again(raw: sqlite3.Connection, entry: Entry) -> bool:
    try:
        outcome = execute(raw, entry.statement)
    except Exception as error:
        same = bool(error_seen(error) == entry.seen)
        if sqlite_code(error) == SQLITE_BUSY or not (same or isinstance(error, sqlite3.Error)):
            raise
        return same
    if outcome.cursor is None:
        return bool(digest(outcome) == entry.seen) and _same_rowid(entry.statement, outcome)
    again = StreamDigest()
    try:
        if not isinstance(entry.seen, StreamDigest):
            return False  # it failed before
        if entry.seen.ended:
            fetch(raw, outcome.cursor, None, again)
        elif entry.seen.count:
            fetch(raw, outcome.cursor, entry.seen.count, again)
    finally:
        outcome.cursor.close()
    return again == entry.seen


def _same_rowid(statement: Statement, outcome: Outcome) -> bool:
    if statement.rowid is None or outcome.rowcount < 1:
        return True
    return statement.rowid.is_now(outcome.lastrowid)
