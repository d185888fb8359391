"""Work: the state of one transaction, from its first statement to its end.

Each transaction has a new Work. A task that finds a different Work after a wait knows that another
task has ended its transaction.
"""

from __future__ import annotations

import asyncio
import time

from qsession.config import Access
from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.queue.prediction import Guess
from qsession.sqlite.transaction.decide import State
from qsession.sqlite.transaction.log import Log
from qsession.waiting.ticket import Ticket


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
    wrote = False
    defined: str | None = None
    """The first DDL statement, for the warning if it is lost."""
    log: Log
    version: int | None = None
    """``PRAGMA data_version`` of the connection before the first read; None if unknown."""
    savepoints: tuple[str, ...] = ()
    """Open savepoints, outermost first; only before the first write, and under AUTOCOMMIT."""
    remembered: tuple[str, ...] = ()
    """Statements to send after BEGIN IMMEDIATE."""
    site: int | None = None
    """Its call site, if the prediction uses it."""
    guess = Guess.READS
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
    limit: asyncio.TimerHandle | None = None
    """The timer that ends it after ``max_hold``."""

    def __init__(self) -> None:
        self.log = NOTHING_READ

    def __repr__(self) -> str:
        return f"<Work {self.state.name} wrote={self.wrote} log={len(self.log.entries)}>"

    def begin_snapshot(self) -> None:
        """BEGIN and a statement were sent: from now on it reads from one snapshot."""
        self.state = State.SNAPSHOT
        self.snapshot_began = self.last_read = time.monotonic()

    def unlimit(self) -> None:
        """Cancel the timer for ``max_hold``, because it has given up its ticket."""
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None

    @property
    def holds(self) -> bool:
        """Whether it has the ticket."""
        return self.ticket is not None and self.ticket.held

    @property
    def is_open(self) -> bool:
        """Whether a statement was sent and the transaction has not ended."""
        return self.state not in (State.IDLE, State.FAILED)

    @property
    def in_transaction(self) -> bool:
        """Whether SQLite has a transaction for it."""
        return self.state is State.LOCKED or self.state is State.SNAPSHOT


NOTHING_READ = Log()
"""The shared log of transactions that have not read; it stays empty."""
