"""Writer: the one writing connection, and how a transaction comes by its ticket."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from ..errors import NestedWriteError, QueueFull, QueueTimeout
from ..stats import Counters, Holder, Stats
from ..ticket import Ticket, TicketQueue, TicketState
from .driver import DriverConnection
from .group import SLOW, Group, Member
from .holder import describe, shorten
from .lease import WriterLease
from .prediction import Prediction
from .watch import StallWatch

if TYPE_CHECKING:
    from .log import Log
    from .place import Place
    from .pool import WriteQueuePool


_Job = Callable[[Group, sqlite3.Connection, float], None]


class Writer:
    """The writing connection of one pool. Whoever touches it holds the ticket.

    The queue, the counters and the prediction outlive the connection: ``dispose()`` makes a new
    writer that goes on with those of the one ``before``, so its waiters stay in one line.
    """

    def __init__(self, pool: WriteQueuePool, before: Writer | None = None) -> None:
        self._pool = pool
        self._record: Any = None
        self._disposed = False
        self.group: Group | None = None
        """Finished transactions whose COMMIT is still to come."""
        self.queue: TicketQueue = TicketQueue() if before is None else before.queue
        self.counters: Counters = Counters() if before is None else before.counters
        self.prediction: Prediction = Prediction() if before is None else before.prediction
        self.watch: StallWatch = (
            StallWatch(self.queue, pool.settings) if before is None else before.watch
        )
        self.queue.on_free = self.close_group

    def ask(self, transaction: Place, ticket: Ticket, nowait: bool) -> bool:
        """Wait for the ticket: True when it is held, False to go on with a snapshot instead.

        Raises :class:`QueueTimeout`, :class:`QueueFull` and :class:`NestedWriteError`. Cancelled:
        the place is given up; at the moment of hand-off, the ticket moves on.
        """
        if self.queue.holder is not None and self._nested(transaction, ticket):
            return ticket.state is TicketState.HELD
        settings = transaction.settings
        state = self.queue.take(ticket, settings.max_waiting)
        if state is TicketState.WAITING and (
            nowait or (transaction.may_read_instead and self.watch.stalled())
        ):
            self.queue.dismiss(ticket)
            state = ticket.state
        elif state is not TicketState.HELD and state is not TicketState.REFUSED:
            self.watch.start()
            state = await_only(self.queue.wait(ticket, settings.queue_timeout))
        if state is TicketState.HELD:
            return True
        if state is TicketState.DISMISSED and not nowait:
            return False
        self.counters.timeouts += 1
        statement = shorten(transaction.last_statement)
        if state is TicketState.REFUSED:
            raise QueueFull(
                f"{self.queue.waiting} writers wait already (max_waiting={settings.max_waiting}); "
                f"{statement!r} was not run. {self._holder_text()}"
            )
        waited = "at once (NOWAIT)" if nowait else f"within {settings.queue_timeout:g} s"
        raise QueueTimeout(
            f"The write ticket was not free {waited}; {statement!r} was not run. "
            f"{self._holder_text()}"
        )

    def _nested(self, transaction: Place, ticket: Ticket) -> bool:
        """Settle the case that the asking task waits for itself; True if that was the case."""
        holder = self.queue.holder
        outer: Place | None = holder.owner if holder is not None else None
        if outer is None or outer is transaction or not outer.is_of_this_context():
            return False
        if outer.lease is None:
            return False  # it was abandoned, and is being rolled back: that needs no help
        if outer.suspendable():
            outer.suspend(heir=ticket)
            return True
        if outer.task is not asyncio.current_task():
            return False
        if transaction.may_read_instead:
            return True
        raise NestedWriteError(
            f"This task would wait for itself: it holds the write ticket with uncommitted writes "
            f"(the last statement there: {shorten(outer.last_statement)!r}) and now writes in a "
            f"second transaction ({shorten(transaction.last_statement)!r}). Commit the first one "
            "before, or use one session for both."
        )

    def open(self) -> DriverConnection:
        """The connection, opened where it is not. For the holder of the ticket, or the first."""
        if self._record is None:
            self._record = self._pool._create_connection()
        try:
            driver: DriverConnection = self._record.get_connection()
            self._pool.make_ready(driver, "writer")
        except BaseException as error:
            self._record.invalidate(error)  # listeners may not have seen it to their end
            raise
        return driver

    def lease(self, ticket: Ticket, proxied: Any) -> WriterLease:
        """The connection, for the holder of the ticket; opens it where it is not open.

        ``proxied`` is what listeners of "checkout" see as the pooled connection.
        """
        assert self.queue.holder is ticket, f"{ticket!r} does not hold the ticket"
        driver = self.open()
        if self._pool.dispatch.checkout:
            self._pool.dispatch.checkout(driver, self._record, proxied)
        return WriterLease(self, ticket, driver)

    def give_back(self, ticket: Ticket) -> None:
        """The holder's transaction has ended and the connection is clean: the next one's turn."""
        record = self._record
        if self.group is not None and (self._disposed or self.group.driver.suspect):
            self.close_group(ticket)  # its COMMIT comes before the connection is closed
            return
        try:
            if record is not None and record.dbapi_connection is not None:
                if self._pool.dispatch.checkin:
                    self._pool.dispatch.checkin(record.dbapi_connection, record)
                if record.dbapi_connection.suspect:
                    record.invalidate()
                elif self._disposed:
                    record.close()
        finally:
            self.counters.holds.observe(time.monotonic() - ticket.taken_at)
            self.queue.release(ticket)

    def committed(self) -> None:
        """A transaction that wrote is durable."""
        self.counters.commits += 1
        self._pool.checkpointer.committed()

    def post(
        self, function: Callable[[sqlite3.Connection], None], done: Callable[[], None]
    ) -> None:
        """Run a function in the connection's thread, for the holder of the ticket."""
        if self.is_open:
            self._record.dbapi_connection.post(function, done=done)
        else:
            done()

    # The commit group.

    def finish(self, log: Log, wrote: bool, lease: WriterLease) -> tuple[Group, Member]:
        """Put a finished transaction into the group; pass the ticket on, or send the group off."""
        group = self.group
        if group is None:
            group = self.group = Group(lease.driver)
        if not group.concerns(asyncio.get_running_loop()):
            self._look_later(group)
        member = group.add(log, wrote)
        lease.ended = True
        settings = self._pool.settings
        if group.closes(0 if self._disposed else self.queue.waiting, settings.group_size):
            self.close_group(lease.ticket)
        else:
            self.give_back(lease.ticket)
        return group, member

    def close_group(self, ticket: Ticket | None = None, leaving: bool = False) -> None:
        """Send the COMMIT of the group to the thread; ``ticket`` is kept until it is done.

        ``leaving``: the transaction that is at work in it is taken out before.
        """
        group, self.group = self.group, None
        if group is None:
            if ticket is not None:
                self.give_back(ticket)
            return
        job = Group.leave_and_commit if leaving else Group.commit
        if group.driver.suspect:
            job = Group.start_again  # who knows what a COMMIT would make durable
        try:
            self._pool.check_file(group.driver)
        except sqlite3.Error as error:
            group.decide(error)
            job = Group.give_up
        self._post(job, group, ticket)

    def rescue_group(self) -> None:
        """SQLite has dropped the transaction of the group: run its finished members again."""
        group, self.group = self.group, None
        if group is not None:
            self._post(Group.replay, group, None)

    def _post(self, job: _Job, group: Group, ticket: Ticket | None) -> None:
        timeout = self._pool.settings.queue_timeout
        group.driver.post(
            lambda raw: job(group, raw, timeout), done=lambda: self._done(group, ticket)
        )

    def _done(self, group: Group, ticket: Ticket | None) -> None:
        """The COMMIT has been made or has failed. In the connection's thread."""
        self.counters.groups += len(group.members) > 1
        for member in group.members:
            if member.wrote and member.error is None:
                self.committed()
        try:
            if ticket is not None:
                self.give_back(ticket)
        finally:
            group.settle()

    def _look_later(self, group: Group) -> None:
        asyncio.get_running_loop().call_later(SLOW, self._look_at_group, group)

    def _look_at_group(self, group: Group) -> None:
        """No member waits for a slow neighbour, nor for one that does not come.

        Each loop that has members of the group looks; the loop of the holder decides, so never in
        the middle of one of its statements.
        """
        if self.group is not group:
            return
        self._look_later(group)
        ticket = self.queue.holder
        home = None if ticket is None else ticket.owner.loop
        if home is None or home is asyncio.get_running_loop() or home.is_closed():
            self._judge(group, ticket)
            return
        with suppress(RuntimeError):  # closed meanwhile: that is seen the next time
            home.call_soon_threadsafe(self._judge, group, ticket)

    def _judge(self, group: Group, ticket: Ticket | None) -> None:
        """Close the group if the holder of ``ticket`` takes too long, or has not joined it."""
        if self.group is not group or self.queue.holder is not ticket:
            return
        holder: Place | None = None if ticket is None else ticket.owner
        if holder is not None and holder.writer is self:
            lease = holder.lease
            if holder.busy and not holder.forsaken:
                return
            if isinstance(lease, WriterLease) and lease.joined_at is not None:
                if time.monotonic() - lease.joined_at >= SLOW:
                    holder.leave_group()
                return
        self.queue.between(self._close_unless_changed, (group, ticket))

    def _close_unless_changed(self, seen: tuple[Group, Ticket | None]) -> None:
        if (self.group, self.queue.holder) == seen:
            self.close_group()

    def dispose(self) -> None:
        """Close the connection: now, or when the one who holds the ticket is done with it."""
        self._disposed = True
        holder = self.queue.holder
        in_use = holder is not None and holder.owner.writer is self
        if self._record is not None and not in_use:
            self.close_group()
            self._record.close()

    @property
    def is_open(self) -> bool:
        return self._record is not None and self._record.dbapi_connection is not None

    def holder(self) -> Holder | None:
        """Who holds the ticket now."""
        ticket = self.queue.holder
        return None if ticket is None else describe(ticket)

    def _holder_text(self) -> str:
        holder = self.holder()
        return "Nobody holds it now." if holder is None else f"Its holder: {holder}."

    def stats(self) -> Stats:
        """A snapshot of the queue and its counters."""
        counters = self.counters
        return Stats(
            waiting=self.queue.waiting,
            holder=self.holder(),
            acquired=self.queue.acquired,
            timeouts=counters.timeouts,
            conflicts=counters.conflicts,
            replays=counters.replays,
            suspensions=counters.suspensions,
            commits=counters.commits,
            groups=counters.groups,
            predicted=len(self.prediction),
            waits=self.queue.waits.freeze(),
            holds=counters.holds.freeze(),
        )
