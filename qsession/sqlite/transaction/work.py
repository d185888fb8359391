"""Work: one transaction from its first statement to its end, and what it has by then.

A new one begins where the last one has ended. A task that waited, and finds another one than before
it waited, knows that its transaction was ended elsewhere.
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
    """The values of the class are how a transaction begins.

    Invariants: LOCKED means that there is a lease, that SQLite has a transaction with the write
    lock there, and that the ticket is held and claimed. SNAPSHOT means that there is a lease.
    The log is empty once something was written.
    """

    state = State.IDLE
    failure: Exception | None = None
    """What every statement repeats in state FAILED."""
    lease: Lease | None = None
    ticket: Ticket | None = None
    access: Access | None = None
    """None until its first statement has said so."""
    snapshot = False
    """Whether its reads share one snapshot, in access ``auto``."""
    locks = False
    """Whether its first statement takes the write lock, as FOR UPDATE does."""
    priority = 0
    by_hand = False
    """Whether the application has sent BEGIN."""
    stays = False
    """Whether it waits for the ticket with its connection in hand."""
    wrote = False
    defined: str | None = None
    """The first DDL statement, of which its user is told if it comes to nothing."""
    log: Log
    version: int | None = None
    """``PRAGMA data_version`` of the connection before the first read; None if unknown."""
    savepoints: tuple[str, ...] = ()
    """Those that are open, outermost first; before the first write, and under AUTOCOMMIT."""
    remembered: tuple[str, ...] = ()
    """What is sent behind BEGIN IMMEDIATE."""
    site: int | None = None
    """Where in the application it began, if that is of interest."""
    guess = Guess.READS
    idled = False
    """Whether it has idled between reading and writing."""
    stalled = False
    """Whether its ticket was taken away because it idled."""
    place: int | None = None
    """Where its task stood when its ticket was taken away because it idled."""
    last_read: float | None = None
    """When it read last, by :func:`time.monotonic`."""
    snapshot_began: float | None = None
    """When its snapshot began, in the same way; in state SNAPSHOT."""
    limit: asyncio.TimerHandle | None = None
    """Ends it after ``max_hold``."""

    def __init__(self) -> None:
        self.log = NOTHING_READ

    def __repr__(self) -> str:
        return f"<Work {self.state.name} wrote={self.wrote} log={len(self.log.entries)}>"

    def begin_snapshot(self) -> None:
        """BEGIN was sent, and a statement behind it: it reads from one snapshot from here on."""
        self.state = State.SNAPSHOT
        self.snapshot_began = self.last_read = time.monotonic()

    def unlimit(self) -> None:
        """It is not ended after ``max_hold``: it has given up its ticket."""
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None

    @property
    def holds(self) -> bool:
        """Whether it has the ticket."""
        return self.ticket is not None and self.ticket.held

    @property
    def is_open(self) -> bool:
        """Whether something was sent that has not ended."""
        return self.state not in (State.IDLE, State.FAILED)

    @property
    def in_transaction(self) -> bool:
        """Whether SQLite has a transaction for it."""
        return self.state is State.LOCKED or self.state is State.SNAPSHOT


NOTHING_READ = Log()
"""The log of every transaction that has not read; it stays empty."""
