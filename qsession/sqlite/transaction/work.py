"""Work: the state of one transaction, from its first statement to its end.

Each transaction has a new Work. A task that finds a different Work after a wait knows that another
task has ended its transaction.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from qsession.config import (
    Access,
    Settings,
    check_access,
    check_options,
    check_priority,
    check_reads,
)
from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.queue.hold_limit import HoldLimit
from qsession.sqlite.queue.prediction import Guess
from qsession.sqlite.transaction.decide import State
from qsession.sqlite.transaction.log import Log
from qsession.sqlite.transaction.statement import (
    Kind,
    Statement,
    Words,
    is_committed_by_sqlite3,
    savepoints_after,
)
from qsession.waiting.ticket import Ticket, TicketState

MOST_SENT = 1_000
"""How many different statements are kept for observers. After more, all tables count as changed."""

NOTHING_READ = Log()
"""The shared log of transactions that have not read; it stays empty."""


class Work:
    """The values of the class are those of a new transaction.

    Invariants: in state LOCKED there is a lease, SQLite has a transaction with the write lock on
    it, and the ticket is held and claimed. In state SNAPSHOT there is a lease. After the first
    write the log is empty.
    """

    state = State.IDLE
    failure: Exception | None = None
    """The error that every statement raises in state FAILED."""
    lease: Lease | None = None
    ticket: Ticket | None = None
    access: Access | None = None
    """Set by its first statement."""
    snapshot = False
    """Whether its reads share one snapshot in access ``auto``."""
    locks = False
    """Whether its first statement takes the write lock, as FOR UPDATE does."""
    priority = 0
    by_hand = False
    """Whether the application has sent BEGIN."""
    stays = False
    """Whether it keeps its connection while it waits for the ticket."""
    turned: frozenset[str] = frozenset()
    """PRAGMAs that were set in it, and after a BEGIN of the application if there is one."""
    wrote = False
    sent: dict[str, Any] | None = None
    """The statements that may have written, each with parameters, if the file is observed. None if
    they are not known from the first one on.
    """
    not_kept: str | None = None
    """The first statement that ``sqlite3`` would have committed, for the warning if it is lost."""
    log: Log = NOTHING_READ
    version: int | None = None
    """``PRAGMA data_version`` of the connection before the first read; None if unknown."""
    savepoints: tuple[str, ...] = ()
    """Open savepoints, outermost first; only before the first write, and under AUTOCOMMIT."""
    deferred: tuple[str, ...] = ()
    """Statements that hold until the next COMMIT, to send after BEGIN IMMEDIATE."""
    site: int | None = None
    """Its call site, if the prediction uses it."""
    guess = Guess.READS
    undone = False
    """Whether ROLLBACK was sent. A statement that still waits must not be sent after it."""
    idled = False
    """Whether it has idled between reading and writing."""
    stalled = False
    """Whether its ticket was taken away because it idled."""
    place: int | None = None
    """Where its task waited when its ticket was taken away because it idled."""
    last_read: float | None = None
    """When it read last, by :func:`time.monotonic`."""
    snapshot_began: float | None = None
    """When its snapshot began, by the same clock; in state SNAPSHOT."""
    limit: HoldLimit | None = None
    """What ends it after ``max_hold``."""

    def __repr__(self) -> str:
        return f"<Work {self.state.name} wrote={self.wrote} log={len(self.log.entries)}>"

    def take_options(self, options: Mapping[str, Any], settings: Settings) -> None:
        """Take the options of the first statement, or those of the engine."""
        access, reads = settings.access, settings.reads
        if options:
            check_options(tuple(options))
        if "qsession_access" in options:
            access = check_access("qsession_access", options["qsession_access"])
        if "qsession_reads" in options:
            reads = check_reads("qsession_reads", options["qsession_reads"])
        if "qsession_priority" in options:
            self.priority = check_priority("qsession_priority", options["qsession_priority"])
        if reads == "snapshot":
            self.snapshot = True
        if options.get("qsession_locks"):
            self.locks = True
        self.access = access

    def begin_snapshot(self) -> None:
        """BEGIN and a statement were sent: from now on it reads from one snapshot."""
        self.state = State.SNAPSHOT
        self.snapshot_began = self.last_read = time.monotonic()

    def note(self, sql: str, parameters: Any) -> None:
        """Note a statement that may write, for those who observe the file."""
        if self.sent is not None and len(self.sent) >= MOST_SENT:
            self.sent = None
        if self.sent is None:
            if self.state is State.LOCKED:
                return  # it has written before anybody observed, or more than is kept
            self.sent = {}
        self.sent[sql] = parameters

    def lock(self) -> None:
        """Note that it has SQLite's write lock: from now on its reads cannot change."""
        assert self.ticket is not None
        assert self.ticket.claimed
        self.state, self.log, self.version = State.LOCKED, NOTHING_READ, None

    def remember(self, sql: str, words: Words) -> None:
        """Remember a statement for the first write. Before that there is nothing to undo."""
        if words.kind is Kind.DEFER:
            self.deferred = (*self.deferred, sql)
        else:
            self.savepoints = savepoints_after(self.savepoints, words)

    def log_read(self, statement: Statement, seen: Any) -> None:
        """Log what a statement has read."""
        if self.log is NOTHING_READ:
            self.log = Log()
        self.log.append(statement, seen)
        self.last_read = time.monotonic()

    def note_write(self, statement: Statement, changed_rows: bool, in_file: bool) -> None:
        """Note that a statement has written. ``in_file``: False for DDL that was not needed."""
        self.wrote = True
        if self.not_kept is None and in_file and is_committed_by_sqlite3(statement, changed_rows):
            self.not_kept = statement.sql

    def unlimit(self) -> None:
        """Forget ``max_hold``, because it no longer has its ticket."""
        if self.limit is not None:
            self.limit.timer.cancel()
            self.limit = None

    @property
    def holds(self) -> bool:
        """Whether it has the ticket."""
        return self.ticket is not None and self.ticket.state is TicketState.HELD

    @property
    def snapshot_since(self) -> float | None:
        """Since when it has had a snapshot, its own or that of an open stream."""
        if self.state is State.SNAPSHOT:
            return self.snapshot_began
        return self.last_read if self.lease is not None and self.lease.streams else None

    @property
    def is_open(self) -> bool:
        """Whether a statement was sent and the transaction has not ended."""
        return self.state not in (State.IDLE, State.FAILED)

    @property
    def is_begun(self) -> bool:
        """Whether the application has begun something, even if nothing was sent for it yet."""
        return self.by_hand or bool(self.savepoints or self.deferred)

    @property
    def in_transaction(self) -> bool:
        """Whether SQLite has a transaction for it."""
        return self.state is State.LOCKED or self.state is State.SNAPSHOT
