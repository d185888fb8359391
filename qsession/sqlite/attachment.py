"""Attachment: how a transaction comes by a reader or the writer, and leaves them."""

from __future__ import annotations

import time
import weakref

from qsession.sqlite import lease as work
from qsession.sqlite.lease import ReaderLease, WriterLease
from qsession.sqlite.log import Statement
from qsession.sqlite.need import Need
from qsession.sqlite.place import State, held_here
from qsession.sqlite.running import Running
from qsession.waiting.ticket import Ticket


class Attachment(Running):
    """A transaction that moves between connections."""

    __slots__ = ()

    def attach_reader(self) -> None:
        """Get a reader; waits for one as SQLAlchemy's pool does."""
        if self.lease is None:
            self._pool.admission.enter(self)
            ends = self.ends
            lease = self._pool.reader()
            if self.ends != ends:
                lease.end()
                raise self._ended_elsewhere()
            self.lease, self.state = lease, State.READING
            self.reading_since = time.monotonic()

    def attach_writer(self, statement: Statement) -> None:
        """Take the ticket; or a snapshot, for a SELECT that waits behind a stalled holder."""
        if self.state is State.HOLDING:
            return
        self._pool.admission.enter(self)
        ends = self.ends
        if isinstance(self.lease, ReaderLease):
            for stream in self.lease.streams:  # rows fetched later would be older than what follows
                stream.read_to_end()
            if self.ends != ends:
                raise self._ended_elsewhere()
            if self.log.complete:
                self.detach_reader()  # who waits holds no reader; the replay will find out
            else:
                self._snapshot = self.lease
        self.may_read_instead = (
            self.lease is None and statement.need.may_only_read and self.own is None
        )
        try:
            lease = self._ask(statement.nowait)
        finally:
            self.may_read_instead = False
            self._asked = None
        if self.ends != ends:
            if lease is not None:
                lease.ended = True
                lease.give_back()
            raise self._ended_elsewhere()
        if lease is None:
            self.attach_reader()
            return
        self.lease, self.state, self.began = lease, State.HOLDING, False
        self.wrote = self.wrote or statement.need is Need.WRITE
        held_here.set(weakref.ref(self))
        self._limit_hold()
        if self._snapshot is not None:
            self.writer.close_group()  # what its members wrote counts as committed
            try:
                self._check_snapshot()
            except Exception as error:
                self.abandon(error)  # what it had read can no longer be vouched for
                raise

    def _ask(self, nowait: bool) -> WriterLease | None:
        """Wait for the ticket and the turn; None to go on with a snapshot instead."""
        ticket = self._asked = Ticket(self, self.priority)
        if not self.writer.ask(self, ticket, nowait):
            return None
        lease = None
        try:
            lease = self.writer.lease(ticket, self.connection(), nowait)
        finally:
            if lease is None and self._asked is ticket:  # else it was taken away: see forsake()
                self.writer.release(ticket)
        return lease

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
        lease.ended = True
        lease.give_back()
        self._stop_limit()
        self._become_log()
