"""Sending: carries out a plan on a connection, in one hop to its thread.

These functions run in the connection's thread, or on the event loop while that thread is idle. They
do not decide anything; they report what happened.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from qsession.errors import (
    SQLITE_BUSY,
    SQLITE_ERROR,
    SQLITE_INTERRUPT,
    SQLITE_READONLY,
    sqlite_code,
)
from qsession.sqlite.driver.lease import close_cursors
from qsession.sqlite.driver.processor import mark, spent
from qsession.sqlite.driver.setup import explaining, plain_cursor, pragma
from qsession.sqlite.transaction.digest import StreamDigest, error_seen, rows_seen
from qsession.sqlite.transaction.log import Entry
from qsession.sqlite.transaction.plan import Plan
from qsession.sqlite.transaction.statement import Kind, Statement


@dataclass(slots=True)
class Outcome:
    """The result of a statement; ``cursor`` is open only for a stream."""

    rows: list[Any] = field(default_factory=list)
    description: Any = None
    rowcount: int = -1
    lastrowid: int | None = None
    changed: bool = False
    """Whether the statement changed rows, or returned no result set."""
    changed_rows: bool = False
    cursor: Any = None
    seen: Any = None
    """The digest of the result, if the plan asks for it."""

    def add(self, part: Outcome) -> None:
        """Add the result for the next rows of an executemany; -1 if sqlite3 did not count them."""
        self.rowcount = -1 if part.rowcount < 0 else self.rowcount + part.rowcount
        self.lastrowid = part.lastrowid
        self.changed = self.changed or part.changed
        self.changed_rows = self.changed_rows or part.changed_rows
        self.description = part.description


class Stage(Enum):
    """How far a plan got."""

    BEGIN = "before the statement: nothing was done"
    VALIDATE = "during validation"
    STATEMENT = "at the statement itself"


class Report:
    """What happened when a plan ran. The values of the class are the defaults."""

    outcome: Outcome | None = None
    error: Exception | None = None
    stage: Stage = Stage.BEGIN
    in_transaction: bool = False
    version: int | None = None
    conflict: str | None = None
    """Which read has changed, in words."""
    validated: bool = False
    """Whether the reads in the log were repeated."""
    changed: bool = False
    """Whether rows were changed before the error."""
    spent: float | None = None
    """The statement's own time in seconds; None if it was not reached or not measured."""
    was: Any = None
    """The value of the watched PRAGMA before, if it has changed."""
    now: Any = None
    """The value of the watched PRAGMA now."""

    @property
    def code(self) -> int:
        """SQLite's code of the error; 0 if there is none."""
        return 0 if self.error is None else sqlite_code(self.error)

    @property
    def busy(self) -> bool:
        """Whether another connection holds a lock."""
        return self.code == SQLITE_BUSY

    @property
    def lacks(self) -> bool:
        """Whether SQLite could not compile the statement, as for a table that does not exist yet.

        Python 3.10 gives such an error no code.
        """
        return isinstance(self.error, sqlite3.OperationalError) and self.code in (0, SQLITE_ERROR)

    @property
    def refused(self) -> bool:
        """Whether the database said that the statement writes."""
        if self.error is None:
            return False
        return self.stage is Stage.STATEMENT and self.code == SQLITE_READONLY


def run(raw: sqlite3.Connection, plan: Plan, report: Report, measures: bool = True) -> Report:
    """Carry out a plan. ``report`` is filled step by step, so it is valid after an interruption.

    ``measures``: whether to measure the statement's own time.
    """
    began_before = raw.in_transaction
    changes = 0
    try:
        if began_before and (plan.begin is not None or plan.ends_reading):
            raw.execute("COMMIT" if plan.ends_reading else "ROLLBACK")  # left by a cleanup
            began_before = False
        if plan.query_only is not None:
            raw.execute(f"PRAGMA query_only={'ON' if plan.query_only else 'OFF'}")
        if plan.asks_version:
            report.version = data_version(raw)
        if plan.begin is not None:
            raw.execute(plan.begin)
            if plan.validates:
                report.stage = Stage.VALIDATE
                report.conflict = _find_conflict(raw, plan, report)
                if report.conflict is not None:
                    raw.execute("ROLLBACK")
                    return report
        for sql in plan.remembered:
            raw.execute(sql)
        before = None if plan.watches is None else pragma(raw, plan.watches)
        changes = raw.total_changes
        report.stage = Stage.STATEMENT
        started = mark() if measures else None
        try:
            if plan.only_begins:
                report.outcome = Outcome()
            else:
                report.outcome = execute(raw, plan.statement, plan.opened)
        finally:
            report.spent = None if started is None else spent(started)
        if plan.logs and report.outcome.cursor is None:
            report.outcome.seen = digest(report.outcome)
        if plan.watches is not None:
            report.now = pragma(raw, plan.watches)
            report.was = before if before != report.now else None
    except Exception as error:
        report.error = error
        if report.stage is Stage.STATEMENT:
            report.changed = raw.total_changes != changes
        undo = report.stage is not Stage.STATEMENT or report.busy or report.refused
        if undo and not began_before:
            _roll_back(raw)
    if plan.commits and raw.in_transaction:
        _commit_rows(raw, report)
    report.in_transaction = raw.in_transaction
    return report


def run_witnessed(
    raw: sqlite3.Connection, plan: Plan, report: Report, measures: bool = True
) -> Report:
    """As :func:`run`, and tell the observers of the file what it has committed."""
    ran: Report = plan.witness.around(run, raw, plan, report, measures)
    return ran


