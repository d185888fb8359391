"""Writer: the one writing connection, and how a transaction comes by its ticket."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from ..errors import NestedWriteError, QueueFull, QueueTimeout
from ..stats import Counters, Holder, Stats
from ..ticket import Ticket, TicketQueue, TicketState
from .driver import DriverConnection
from .holder import describe, shorten
from .lease import WriterLease
from .prediction import Prediction
from .watch import StallWatch

if TYPE_CHECKING:
    from .attachment import Attachment
    from .pool import WriteQueuePool


class Writer:
    """The writing connection of one pool. Whoever touches it holds the ticket.

    The queue, the counters and the prediction outlive the connection: ``dispose()`` makes a new
    writer that goes on with those of the one ``before``, so its waiters stay in one line.
    """

    def __init__(self, pool: WriteQueuePool, before: Writer | None = None) -> None:
        self._pool = pool
        self._record: Any = None
        self._disposed = False
        self.queue: TicketQueue = TicketQueue() if before is None else before.queue
        self.counters: Counters = Counters() if before is None else before.counters
        self.prediction: Prediction = Prediction() if before is None else before.prediction
        self.watch: StallWatch = (
            StallWatch(self.queue, pool.settings) if before is None else before.watch
        )

    def ask(self, transaction: Attachment, ticket: Ticket, nowait: bool) -> bool:
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

    def _nested(self, transaction: Attachment, ticket: Ticket) -> bool:
        """Settle the case that the asking task waits for itself; True if that was the case."""
        holder = self.queue.holder
        outer: Attachment | None = holder.owner if holder is not None else None
        if outer is None or outer is transaction or not outer.is_of_this_context():
            return False
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

    def lease(self, ticket: Ticket, proxied: Any) -> WriterLease:
        """The connection, for the holder of the ticket; opens it where it is not open.

        ``proxied`` is what listeners of "checkout" see as the pooled connection.
        """
        assert self.queue.holder is ticket, f"{ticket!r} does not hold the ticket"
        if self._record is None:
            self._record = self._pool._create_connection()
        try:
            driver: DriverConnection = self._record.get_connection()
            self._pool.make_ready(driver, "writer")
        except BaseException as error:
            self._record.invalidate(error)  # listeners may not have seen it to their end
            raise
        if self._pool.dispatch.checkout:
            self._pool.dispatch.checkout(driver, self._record, proxied)
        return WriterLease(self, ticket, driver)

    def give_back(self, ticket: Ticket) -> None:
        """The holder's transaction has ended and the connection is clean: the next one's turn."""
        record = self._record
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

    def dispose(self) -> None:
        """Close the connection: now, or when the one who holds the ticket is done with it."""
        self._disposed = True
        holder = self.queue.holder
        in_use = holder is not None and holder.owner.writer is self
        if self._record is not None and not in_use:
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
            predicted=len(self.prediction),
            waits=self.queue.waits.freeze(),
            holds=counters.holds.freeze(),
        )
