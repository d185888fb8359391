"""Attachment: where a transaction is attached, and how it moves between connections.

A transaction is a log. Attached to a reader it has a snapshot; attached to the writer it holds the
ticket; detached it is nothing but its log, and the next statement attaches it again by replay.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Generator
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from ..errors import (
    SQLITE_INTERRUPT,
    ConflictError,
    HoldTimeout,
    QSessionError,
    QueueTimeout,
    sqlite_code,
)
from ..ticket import Ticket
from . import lease as work
from .driver import DriverConnection
from .group import JOIN
from .lease import Lease, ReaderLease, WriterLease
from .log import Entry, Log, Report, Statement, close_unclaimed, run
from .need import Need
from .pace import BUDGET, turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import RoutedConnection
    from .pool import WriteQueuePool

BUSY_RETRY = 0.005
"""Seconds between two looks at a lock that a process without qsession holds."""

held_here: ContextVar[weakref.ref[Attachment] | None] = ContextVar("held_here", default=None)
"""The last transaction that took the ticket in this task, or in the one that started it."""


class State(Enum):
    """The life of a transaction; it begins again at IDLE after every end."""

    IDLE = "idle"  # nothing was sent
    READING = "reading"  # has a snapshot on a reader
    HOLDING = "holding"  # has the ticket, and the writer
    SUSPENDED = "suspended"  # only its log is left; the next statement replays it
    FAILED = "failed"  # gone; every statement repeats why until it is rolled back


class Attachment:
    """One transaction's place: a reader, the writer, or none.

    Invariants: HOLDING means that the lease is the writer's and its ticket is held. READING means
    that the lease is a reader's. In every other state there is no lease.
    """

    def __init__(
        self, pool: WriteQueuePool, connection: Callable[[], RoutedConnection | None]
    ) -> None:
        self._pool = pool
        self.connection = connection
        """The connection it belongs to; a weak reference, so that one forgotten can be noticed."""
        self.writer = pool.writer
        self.settings = pool.settings
        self._task: weakref.ref[asyncio.Task[Any]] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.busy = 0
        self.activity = 0
        self.last_statement = ""
        self.may_read_instead = False
        self._asked: Ticket | None = None
        self._reset()

    def _reset(self) -> None:
        self.state = State.IDLE
        self.log = Log()
        self.lease: Lease | None = None
        self.began = False
        self.wrote = False
        self.pinned = False
        self.failure: Exception | None = None
        self.first: str | None = None
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
        self.loop = asyncio.get_running_loop()

    def attach_reader(self) -> None:
        """Get a reader; waits for one as SQLAlchemy's pool does."""
        if self.lease is None:
            self.lease = self._pool.reader()
            self.state = State.READING

    def attach_writer(self, statement: Statement) -> None:
        """Take the ticket; or a snapshot, for a SELECT that waits behind a stalled holder."""
        if self.state is State.HOLDING:
            return
        if isinstance(self.lease, ReaderLease):
            if self.log.complete:
                self.detach_reader()  # who waits holds no reader; the replay will find out
            else:
                self._snapshot = self.lease
        self.may_read_instead = self.lease is None and statement.need.may_only_read
        ticket = self._asked = Ticket(self, self.priority)
        try:
            held = self.writer.ask(self, ticket, statement.nowait)
        finally:
            self.may_read_instead = False
            self._asked = None
        if not held:
            self.attach_reader()
            return
        try:
            lease = self.writer.lease(ticket, self.connection())
        except BaseException:
            self.writer.queue.release(ticket)
            raise
        self.lease, self.state, self.began = lease, State.HOLDING, False
        self.wrote = self.wrote or statement.need is Need.WRITE
        held_here.set(weakref.ref(self))
        self._limit_hold()
        if self._snapshot is not None:
            try:
                self._check_snapshot()
            except Exception as error:
                self.abandon(error)  # what it had read can no longer be vouched for
                raise

    def _check_snapshot(self) -> None:
        """A transaction without a log goes on if nothing was committed since its snapshot."""
        assert self._snapshot is not None
        snapshot, self._snapshot = self._snapshot, None
        try:
            report = self.run(Statement("SELECT 1", need=Need.READ))
            if report.error is not None:
                raise report.error
            inside, after = snapshot.driver.run(work.data_version)
        finally:
            snapshot.end()
        if inside != after:
            raise self.conflict(
                f"its log had grown past the limits, so it could not be replayed, and something "
                f"was committed since it began with {self.first!r}"
            )

    def detach_reader(self) -> None:
        """Give the reader back; the log stays, to be replayed."""
        lease, self.lease = self.lease, None
        assert isinstance(lease, ReaderLease)
        lease.end()
        self._become_log()

    def detach_writer(self) -> None:
        """Give the ticket back before anything was begun."""
        lease, self.lease = self.lease, None
        assert isinstance(lease, WriterLease)
        lease.abandon(busy=False)
        self._stop_limit()
        self._become_log()

    def _become_log(self) -> None:
        self.began = False
        self.state = State.SUSPENDED if self.log.entries else State.IDLE

    def run(self, statement: Statement, begins: bool = True) -> Report:
        """Run a statement where the transaction is attached, behind BEGIN and replay if need be.

        A lock that a process without qsession holds is waited for. Raises :class:`QueueTimeout`.
        """
        lease = self.lease
        assert lease is not None
        assert not isinstance(lease, WriterLease) or self.writer.queue.holder is lease.ticket
        if not self.began:
            self._pool.check_file(lease.driver)
        here = self._is_short(statement)
        deadline = time.monotonic() + self.settings.queue_timeout
        while True:
            here = here and lease.driver.quiet and not (begins and self._has_to_replay())
            report = self._send(lease, statement, begins, here)
            if here and _broken_off(report):
                here = False  # it was over its budget: once more, in the thread
                continue
            if not report.busy:
                return report
            if time.monotonic() >= deadline:
                raise self.lock_timeout(statement.sql)
            await_only(asyncio.sleep(BUSY_RETRY))

    def _is_short(self, statement: Statement) -> bool:
        """Whether a statement is known to be short enough for the loop."""
        if statement.many or statement.stream is not None:
            return False
        return statement.need is Need.SAVEPOINT or self._pool.pace.inline(
            statement.sql, self._only_reads(statement)
        )

    def _only_reads(self, statement: Statement) -> bool:
        return self.state is State.READING or statement.need is Need.READ

    def _has_to_replay(self) -> bool:
        return not self.began and bool(self.log.entries)

    def _send(self, lease: Lease, statement: Statement, begins: bool, here: bool) -> Report:
        """One attempt: on the loop if ``here``, else in the thread."""
        if here:
            assert self.loop is not None
            pause: Awaitable[None] = asyncio.sleep(0) if turn.over(self.loop) else READY
            await_only(pause)
        if isinstance(lease, WriterLease) and self.writer.group is not None:
            self._meet_group(lease, begins and here)
        begin = None
        if begins and not self.began:
            begin = JOIN if self.writer.group is not None and self.holds() else lease.begin
        entries = self.log.entries if begin else []
        if here:
            budget = BUDGET if self._only_reads(statement) else None
            report = lease.driver.run_here(run, begin, entries, statement, budget=budget)
            assert self.loop is not None
            turn.charge(self.loop, report.seconds)
        else:
            report = self._run_in_thread(lease, begin, entries, statement)
        self._pool.pace.note(statement.sql, report.seconds)
        if begin is not None and report.in_transaction and report.diverged is None:
            self.began = True
            self.writer.counters.replays += bool(entries)
            if begin is JOIN and isinstance(lease, WriterLease):
                lease.joined_at = time.monotonic()
        return report

    def _run_in_thread(
        self, lease: Lease, begin: str | None, entries: list[Entry], statement: Statement
    ) -> Report:
        try:
            report = lease.driver.run(run, begin, entries, statement)
        except BaseException:
            if statement.stream is not None:
                lease.driver.post(close_unclaimed, statement)  # before it is rolled back
            raise
        statement.unclaimed = None
        return report

    def holds(self) -> bool:
        return self.state is State.HOLDING

    def _meet_group(self, lease: WriterLease, joins: bool) -> None:
        """A group waits for its COMMIT: join it with short statements only, else send it off."""
        if joins:
            return
        if lease.joined_at is None:
            self.writer.close_group()
        else:
            self.leave_group()

    def leave_group(self) -> None:
        """Let the group be committed without this transaction; its log will be replayed."""
        lease = self.lease
        assert isinstance(lease, WriterLease)
        lease.joined_at = None
        self.began = False
        self.writer.close_group(leaving=True)

    def lock_timeout(self, sql: str) -> QueueTimeout:
        self.writer.counters.timeouts += 1
        return QueueTimeout(
            f"Another process held a lock on {self._pool.database!r} for longer than "
            f"queue_timeout={self.settings.queue_timeout:g} s; {sql!r} was not run."
        )

    def conflict(self, reason: str) -> ConflictError:
        """End in a conflict; the error to raise."""
        self.writer.counters.conflicts += 1
        if self.first is not None:
            self.writer.prediction.note(self.first, wrote=True)
        conflict = ConflictError(
            f"What this transaction had read was changed by another one before it wrote: {reason}. "
            "Nothing of it was written. Roll back and run it again (qsession.run does), or take "
            "the write ticket before reading: with_for_update(), qsession(), access='write'."
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
        if failure is not None:
            self.failure, self.state = failure, State.FAILED

    # Giving up the ticket.

    def is_of_this_context(self) -> bool:
        """Whether the running task, or one that it was started by, took the ticket for this."""
        mine = held_here.get()
        return self.task is asyncio.current_task() or (mine is not None and mine() is self)

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
            self.writer.queue.release(ticket)
        elif isinstance(self.lease, WriterLease):
            self.abandon(
                QSessionError(
                    "The transaction held the write ticket while others waited, and its event loop "
                    "was closed; it was rolled back. Nothing of it was written."
                )
            )

    def pin(self) -> DriverConnection:
        """Attach to the writer until the end, for somebody who uses the driver's connection."""
        if self.failure is not None:
            raise self.failure
        self.used_here()
        self.attach_writer(Statement("(the driver's connection)", need=Need.WRITE))
        self.wrote = self.pinned = True
        self.writer.close_group()
        assert self.lease is not None
        return self.lease.driver

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
        self.abandon(
            HoldTimeout(
                f"The transaction held the write ticket longer than max_hold="
                f"{self.settings.max_hold:g} s and was rolled back; its last statement was "
                f"{self.last_statement!r}. Nothing of it was written."
            )
        )


class _Ready:
    """Awaited without waiting: SQLAlchemy insists that a statement awaits something."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


READY = _Ready()


def _broken_off(report: Report) -> bool:
    return report.error is not None and sqlite_code(report.error) == SQLITE_INTERRUPT