def _commit_rows(raw: sqlite3.Connection, report: Report) -> None:
    """Commit an executemany; after an error, the rows before it. Roll back an interrupted one."""
    try:
        if report.code == SQLITE_INTERRUPT:
            _roll_back(raw)
        else:
            raw.execute("COMMIT")
    except sqlite3.Error as error:
        report.error, report.outcome, report.changed = error, None, False
        _roll_back(raw)


def _roll_back(raw: sqlite3.Connection) -> None:
    """Roll back, even if the time on the loop is over, which interrupts every statement."""
    if raw.in_transaction:
        raw.set_progress_handler(None, 0)
        raw.execute("ROLLBACK")


def data_version(raw: sqlite3.Connection) -> int:
    """``PRAGMA data_version``, independent of any row factory. Most transactions read it."""
    cursor = raw.cursor()
    cursor.row_factory = None
    version: int = cursor.execute("PRAGMA data_version").fetchone()[0]
    cursor.close()
    return version


def _find_conflict(raw: sqlite3.Connection, plan: Plan, report: Report) -> str | None:
    """Which read of the transaction has changed; None if none has. After BEGIN IMMEDIATE.

    ``PRAGMA data_version`` changes on a connection when another connection has committed
    (https://sqlite.org/pragma.html#pragma_data_version). If it is the same, no read is repeated.
    """
    if plan.version is not None and data_version(raw) == plan.version:
        return None
    if not plan.complete:
        return "it had read too much to compare, and another transaction has committed since"
    report.validated = True
    for entry in plan.entries:
        if not same_again(raw, entry):
            return f"{entry.sql!r} now returns a different result"
    return None


def execute(
    raw: sqlite3.Connection, statement: Statement, opened: list[sqlite3.Cursor] | None = None
) -> Outcome:
    """Run one statement and fetch all its rows, unless it is streamed.

    ``opened``: gets the cursor of a stream, so that it can be closed if no task takes it.

    The cursor is closed at once: an INSERT ... RETURNING that was not read to its end would keep
    its transaction and the lock even after ``close()`` of the connection.
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
        changed_rows = raw.total_changes != before
        if keep and opened is not None:
            opened.append(cursor)
        return Outcome(
            rows,
            description,
            cursor.rowcount,
            cursor.lastrowid,
            changed=changed_rows or description is None or (keep and _writes(raw, statement)),
            changed_rows=changed_rows,
            cursor=cursor if keep else None,
        )
    finally:
        if not keep:
            cursor.close()


def _writes(raw: sqlite3.Connection, statement: Statement) -> bool:
    """Whether a streamed textual statement writes. SQLite counts its rows only at the end.

    The answer is in its program (https://sqlite.org/opcode.html#Transaction), as EXPLAIN lists it.
    """
    if statement.kind is not Kind.UNKNOWN:
        return statement.kind is Kind.WRITE
    try:
        with plain_cursor(raw) as cursor:
            program = cursor.execute(explaining(statement.sql), statement.parameters)
            return any(opcode == "Transaction" and p2 for _, opcode, _, p2, *_ in program)
    except sqlite3.Error:
        return False  # the statement itself is an EXPLAIN


def digest(outcome: Outcome) -> Any:
    """A digest of the result, which can be compared with another one."""
    return rows_seen(outcome.rows), outcome.description


def fetch(
    raw: sqlite3.Connection, cursor: sqlite3.Cursor, size: int | None, seen: StreamDigest
) -> list[Any]:
    """Fetch the next rows of a stream, or all for ``size`` None, and add them to its digest."""
    rows = cursor.fetchall() if size is None else cursor.fetchmany(size)
    seen.add(rows)
    seen.ended = size is None or len(rows) < size
    return rows


def same_again(raw: sqlite3.Connection, entry: Entry) -> bool:
    """Whether a logged statement returns the same result now."""
    streamed = isinstance(entry.seen, StreamDigest)
    cursor = raw.cursor()
    try:
        cursor.execute(entry.sql, entry.parameters)
        if not streamed:
            rows = [] if cursor.description is None else cursor.fetchall()
            return bool((rows_seen(rows), cursor.description) == entry.seen)
        again = StreamDigest(cursor.description)
        if entry.seen.ended or entry.seen.count:
            fetch(raw, cursor, None if entry.seen.ended else entry.seen.count, again)
        return bool(again == entry.seen)
    except Exception as error:
        if sqlite_code(error) in (SQLITE_BUSY, SQLITE_INTERRUPT):  # it tells nothing of the rows
            raise
        return bool(error_seen(error) == entry.seen)
    finally:
        cursor.close()


class Ended(NamedTuple):
    """The result of a COMMIT."""

    error: Exception | None
    in_transaction: bool
    rest: list[list[Any]]
    """The rows of streams that were open."""
    took: float
    """The time of the COMMIT in seconds."""


def commit(raw: sqlite3.Connection, cursors: Sequence[sqlite3.Cursor] = ()) -> Ended:
    """Read open streams to their end, then commit."""
    rest = []
    for cursor in cursors:
        rest.append(cursor.fetchall())
        cursor.close()
    began, error = time.perf_counter(), None
    try:
        if raw.in_transaction:
            raw.execute("COMMIT")
    except Exception as raised:
        error = raised
    return Ended(error, raw.in_transaction, rest, time.perf_counter() - began)


def clean_up(raw: sqlite3.Connection, cursors: Sequence[sqlite3.Cursor] = ()) -> None:
    """Close cursors, then roll back."""
    close_cursors(raw, cursors)
    if raw.in_transaction:
        raw.execute("ROLLBACK")


def finish_reading(raw: sqlite3.Connection) -> None:
    """End a transaction that has only read. Active statements keep their snapshot."""
    if raw.in_transaction:
        raw.execute("COMMIT")
