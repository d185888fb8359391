"""Place: what a transaction has, and how it loses it: reader or writer, log, ticket.

A transaction is a log. Attached to a reader it has a snapshot; attached to the writer it holds the
ticket; detached it is nothing but its log, and the next statement attaches it again by replay.
"""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any

from qsession.config import Access
from qsession.errors import ConflictError, HoldTimeout, QSessionError, QueueTimeout
from qsession.sqlite.busy import Busy
from qsession.sqlite.group import Read
from qsession.sqlite.lease import Lease, ReaderLease, WriterLease
from qsession.sqlite.log import Log
from qsession.sqlite.pace import Turn, turns
from qsession.sqlite.processes.owners import lock_owner
from qsession.sqlite.queue.holder import describe
from qsession.waiting.ticket import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsession.sqlite.connection import RoutedConnection
    from qsession.sqlite.own import OwnConnection
    from qsession.sqlite.pool import WriteQueuePool

BUSY_RETRY = 0.005
"""Seconds between two looks at a lock that a process without qsession holds."""

held_here: ContextVar[weakref.ref[Place] | None] = ContextVar("held_here", default=None)
"""The last transaction that took the ticket in this task, or in the one that started it."""


class State(Enum):
    """The life of a transaction; it begins again at IDLE after every end."""

    IDLE = "idle"  # nothing was sent
    READING = "reading"  # has a snapshot on a reader
    HOLDING = "holding"  # has the ticket, and the writer
    SUSPENDED = "suspended"  # only its log is left; the next statement replays it
    FAILED = "failed"  # gone; every statement repeats why until it is rolled back


