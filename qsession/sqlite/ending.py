"""Ending: how a transaction is committed, alone or as a member of a group, or rolled back."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Any, TypeGuard

from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from qsession import errors
from qsession.sqlite import lease as work
from qsession.sqlite.attachment import Attachment
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.group import finish, leave
from qsession.sqlite.lease import Lease, ReaderLease, WriterLease
from qsession.sqlite.log import Log, Outcome, Report, Statement, digest
from qsession.sqlite.need import Need
from qsession.sqlite.place import BUSY_RETRY, State
from qsession.sqlite.transaction.digest import StreamDigest, error_seen

_SUSPECT = {
    errors.SQLITE_IOERR,
    errors.SQLITE_CORRUPT,
    errors.SQLITE_CANTOPEN,
    errors.SQLITE_NOTADB,
}
"""After these a connection is not used again."""


class Ending(Attachment):
    """A transaction that takes note of what its statements did, and ends."""

    __slots__ = ()

    @property
    def untouched(self) -> bool:
        """Whether nothing was asked of it since it began."""
        asked = self.first is not None or self._by_hand or self.log.entries
        return self.state is State.IDLE and not asked

    def _settle(self, statement: Statement, report: Report) -> Outcome:
        """Take note of what happened; return the outcome or raise the error."""
        lease = self.lease
        assert lease is not None
        if isinstance(lease, WriterLease) and lease.joined_at and not report.in_transaction:
            lease.joined_at = None
            self.writer.rescue_group()
        if report.diverged is not None:
            only_read = statement.need is Need.READ and not self.wrote
            reason = f"{report.diverged.statement.sql!r} now returns something else"
            raise self.conflict(reason, only_read)
        error, outcome = report.error, report.outcome
        logged = self.began and self._access != "read"  # who may only read stays where it is
        if error is not None:
            lease.driver.suspect |= errors.sqlite_code(error) in _SUSPECT
            if report.half_replayed:
                self._not_replayed(error)
            elif self.began and not report.in_transaction:
                self._dropped(error)
            elif self.began:
                if logged:
                    self.log.append(statement, error_seen(error))
                if self.state is State.HOLDING:
                    self.wrote = self.wrote or report.changed  # OR FAIL keeps what came before
            raise self._pool.explain(error)
        assert outcome is not None
        seen: Any = None
        if outcome.cursor is not None and statement.stream is not None:
            seen = StreamDigest()
            statement.stream.open(lease, outcome.cursor, seen)
        elif logged:
            seen = digest(outcome)
        if self.began:
            if self.state is State.HOLDING and statement.need is not Need.SAVEPOINT:
                self.wrote = self.wrote or statement.need is Need.WRITE or outcome.changed
            if logged and self.log.append(statement, seen):
                self._outgrow_log(lease)
            if outcome.changed and outcome.description is not None:
                self._pool.pace.keep_alone(statement.sql)
        if statement.need.leaves_settings:
            self._pool.make_ready_again(lease.driver)
            if isinstance(lease, WriterLease) and lease.own is not None:
                lease.own.look()
                lease.begin = lease.own.begin
        return outcome

    def _outgrow_log(self, lease: Lease) -> None:
        """Too long to be replayed from now on, so it must not be in anybody's way as a member."""
        if isinstance(lease, WriterLease) and lease.joined_at is not None:
            self.leave_group()  # the log is dropped once it has been replayed, alone
        else:
            self.log.drop()

    def _not_replayed(self, error: Exception) -> None:
        """Something else than SQLite failed in the middle of a replay: half of it was done."""
        self.abandon(
            errors.QSessionError(
                f"The transaction had given up its turn, and could not be run again ({error!r}). "
                "Nothing of it was written. Roll back and begin again."
            )
        )

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
            self.replay_now()
        elif self.unsure is not None:
            self.unsure.confirm()
        if self._in_group(self.lease):
            self._finish_in_group(self.lease)
            return
        if self._only_read(self.lease):
            self.lease.tidy(work.finish_reading)
        elif isinstance(self.lease, WriterLease) and (self.began or self.pinned):
            self.busy += 1
            try:
                self._commit_writing(self.lease)
            finally:
                self.rest()
        self._end()

    def replay_now(self) -> None:
        """Replay what it had to give up for others' sake, without a statement that follows."""
        nothing = Statement("SELECT 1", need=Need.READ)
        self.used_here()
        self.busy += 1
        try:
            self.attach_writer(nothing)
            report = self.run(nothing)
            if report.diverged is not None or report.error is not None:
                self._settle(nothing, report)
        finally:
            self.rest()

    def pin(self) -> DriverConnection:
        """Attach to the writer until the end, for somebody who uses the driver's connection."""
        if self.failure is not None:
            raise self.failure
        if self.pinned and self.lease is not None:
            return self.lease.driver
        self.used_here()
        self.attach_writer(Statement("(the driver's connection)", need=Need.WRITE))
        assert isinstance(self.lease, WriterLease)
        self.meet_group(self.lease, joins=False)
        if in_greenlet():  # elsewhere no other one could be opened for the writer
            self.keep_connection()
        if self._has_to_replay():
            self.replay_now()
        elif in_greenlet() and not self.lease.driver.quiet:
            self.lease.driver.run(work.nothing)  # wait for what the thread still has to do
        self.wrote = self.pinned = True
        self.lease.lend()
        return self.lease.driver

    def _in_group(self, lease: Lease | None) -> TypeGuard[WriterLease]:
        """Whether it ends as a member of a group: it joined one, or others wait to do so."""
        if not isinstance(lease, WriterLease) or not self.began or lease.streams or self.pinned:
            return False
        if lease.own is not None:  # there is nobody else on it
            return False
        if lease.joined_at is not None:
            return True
        return self.wrote and self.writer.queue.waiting > 0 and self.settings.group_size > 1

    def _finish_in_group(self, lease: WriterLease, undo: bool = False) -> None:
        """End as a member: the ticket passes on; wait until the COMMIT is made, or has failed."""
        if lease.joined_at is not None:
            lease.tidy(leave if undo else finish)
        # A member that has undone its work must not be replayed; what it has only read has to last.
        log = Log() if undo and self.wrote else self.log
        wrote = self.wrote and not undo
        self._note()
        self._reset()
        self.busy += 1  # while the ticket stays with the group, its holder is not idle
        try:
            group, member = self.writer.finish(log, wrote, lease)
            group.wait(member)
        except sqlite3.Error as error:
            raise self._pool.explain(error) from None
        finally:
            self.rest()
            self._pool.admission.leave(self)

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
                if self.wrote:
                    self.writer.committed()
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
        if self.untouched:
            return  # a session that is closed rolls back twice
        lease = self.lease
        if isinstance(lease, WriterLease) and lease.joined_at is not None:
            self._finish_in_group(lease, undo=True)
        elif self._only_read(lease):
            lease.tidy(work.clean_up, [])
            self._end()
        elif isinstance(lease, WriterLease):
            self.busy += 1
            try:
                cursors = lease.forget_streams()
                lease.driver.run_to_end(work.clean_up, cursors, hurry=self.pinned)
            except sqlite3.Error:
                lease.driver.suspect = True
            finally:
                self.rest()
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
            self.writer.prediction.note(self.first, self.wrote, self.site)
        if self._limit is not None:
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
        self._pool.admission.leave(self)
