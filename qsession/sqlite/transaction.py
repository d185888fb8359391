"""Transaction: its states, where each statement goes, and how it moves between connections.

A transaction is a log. Attached to a reader it has a snapshot; attached to the writer it holds the
ticket; detached it is nothing but its log, and the next statement attaches it again by replay. The
replay must see what was seen before, else the transaction ends in a ConflictError.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import weakref
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from .. import errors
from ..config import Access
from ..ticket import Ticket
from . import lease as work
from .driver import DriverConnection
from .lease import Lease, ReaderLease, WriterLease
from .log import Log, Outcome, Report, Statement, StreamDigest, digest, error_digest, run
from .need import Need

if TYPE_CHECKING:
    from .connection import StreamCursor
    from .pool import WriteQueuePool

BUSY_RETRY = 0.005
"""Seconds between two looks at a lock that a process without qsession holds."""

_SUSPECT = {errors.SQLITE_IOERR, errors.SQLITE_CORRUPT, errors.SQLITE_CANTOPEN, errors.SQLITE_NOTADB}

held_here: ContextVar[weakref.ref[Transaction] | None] = ContextVar("held_here", default=None)
"""The last transaction that took the ticket in this task, or in the one that started it."""


class State(Enum):
    """The life of a transaction; it begins again at IDLE after every end."""

    IDLE = "idle"  # nothing was sent
    READING = "reading"  # has a snapshot on a reader
    HOLDING = "holding"  # has the ticket, and the writer
    SUSPENDED = "suspended"  # only its log is left; the next statement replays it
    FAILED = "failed"  # gone; every statement repeats why until it is rolled back


class Transaction:
    """The one transaction of a :class:`RoutedConnection`, over and over.

    Invariants: HOLDING means that the lease is the writer's and its ticket is held. READING means
    that the lease is a reader's. In every other state there is no lease.
    """

    def __init__(self, pool: WriteQueuePool) -> None:
        self._pool = pool
        self.writer = pool.writer
        self.settings = pool.settings
        self.autocommit = False
        self.task: asyncio.Task[Any] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.busy = 0
        self.activity = 0
        self.last_statement = ""
        self.may_read_instead = False
        self._reset()

    def _reset(self) -> None:
        self.state = State.IDLE
        self.log = Log()
        self.lease: Lease | None = None
        self.began = False
        self.wrote = False
        self.pinned = False
        self.failure: Exception | None = None
        self._access: Access | None = None
        self._first: str | None = None
        self._priority = 0
        self._by_hand: str | None = None
        self._snapshot: ReaderLease | None = None
        self._limit: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Transaction {self.state.value} wrote={self.wrote} log={len(self.log.entries)}>"

    # What the application sends.

    def execute(self, statement: Statement, options: Any) -> Outcome:
        """Run one statement where it belongs. In a greenlet.

        Raises what SQLite raises, and the errors of :mod:`qsession.errors`. Cancelled: the
        transaction is rolled back, in the background, and what it held is passed on.
        """
        if self.failure is not None:
            raise self.failure
        self.busy += 1
        self.last_statement = statement.sql
        self.task = asyncio.current_task()
        self.loop = asyncio.get_running_loop()
        try:
            return self._dispatch(statement, options)
        except Exception:
            if self.state is State.HOLDING and not self.began and not self.pinned:
                self._detach_writer()
            raise
        except BaseException:
            self.abandon(errors.QSessionError("The transaction was rolled back: it was cancelled."))
            raise
        finally:
            self.busy -= 1
            self.activity += 1

    def _dispatch(self, statement: Statement, options: Any) -> Outcome:
        need = statement.need
        if need is Need.SAVEPOINT and self.lease is None:
            if self.autocommit and self._by_hand is None:
                self._by_hand = statement.sql.split()[-1]
            nothing = Outcome()
            self.log.append(statement, digest(nothing))
            return nothing
        if need in (Need.BEGIN, Need.BEGIN_WRITE) and self.lease is None:
            self._by_hand = self._by_hand or ""
            if need is Need.BEGIN_WRITE:
                self._access = "write"
            return Outcome()
        if need is Need.COMMIT or need is Need.ROLLBACK:
            self.commit() if need is Need.COMMIT else self.rollback()
            return Outcome()
        if self.autocommit and self._by_hand is None:
            return self._execute_alone(statement, options)
        outcome = self._execute(statement, options)
        if self._by_hand and need is Need.SAVEPOINT and self._releases(statement):
            self.commit()
        return outcome

    def _releases(self, statement: Statement) -> bool:
        """Under AUTOCOMMIT the release of the outermost savepoint commits, as in SQLite."""
        words = statement.sql.split()
        return self.autocommit and words[0].upper() == "RELEASE" and words[-1] == self._by_hand

    def _execute(self, statement: Statement, options: Any) -> Outcome:
        if self._first is None:
            self._first = statement.sql
            self._access = self._access or options.get("qsession_access", self.settings.access)
            self._priority = options.get("qsession_priority", 0)
        if self._place(statement.need) is State.READING:
            self._attach_reader()
            report = self._run(statement)
            if not _refused(report):
                return self._settle(statement, report)
            statement.need = Need.WRITE  # the database said so
        self._refuse_to_write(statement)
        self._attach_writer(statement)
        return self._settle(statement, self._run(statement))

    def _place(self, need: Need) -> State:
        """Whether a statement goes to a reader (READING) or to the writer (HOLDING)."""
        writes = need in (Need.WRITE, Need.ALONE)
        if self.state is State.HOLDING or (writes and self._access != "read"):
            return State.HOLDING
        if self.state is State.READING:
            return State.HOLDING if writes else State.READING
        if self._access == "read":
            return State.HOLDING if need is Need.WRITE else State.READING
        if self._access == "write" or self.state is State.SUSPENDED:
            return State.HOLDING
        assert self._first is not None
        return State.HOLDING if self.writer.prediction.writes(self._first) else State.READING

    def _execute_alone(self, statement: Statement, options: Any) -> Outcome:
        """AUTOCOMMIT: a transaction of one statement, without BEGIN."""
        self._access = options.get("qsession_access", self.settings.access)
        try:
            outcome = self._run_alone(statement)
        except Exception:
            self._end()
            raise
        self._end()
        return outcome

    def _run_alone(self, statement: Statement) -> Outcome:
        if statement.need in (Need.READ, Need.UNKNOWN) or self._access == "read":
            self._attach_reader()
            report = self._run(statement)
            if not _refused(report):
                return self._settle(statement, report)
            self._end_reading()
        self._refuse_to_write(statement)
        statement.need = Need.WRITE
        statement.stream = False
        self._attach_writer(statement)
        outcome = self._settle(statement, self._run(statement))
        self.writer.counters.commits += outcome.changed
        return outcome

    def _refuse_to_write(self, statement: Statement) -> None:
        if self._access == "read":
            raise errors.ReadOnlyError(
                f"A transaction with access='read' cannot write: {statement.sql!r}. Use qsession() "
                "or access='auto' for a transaction that writes."
            )

    # Attaching and detaching.

    def _attach_reader(self) -> None:
        if self.lease is None:
            self.lease = self._pool.reader()
            self.state = State.READING

    def _attach_writer(self, statement: Statement) -> None:
        """Take the ticket, or, for a SELECT behind a stalled holder, a snapshot instead."""
        if self.state is State.HOLDING:
            return
        if isinstance(self.lease, ReaderLease):
            if self.log.complete:
                self._end_reading()  # who waits holds no reader; the replay will find out
            else:
                self._snapshot = self.lease
        self.may_read_instead = self.lease is None and statement.need in (Need.READ, Need.UNKNOWN)
        ticket = Ticket(self, self._priority)
        try:
            held = self.writer.ask(self, ticket, statement.nowait)
        finally:
            self.may_read_instead = False
        if not held:
            self._attach_reader()
            return
        try:
            lease = self.writer.lease(ticket)
        except BaseException:
            self.writer.queue.release(ticket)
            raise
        self.lease, self.state, self.began = lease, State.HOLDING, False
        held_here.set(weakref.ref(self))
        self.wrote = statement.need is Need.WRITE
        self._limit_hold()
        if self._snapshot is not None:
            self._check_snapshot()

    def _check_snapshot(self) -> None:
        """A transaction without a log goes on if nothing was committed since its snapshot."""
        assert self._snapshot is not None and self.lease is not None
        snapshot, self._snapshot = self._snapshot, None
        try:
            report = self._run(Statement("SELECT 1", need=Need.READ))
            if report.error is not None:
                raise report.error
            inside, after = snapshot.driver.run(work.data_version)
        finally:
            snapshot.end()
        if inside != after:
            raise self._conflict(
                f"its log had grown past the limits, so it could not be replayed, and something "
                f"was committed since it began with {self._first!r}"
            )

    def _detach_writer(self) -> None:
        """Give the ticket back before anything was begun; the log stays, to be replayed."""
        lease, self.lease = self.lease, None
        assert lease is not None
        lease.abandon(busy=False)
        self._stop_limit()
        self.state = State.SUSPENDED if self.log.entries else State.IDLE

    def _end_reading(self) -> None:
        lease, self.lease = self.lease, None
        if isinstance(lease, ReaderLease):
            lease.end()
        self.began = False
        self.state = State.SUSPENDED if self.log.entries else State.IDLE

    # Running one statement.

    def _run(self, statement: Statement) -> Report:
        """Run it where the transaction is attached, behind BEGIN and replay if need be."""
        lease = self.lease
        assert lease is not None
        assert not isinstance(lease, WriterLease) or self.writer.queue.holder is lease.ticket
        alone = self._runs_alone(statement.need)
        begin = None if self.began or alone else lease.begin
        entries = self.log.entries if begin else ()
        if not self.began:
            self._pool.check_file(lease.driver)
        deadline = time.monotonic() + self.settings.queue_timeout
        while True:
            report = lease.driver.run(run, begin, entries, statement)
            if not report.busy:
                break
            if time.monotonic() >= deadline:
                self.writer.counters.timeouts += 1
                raise errors.QueueTimeout(
                    f"Another process held a lock on {self._pool.database!r} for longer than "
                    f"queue_timeout={self.settings.queue_timeout} s; {statement.sql!r} was not run."
                )
            await_only(asyncio.sleep(BUSY_RETRY))
        if begin is not None and report.in_transaction:
            self.began = True
            self.writer.counters.replays += bool(entries)
        return report

    def _runs_alone(self, need: Need) -> bool:
        """Whether a statement runs without BEGIN: its own transaction, or before one."""
        if self.autocommit and self._by_hand is None:
            return True
        before = not self.began and not self.log.entries
        return before and need in (Need.ALONE, Need.PRAGMA)

    def _settle(self, statement: Statement, report: Report) -> Outcome:
        """Take note of what happened; return the outcome or raise the error."""
        if report.diverged is not None:
            raise self._conflict(f"{report.diverged.statement.sql!r} now returns something else")
        assert self.lease is not None
        error, outcome = report.error, report.outcome
        if error is not None:
            self.lease.driver.suspect |= errors.sqlite_code(error) in _SUSPECT
            if self.began and not report.in_transaction:
                self._dropped(error)
            elif self.began:
                self.log.append(statement, error_digest(error))
            raise self._pool.explain(error)
        assert outcome is not None
        if self.began:
            self.log.append(statement, self._seen(outcome))
        if self.state is State.HOLDING and statement.need is not Need.SAVEPOINT:
            self.wrote = self.wrote or statement.need is Need.WRITE or outcome.changed
        return outcome

    def _seen(self, outcome: Outcome) -> Any:
        if outcome.cursor is None:
            return digest(outcome)
        outcome.seen = StreamDigest()
        return outcome.seen

    def _conflict(self, reason: str) -> errors.ConflictError:
        self.writer.counters.conflicts += 1
        conflict = errors.ConflictError(
            f"What this transaction had read was changed by another one before it wrote: {reason}. "
            "Nothing of it was written. Roll back and run it again (qsession.run does), or take "
            "the write ticket before reading: with_for_update(), qsession(), access='write'."
        )
        if self._first is not None:
            self.writer.prediction.note(self._first, wrote=True)
        self.abandon(conflict)
        return conflict

    def _dropped(self, error: Exception) -> None:
        """SQLite has rolled the whole transaction back by itself (disk full, RAISE(ROLLBACK))."""
        self.abandon(
            errors.QSessionError(
                f"SQLite rolled the transaction back after {self.last_statement!r} failed "
                f"({error}); nothing of it was written. Roll back and begin again."
            )
        )

    # The ends.

    def commit(self) -> None:
        """Make it durable. A COMMIT that has started runs to its end; then a cancellation is raised."""
        if self.failure is not None:
            raise self.failure
        if isinstance(self.lease, WriterLease) and (self.began or self.pinned):
            self.busy += 1
            try:
                self._commit_writing(self.lease)
            finally:
                self.busy -= 1
                self.activity += 1
        self._end()

    def _commit_writing(self, lease: WriterLease) -> None:
        if self.wrote:
            self._pool.check_file(lease.driver)
        deadline = time.monotonic() + self.settings.queue_timeout
        streams = list(lease.streams)
        cursors = lease.forget_streams()
        while True:
            try:
                error, alive, rest = lease.driver.run_to_end(work.commit, cursors)
            except BaseException:
                self.abandon()  # it has ended one way or the other; nothing is left to undo
                raise
            for stream, rows in zip(streams, rest, strict=False):
                stream.keep(rows)
            streams, cursors = [], []
            if error is None:
                self.writer.counters.commits += self.wrote
                return
            if errors.sqlite_code(error) != errors.SQLITE_BUSY or time.monotonic() >= deadline:
                if not alive:
                    self._dropped(error)
                raise self._pool.explain(error)
            await_only(asyncio.sleep(BUSY_RETRY))

    def rollback(self) -> None:
        """Undo it. Runs to its end through a cancellation."""
        lease = self.lease
        if isinstance(lease, WriterLease) and not lease.ended:
            lease.ended = True
            try:
                lease.driver.run_to_end(work.clean_up, lease.forget_streams())
            except sqlite3.Error:
                lease.driver.suspect = True
            finally:
                self._end()
        else:
            self._end()

    def attach_stream(self, stream: StreamCursor) -> Lease:
        """Let an open stream keep its connection; the lease it belongs to."""
        assert self.lease is not None
        self.lease.streams.add(stream)
        return self.lease

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
        self.began = False
        self.state = State.SUSPENDED if self.log.entries else State.IDLE
        self.writer.counters.suspensions += 1
        lease.suspend(heir)

    def suspend_if_idle(self, activity: int) -> None:
        """Suspend it unless it has done something since it was seen to be idle."""
        if self.activity == activity and self.suspendable():
            self.suspend()

    def pin(self) -> DriverConnection:
        """Attach to the writer until the end, for somebody who uses the driver's connection."""
        if self.failure is not None:
            raise self.failure
        self.task = asyncio.current_task()
        self.loop = asyncio.get_running_loop()
        self._attach_writer(Statement("(the driver's connection)", need=Need.WRITE))
        self.wrote = self.pinned = True
        if self.autocommit:
            self._by_hand = self._by_hand or ""
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
            errors.HoldTimeout(
                f"The transaction held the write ticket longer than max_hold="
                f"{self.settings.max_hold} s and was rolled back; its last statement was "
                f"{self.last_statement!r}. Nothing of it was written."
            )
        )

    def abandon(self, failure: Exception | None = None) -> None:
        """Undo it without waiting, from anywhere; with ``failure``, every statement repeats it."""
        lease, snapshot = self.lease, self._snapshot
        self.lease = self._snapshot = None
        for left in (lease, snapshot):
            if left is not None:
                left.abandon(busy=bool(self.busy))
        self._stop_limit()
        self._reset()
        if failure is not None:
            self.failure, self.state = failure, State.FAILED

    def _end(self) -> None:
        """Give everything back. The writer's connection has ended its transaction by now."""
        lease = self.lease
        if self._first is not None and self._access == "auto" and self.failure is None:
            self.writer.prediction.note(self._first, self.wrote)
        self._stop_limit()
        self._reset()
        if isinstance(lease, ReaderLease):
            lease.end()
        elif isinstance(lease, WriterLease):
            lease.ended = True
            lease.give_back()


def _refused(report: Report) -> bool:
    """Whether a reader said that the statement writes."""
    error = report.error
    return error is not None and errors.sqlite_code(error) == errors.SQLITE_READONLY