class Place(Busy):
    """One transaction's place: a reader, the writer, or none.

    Invariants: HOLDING means that the lease is the writer's and its ticket is held. READING means
    that the lease is a reader's. In every other state there is no lease.
    """

    __slots__ = (
        "__weakref__", "_access", "_asked", "_by_hand", "_limit", "_pool", "_savepoints",
        "_snapshot", "_task", "autocommit", "began", "connection", "ends", "failure", "first",
        "last_statement", "lease", "log", "loop", "may_read_instead", "own", "pinned",
        "priority", "reading_since", "settings", "site", "state", "turn", "unsure", "writer",
        "wrote",
    )  # fmt: skip

    def __init__(
        self, pool: WriteQueuePool, connection: Callable[[], RoutedConnection | None]
    ) -> None:
        super().__init__()
        self._pool = pool
        self.connection = connection
        """The connection it belongs to; a weak reference, so that one forgotten can be noticed."""
        self.writer = pool.writer
        self.settings = pool.settings
        self.autocommit = False
        self.own: OwnConnection | None = None
        """Where what it has set lies, once it has: a PRAGMA, a temporary table, an ATTACH."""
        self._task: weakref.ref[asyncio.Task[Any]] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.turn: Turn | None = None
        """The turns of :attr:`loop`."""
        self.last_statement = ""
        self.may_read_instead = False
        """Whether a snapshot would do for the statement that waits."""
        self.reading_since = 0.0
        """When its snapshot was taken, by :func:`time.monotonic`."""
        self._asked: Ticket | None = None
        self.ends = 0
        """How often it has ended: who waited meanwhile finds another transaction."""
        self._reset()

    def _reset(self) -> None:
        self.ends += 1
        self.state = State.IDLE
        self.log = Log()
        self.lease: Lease | None = None
        self.began = False
        self.wrote = False
        self.pinned = False
        self.unsure: Read | None = None
        """What it has read in a group that it left, and what may never become durable."""
        self.failure: Exception | None = None
        self.first: str | None = None
        self.site: int | None = None
        """Where in the application it began, if :attr:`first` is known to have begun readers."""
        self._access: Access | None = None
        self._by_hand = False
        """Begun by a BEGIN of the application, or by its use of the driver's connection."""
        self._savepoints: list[str] = []
        """Those that are open, where the outermost one began the transaction."""
        self.priority = 0
        self._snapshot: ReaderLease | None = None
        self._limit: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Transaction {self.state.value} wrote={self.wrote} log={len(self.log.entries)}>"

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that used it last; it may be dropped, and its session with it."""
        return None if self._task is None else self._task()

    def used_here(self) -> None:
        """Remember the task and the loop that use it."""
        task = asyncio.current_task()
        self._task = None if task is None else weakref.ref(task)
        self.loop = loop = asyncio.get_running_loop()
        if self.turn is None or self.turn.loop is not loop:
            self.turn = turns.of(loop)

    def _ended_elsewhere(self) -> Exception:
        """What is raised for a statement that waited while its transaction was ended."""
        if self.failure is not None:
            return self.failure
        return QSessionError(
            f"The transaction was ended elsewhere before {self.last_statement!r} could run."
        )

    def _become_log(self) -> None:
        self.began = False
        self.state = State.SUSPENDED if self.log.entries else State.IDLE

    def let_go(self, wait: bool) -> None:
        """Close the connection that it has kept: nobody will use it any more."""
        own, self.own = self.own, None
        if own is not None:
            own.close(wait)

    def leave_group(self) -> None:
        """Let the group be committed without this transaction; its log will be replayed."""
        lease = self.lease
        assert isinstance(lease, WriterLease)
        lease.joined_at = None
        self.began = False
        if self.writer.group is not None:
            self.unsure = self.writer.group.read()
        self.writer.close_group(leaving=True)

    def lock_timeout(self, sql: str) -> QueueTimeout:
        self.writer.counters.timeouts += 1
        path = self.lease.driver.path if self.lease is not None else self._pool.database
        return QueueTimeout(
            f"Another process held a lock on {self._pool.database!r} for longer than "
            f"queue_timeout={self.settings.queue_timeout:g} s; {sql!r} was not run. "
            f"The lock is held by {lock_owner(path)}."
        )

    def conflict(self, reason: str, only_read: bool = False) -> ConflictError:
        """End in a conflict; the error to raise. ``only_read``: it has not even tried to write."""
        self.writer.counters.conflicts += 1
        if self.first is not None:  # on a snapshot, one that only reads would have gone on
            self.writer.prediction.note(self.first, not only_read, self.site)
        conflict = ConflictError(
            f"What this transaction had read was changed by another one before it wrote: {reason}. "
            "Nothing of it was written. Roll back and run it again (qsession.run does). Or take the"
            " write ticket before reading: with_for_update(), qsession(), access='write'; if it "
            "only reads, take a snapshot: qsession.reader(), qsession_access='read'."
        )
        self.abandon(conflict)
        return conflict

    def abandon(self, failure: Exception | None = None) -> None:
        """Undo it without waiting, from anywhere; with ``failure``, every statement repeats it."""
        left = (self.lease, self._snapshot)
        self._stop_limit()
        self._reset()
        for lease in left:
            if lease is not None:
                lease.abandon(busy=bool(self.busy))
        self._pool.admission.leave(self)
        if failure is not None:
            self.failure, self.state = failure, State.FAILED

    def may_stop_waiting(self, elsewhere: bool) -> bool:
        """Whether it may go on with a snapshot behind a holder that idles.

        ``elsewhere``: the holder is another process, which may as well be slow. Access ``write``
        promises that no conflict comes of that.
        """
        return self.may_read_instead and not (elsewhere and self._access == "write")

    # Giving up the ticket.

    def suspendable(self) -> bool:
        """Whether it can lose the ticket unnoticed: it has only read, and can read it again."""
        return (
            self.state is State.HOLDING
            and not (self.busy or self.wrote or self.pinned)
            and self.log.complete
            and self.lease is not None
            and not self.lease.streams
        )

    def suspend(self, heir: Ticket | None = None) -> None:
        """Give the ticket to ``heir``, or to the next in the queue; only the log is left."""
        lease, self.lease = self.lease, None
        assert isinstance(lease, WriterLease)
        if lease.joined_at is not None and self.writer.group is not None:
            self.unsure = self.writer.group.read()
        self._stop_limit()
        self._become_log()
        self.writer.counters.suspensions += 1
        lease.suspend(heir)

    def suspend_if_idle(self, activity: int) -> None:
        """Suspend it unless it has done something since it was seen to be idle."""
        if self.activity == activity and self.suspendable():
            self.suspend()

    @property
    def forsaken(self) -> bool:
        """Whether the loop that used it last is closed: its task will never go on."""
        return self.loop is not None and self.loop.is_closed()

    def forsake(self, ticket: Ticket) -> None:
        """Pass on the ticket of a transaction that is :attr:`forsaken`."""
        if self._asked is ticket:  # handed over, but the loop was closed before it could be taken
            self._asked = None
            self.writer.turn.done(ticket)
            self.writer.queue.release(ticket)
        elif isinstance(self.lease, WriterLease):
            self.abandon(
                QSessionError(
                    "The transaction held the write ticket while others waited, and its event loop "
                    "was closed; it was rolled back. Nothing of it was written."
                )
            )

    def _limit_hold(self) -> None:
        if self.settings.max_hold is not None:
            loop = asyncio.get_running_loop()
            self._limit = loop.call_later(self.settings.max_hold, self._expire_hold)

    def _stop_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()

    def _expire_hold(self) -> None:
        """Roll back a transaction that held the ticket for too long, once it is idle."""
        if self.busy:
            self._limit = asyncio.get_running_loop().call_later(BUSY_RETRY, self._expire_hold)
            return
        assert isinstance(self.lease, WriterLease)
        holder = describe(self.lease.ticket)
        self.abandon(
            HoldTimeout(
                f"The transaction held the write ticket longer than max_hold="
                f"{self.settings.max_hold:g} s and was rolled back; its last statement was "
                f"{self.last_statement!r}. Nothing of it was written. When its time was over, "
                f"{holder.task} stood at {holder.where}.{holder.traceback}"
            )
        )


def stand_in(pool: WriteQueuePool, doing: str) -> Place:
    """Whom messages name while the engine itself holds the ticket."""
    owner = Place(pool, lambda: None)
    owner.busy = 1
    owner.last_statement = doing
    return owner
