"""Plan: what one statement does on a connection, in one hop to its thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qsession.sqlite.driver.pace import BUDGET, LONG_WRITE
from qsession.sqlite.queue.prediction import Guess
from qsession.sqlite.transaction.decide import Action, Begin, State
from qsession.sqlite.transaction.log import Entry
from qsession.sqlite.transaction.statement import Kind, Statement
from qsession.sqlite.transaction.work import Work


class Plan:
    """What is to be done on a connection, in this order. Most plans are as the class says."""

    query_only: bool | None = None
    """Sets ``PRAGMA query_only``; None where it is as it should be."""
    ends_reading: bool = False
    asks_version: bool = False
    begin: str | None = None
    validates: bool = False
    version: int | None = None
    """``PRAGMA data_version`` of this connection before the first read; None if unknown."""
    entries: Sequence[Entry] = ()
    complete: bool = True
    remembered: Sequence[str] = ()
    """Savepoints and the like that were not sent before."""
    commits: bool = False
    """Whether a COMMIT follows, also behind an error: the rows before it stay."""
    only_begins: bool = False
    """Whether nothing more is sent."""
    reads: bool = False
    """Whether it cannot write."""
    logs: bool = False
    """Whether what comes back is digested, to be compared later. In the thread: it may be much."""
    in_transaction: bool = False
    """Whether SQLite has a transaction already that is to go on."""
    budget: float | None = None
    """Seconds that it may take on the loop; None for as long as it likes.

    SQLite rolls back the whole transaction with a write that is broken off
    (https://sqlite.org/c3ref/interrupt.html), so none is but the first one.
    """
    watches: str | None = None
    """A PRAGMA whose value is looked at before and after."""

    def __init__(self, statement: Statement, **given: Any) -> None:
        self.statement = statement
        if given:
            vars(self).update(given)

    @property
    def reads_all_again(self) -> bool:
        """Whether it is certain to read everything again that was read."""
        return self.validates and self.version is None


def plan_of(
    work: Work,
    action: Action,
    statement: Statement,
    upgrades: bool,
    alone: bool,
    lent: bool = False,
) -> Plan:
    """What is sent for an action. ``upgrades``: SQLite is to upgrade the read transaction itself.

    ``alone``: the statement is its own transaction. ``lent``: the application has the driver's
    connection.
    """
    plan, begin, log, words = Plan(statement), action.begin, work.log, statement.words
    if begin is Begin.WRITE:
        plan.remembered = work.remembered
        plan.only_begins = action.only_begins
        if not upgrades:
            plan.begin = "BEGIN IMMEDIATE"
            plan.ends_reading = work.state is State.SNAPSHOT
    elif begin is Begin.SNAPSHOT:
        plan.begin = "BEGIN"
    elif begin is Begin.END:
        plan.ends_reading = True
    if plan.begin is not None and not log.is_empty:
        plan.validates = True
        plan.version, plan.entries, plan.complete = work.version, log.entries, log.complete
    elif action.logs and log.is_empty:
        plan.asks_version = work.guess is not Guess.READS
    if statement.kind is Kind.SET and words is not None and words.value is not None:
        plan.watches = words.name
    if alone and (statement.many or lent) and statement.kind is Kind.WRITE:
        # Each row of an executemany is a transaction of its own to the application. One lock for
        # all of them: a row that met another program's could not be told from those before it.
        # On a connection that is lent, the driver begins a transaction that nobody would commit.
        plan.begin, plan.commits = "BEGIN IMMEDIATE", True
    plan.in_transaction = work.state is State.LOCKED
    plan.logs = action.logs
    plan.reads = statement.kind in (Kind.READ, Kind.UNKNOWN) and not plan.in_transaction
    if plan.reads:
        plan.budget = BUDGET
    elif plan.begin is not None or (alone and not statement.many):
        plan.budget = LONG_WRITE
    return plan
