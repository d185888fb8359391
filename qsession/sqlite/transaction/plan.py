"""Plan: all that one statement does on a connection, in one hop to its thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.driver.pace import BUDGET, LONG_WRITE
from qsession.sqlite.queue.prediction import Guess
from qsession.sqlite.transaction.decide import Action, Begin, State
from qsession.sqlite.transaction.kept import Kept
from qsession.sqlite.transaction.log import Entry
from qsession.sqlite.transaction.statement import (
    Kind,
    Statement,
    may_change_schema,
    sent_after_begin,
)
from qsession.sqlite.transaction.work import NOTHING_READ, Work


class Plan:
    """The steps on a connection, in this order. The values of the class are the defaults."""

    query_only: bool | None = None
    """The value to set for ``PRAGMA query_only``; None to leave it."""
    ends_reading: bool = False
    asks_version: bool = False
    begin: str | None = None
    validates: bool = False
    version: int | None = None
    """``PRAGMA data_version`` of this connection before the first read; None if unknown."""
    entries: Sequence[Entry] = ()
    complete: bool = True
    remembered: Sequence[str] = ()
    """Savepoints and other statements that were not sent before."""
    commits: bool = False
    """Whether a COMMIT follows, even after an error: the rows before the error stay."""
    only_begins: bool = False
    """Whether nothing is sent after this."""
    reads: bool = False
    """Whether it cannot write."""
    logs: bool = False
    """Whether the result is digested, to be compared later. In the thread: it may be large."""
    in_transaction: bool = False
    """Whether SQLite already has a transaction, which continues."""
    budget: float | None = None
    """The largest time on the loop in seconds; None for no limit.

    Only the first write of a transaction has a budget: if a write is interrupted, SQLite rolls back
    the whole transaction (https://sqlite.org/c3ref/interrupt.html).
    """
    witness: Any = None
    """What tells the observers of the file, if the statement is a transaction of its own."""
    opened: list[sqlite3.Cursor] | None = None
    """Where the cursor of a stream is kept until its task has received it."""
    watches: str | None = None
    """A PRAGMA whose value is read before and after."""

    def __init__(self, statement: Statement, **given: Any) -> None:
        self.statement = statement
        if given:
            vars(self).update(given)


def plan_of(
    work: Work, kept: Kept, lease: Lease, action: Action, statement: Statement, upgrades: bool
) -> Plan:
    """The plan for an action. ``upgrades``: SQLite itself upgrades the read transaction."""
    plan, begin, log, words = Plan(statement), action.begin, work.log, statement.words
    alone, driver = statement.alone, lease.driver
    if begin is Begin.WRITE:
        if work.deferred or work.savepoints:
            plan.remembered = sent_after_begin(work.deferred, work.savepoints)
        plan.only_begins = action.only_begins
        if not upgrades:
            plan.begin = "BEGIN IMMEDIATE"
            plan.ends_reading = work.state is State.SNAPSHOT
    elif begin is Begin.SNAPSHOT:
        plan.begin = "BEGIN"
    elif begin is Begin.END:
        plan.ends_reading = True
    if log is NOTHING_READ or log.is_empty:
        plan.asks_version = action.logs and work.guess is not Guess.READS
    elif plan.begin is not None:
        plan.validates = True
        plan.version, plan.entries, plan.complete = work.version, log.entries, log.complete
    if statement.kind is Kind.SET and words is not None and words.value is not None:
        plan.watches = words.name
    if driver.has_attached:  # PRAGMA data_version covers the main file only
        plan.asks_version, plan.version = False, None
    elif may_change_schema(words) and not alone:
        plan.watches = "schema_version"
    if words is not None and words.name == "query_only":  # the application sets or reads it
        plan.query_only = None if driver.query_only is False else False
    elif action.query_only is not None and action.query_only is not driver.query_only:
        stays = driver.only_reads or kept.sets("query_only")  # as it was set
        plan.query_only = None if stays else action.query_only
    if statement.stream is not None:
        plan.opened = lease.opened
    if alone and (statement.many or kept.lent) and statement.kind is Kind.WRITE:
        # To the application, each row of an executemany is a separate transaction. All rows use one
        # lock: if a row met another program's lock, the rows before it could not be told apart.
        # On a lent connection, the driver would begin a transaction that is never committed.
        plan.begin, plan.commits = "BEGIN IMMEDIATE", True
    plan.in_transaction = work.state is State.LOCKED
    plan.logs = action.logs
    plan.reads = statement.kind in (Kind.READ, Kind.UNKNOWN) and not plan.in_transaction
    if plan.reads:
        plan.budget = BUDGET
    elif plan.begin is not None or (alone and not statement.many):
        plan.budget = LONG_WRITE
    return plan
