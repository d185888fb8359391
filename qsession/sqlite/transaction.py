"""Transaction: what each statement of a connection does, and how a transaction ends."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import TYPE_CHECKING, Any, TypeGuard

from sqlalchemy.util import await_only

from .. import errors
from ..config import Access
from . import lease as work
from .attachment import BUSY_RETRY, Attachment, State
from .group import finish, leave
from .lease import Lease, ReaderLease, WriterLease
from .log import Outcome, Report, Statement, StreamDigest, digest, error_digest
from .need import Need

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import RoutedConnection
    from .driver import DriverConnection
    from .pool import WriteQueuePool

_SUSPECT = {
    errors.SQLITE_IOERR,
    errors.SQLITE_CORRUPT,
    errors.SQLITE_CANTOPEN,
    errors.SQLITE_NOTADB,
}
"""After these a connection is not used again."""


class Transaction(Attachment):
    """The one transaction of a :class:`RoutedConnection`, over and over."""

    def __init__(
        self, pool: WriteQueuePool, connection: Callable[[], RoutedConnection | None]
    ) -> None:
        self.autocommit = False
        self.has_settings = False
        """Something of its own lies on the writer: a PRAGMA, a temporary table, an ATTACH."""
        super().__init__(pool, connection)

    def _reset(self) -> None:
        super()._reset()
        self._access: Access | None = None
        self._by_hand: str | None = None
        """Begun by a statement of the application: its outermost savepoint, or "" for BEGIN."""

    def execute(self, statement: Statement, options: Any) -> Outcome:
        """Run one statement where it belongs. In a greenlet.

        Raises what SQLite raises, and the errors of :mod:`qsession.errors`. Cancelled: the
        transaction is rolled back, in the background, and what it held is passed on.
        """
        if self.failure is not None:
            raise self.failure
        self.busy += 1
        self.last_statement = statement.sql
        self.used_here()
        try:
            return self._dispatch(statement, options)
        except Exception:
            if self.state is State.HOLDING and not (self.began or self.pinned):
                self.detach_writer()
            raise
        except BaseException:
            self.abandon(errors.QSessionError("The transaction was rolled back: it was cancelled."))
            raise
        finally:
            self.busy -= 1
            self.activity += 1

    def pin(self) -> DriverConnection:
        self._by_hand = self._by_hand or ""
        return super().pin()

    def _dispatch(self, statement: Statement, options: Any) -> Outcome:
        need = statement.need
        if need is Need.COMMIT or need is Need.ROLLBACK:
            self.commit() if need is Need.COMMIT else self.rollback()
            return _nothing_sent()
        if self.lease is None and need in (Need.BEGIN, Need.BEGIN_WRITE):
            self._by_hand = self._by_hand or ""
            if need is Need.BEGIN_WRITE:
                self._access = "write"
            return _nothing_sent()
        if self.lease is None and need is Need.SAVEPOINT:
            if self.autocommit and self._by_hand is None:
                self._by_hand = statement.sql.split()[-1]
            nothing = _nothing_sent()
            self.log.append(statement, digest(nothing))  # the first statement will replay it
            return nothing
        if self._is_alone():
            return self._execute_alone(statement, options)
        outcome = self._execute(statement, options)
        if self._by_hand and self.autocommit and _releases(statement, self._by_hand):
            self.commit()  # as SQLite does, where the outermost savepoint began the transaction
        return outcome

    def _is_alone(self) -> bool:
        """AUTOCOMMIT: each statement is its own transaction, but for one that was begun by hand."""
        return self.autocommit and self._by_hand is None

    def _execute(self, statement: Statement, options: Any) -> Outcome:
        if self.first is None:
            self.first = statement.sql
            self._access = self._access or options.get("qsession_access", self.settings.access)
            self.priority = options.get("qsession_priority", 0)
        begins = self.began or bool(self.log.entries) or not _runs_outside(statement.need)
        if self._place(statement.need) is State.READING:
            self.attach_reader()
            report = self.run(statement, begins)
            if not _refused(report):
                return self._settle(statement, report)
            statement.need = Need.WRITE  # the database said so
        self._refuse_to_write(statement)
        self.attach_writer(statement)
        return self._settle(statement, self.run(statement, begins))

    def _place(self, need: Need) -> State:
        """Whether a statement goes to a reader (READING) or to the writer (HOLDING)."""
        on_writer = need.is_of_the_writer or self.has_settings
        if self.state is State.HOLDING or (on_writer and self._access != "read"):
            return State.HOLDING
        if self.state is State.READING or self._access == "read":
            return State.HOLDING if need in (Need.WRITE, Need.TEMP) else State.READING
        if self._access == "write" or self.state is State.SUSPENDED:
            return State.HOLDING
        assert self.first is not None
        return State.HOLDING if self.writer.prediction.writes(self.first) else State.READING

    def _refuse_to_write(self, statement: Statement) -> None:
        if self._access == "read":
            raise errors.ReadOnlyError(
                f"A transaction with access='read' cannot write: {statement.sql!r}. Use qsession() "
                "or access='auto' for a transaction that writes."
            )

    def _execute_alone(self, statement: Statement, options: Any) -> Outcome:
        self._access = options.get("qsession_access", self.settings.access)
        self.priority = options.get("qsession_priority", 0)
        try:
            outcome = self._run_alone(statement)
        except Exception:
            self._end()
            raise
        self._end()
        return outcome

    def _run_alone(self, statement: Statement) -> Outcome:
        reads = statement.need.may_only_read and not self.has_settings
        if reads or self._access == "read":
            self.attach_reader()
            report = self.run(statement, begins=False)
            if not _refused(report):
                return self._settle(statement, report)
            self.detach_reader()
        self._refuse_to_write(statement)
        if statement.need.may_only_read:
            statement.need = Need.WRITE
        statement.stream = None
        self.attach_writer(statement)
        outcome = self._settle(statement, self.run(statement, begins=False))
        self.writer.counters.commits += outcome.changed
        return outcome

    def _settle(self, statement: Statement, report: Report) -> Outcome:
        """Take note of what happened; return the outcome or raise the error."""
        if report.diverged is not None:
            raise self.conflict(f"{report.diverged.statement.sql!r} now returns something else")
        error, outcome, lease = report.error, report.outcome, self.lease
        assert lease is not None
        if error is not None:
            lease.driver.suspect |= errors.sqlite_code(error) in _SUSPECT
            if self.began and not report.in_transaction:
                if isinstance(lease, WriterLease) and lease.joined_at is not None:
                    lease.joined_at = None
                    self.writer.rescue_group()
                self._dropped(error)
            elif self.began:
                self.log.append(statement, error_digest(error))
            raise self._pool.explain(error)
        assert outcome is not None
        seen: Any
        if outcome.cursor is not None and statement.stream is not None:
            seen = StreamDigest()
            statement.stream.open(lease, outcome.cursor, seen)
        else:
            seen = digest(outcome)
        if self.began:
            self.log.append(statement, seen)
        if statement.need.leaves_settings:
            self._pool.make_ready_again(lease.driver)
            self.has_settings = self.has_settings or self.state is State.HOLDING
        if self.began and self.state is State.HOLDING and statement.need is not Need.SAVEPOINT:
            self.wrote = self.wrote or statement.need is Need.WRITE or outcome.changed
        return outcome

    def _dropped(self, error: Exception) -> None:
        """SQLite has rolled the whole transaction back by itself (disk full, RAISE(ROLLBACK))."""
        self.abandon(
            errors.QSessionError(
                f"SQLite rolled the transaction back after {self.last_statement!r} failed "
                f"({error}); nothing of it was written. Roll back and begin again."
            )
        )

    def commit(self) -> None:
        """Make it durable. A COMMIT that has started runs to its end; a cancellation follows."""
        if self.failure is not None:
            raise self.failure
        if self.wrote and self._has_to_replay():
            self._write_again()
        if self._in_group(self.lease):
            self._finish_in_group(self.lease)
            return
        if self._only_read(self.lease):
            self.lease.driver.run_here(work.finish_reading)
        elif isinstance(self.lease, WriterLease) and (self.began or self.pinned):
            self.busy += 1
            try:
                self._commit_writing(self.lease)
            finally:
                self.busy -= 1
                self.activity += 1
        self._end()

    def _write_again(self) -> None:
        """What it had written was undone for others' sake: replay it before it is committed."""
        nothing = Statement("SELECT 1", need=Need.READ)
        self.busy += 1
        try:
            self.attach_writer(nothing)
            report = self.run(nothing)
            if report.diverged is not None or report.error is not None:
                self._settle(nothing, report)
        finally:
            self.busy -= 1
            self.activity += 1

    def _in_group(self, lease: Lease | None) -> TypeGuard[WriterLease]:
        """Whether it ends as a member of a group: it joined one, or others wait to do so."""
        if not isinstance(lease, WriterLease) or not self.began or lease.streams or self.pinned:
            return False
        if lease.joined_at is not None:
            return True
        return self.wrote and self.writer.queue.waiting > 0 and self.settings.group_size > 1

    def _finish_in_group(self, lease: WriterLease, undo: bool = False) -> None:
        """End as a member: the ticket passes on; wait until the COMMIT is made, or has failed."""
        if lease.joined_at is not None:
            lease.driver.run_here(leave if undo else finish)
        log, wrote = self.log, self.wrote and not undo
        self._note()
        self._reset()
        group, member = self.writer.finish(log, wrote, lease)
        try:
            group.wait(member)
        except sqlite3.Error as error:
            raise self._pool.explain(error) from None

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
                self.abandon()  # it has ended one way or the other; nothing may be left to undo
                raise
            for stream, rows in zip(streams, rest, strict=False):
                stream.keep(rows)
            streams, cursors = [], []
            if error is None:
                self.writer.counters.commits += self.wrote
                return
            if errors.sqlite_code(error) != errors.SQLITE_BUSY:
                lease.driver.suspect |= errors.sqlite_code(error) in _SUSPECT
                if not alive:
                    self._dropped(error)
                raise self._pool.explain(error)
            if time.monotonic() >= deadline:
                raise self.lock_timeout("COMMIT")
            await_only(asyncio.sleep(BUSY_RETRY))

    def rollback(self) -> None:
        """Undo it. Runs to its end through a cancellation."""
        lease = self.lease
        if isinstance(lease, WriterLease) and lease.joined_at is not None:
            self._finish_in_group(lease, undo=True)
        elif self._only_read(lease):
            lease.driver.run_here(work.finish_reading)
            self._end()
        elif isinstance(lease, WriterLease):
            try:
                lease.driver.run_to_end(work.clean_up, lease.forget_streams())
            except sqlite3.Error:
                lease.driver.suspect = True
            finally:
                self._end()
        else:
            self._end()

    def _only_read(self, lease: Lease | None) -> TypeGuard[WriterLease]:
        """Whether the end needs no disk, so that it can be made on the loop."""
        return (
            isinstance(lease, WriterLease)
            and not (self.wrote or self.pinned or lease.streams)
            and lease.driver.quiet
        )

    def _note(self) -> None:
        """Learn from this transaction what the next one of its kind will do."""
        if self.first is not None and self._access == "auto" and self.failure is None:
            self.writer.prediction.note(self.first, self.wrote)
        self._stop_limit()

    def _end(self) -> None:
        """Give everything back. The writer's connection has ended its transaction by now."""
        lease = self.lease
        self._note()
        self._reset()
        if isinstance(lease, ReaderLease):
            lease.end()
        elif isinstance(lease, WriterLease):
            lease.ended = True
            lease.give_back()


def _nothing_sent() -> Outcome:
    """What comes back for a statement that is not sent yet.

    It takes a turn of the loop: SQLAlchemy refuses an execution that never awaits anything
    (https://sqlalche.me/e/20/xd1r).
    """
    await_only(asyncio.sleep(0))
    return Outcome()


def _refused(report: Report) -> bool:
    """Whether a reader said that the statement writes."""
    error = report.error
    return error is not None and errors.sqlite_code(error) == errors.SQLITE_READONLY


def _runs_outside(need: Need) -> bool:
    """Whether a statement runs before BEGIN, because it has no effect, or fails, behind it."""
    return need in (Need.ALONE, Need.PRAGMA, Need.ASK)


def _releases(statement: Statement, savepoint: str) -> bool:
    words = statement.sql.split()
    return words[0].upper() == "RELEASE" and words[-1] == savepoint
