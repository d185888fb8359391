"""Writer: the one writing connection, and how a transaction comes by its ticket."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from qsession.errors import QueueFull, QueueTimeout
from qsession.sqlite import nesting
from qsession.sqlite.commits import Commits
from qsession.sqlite.driver.listeners import check_in, check_out
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.lease import WriterLease
from qsession.sqlite.own import OwnConnection, own_of
from qsession.sqlite.place import stand_in
from qsession.sqlite.processes import fork
from qsession.sqlite.processes.owners import describe_process
from qsession.sqlite.processes.turn import FileTurn
from qsession.sqlite.queue.holder import describe, shorten
from qsession.sqlite.transaction.prediction import Prediction
from qsession.sqlite.watch import StallWatch
from qsession.stats import Counters, Holder, Stats
from qsession.waiting.ticket import Ticket, TicketQueue, TicketState

if TYPE_CHECKING:
    from qsession.sqlite.place import Place
    from qsession.sqlite.pool import WriteQueuePool


class Writer(Commits):
    """The writing connection of one pool. Whoever touches it holds the ticket.

    The queue, the counters and the prediction outlive the connection: ``dispose()`` makes a new
    writer that goes on with those of the one ``before``, so its waiters stay in one line.
    """

    def __init__(self, pool: WriteQueuePool, before: Writer | None = None) -> None:
        super().__init__(pool)
        self._record: Any = None
        self._first = False
        self._switching = threading.Lock()
        self.queue: TicketQueue = TicketQueue() if before is None else before.queue
        self.counters: Counters = Counters() if before is None else before.counters
        self.prediction: Prediction = Prediction() if before is None else before.prediction
        self.turn: FileTurn = FileTurn() if before is None else before.turn
        self.watch: StallWatch = (
            StallWatch(self.queue, self.turn, pool.settings) if before is None else before.watch
        )
        self.queue.on_free = self.close_group

    def ask(self, transaction: Place, ticket: Ticket, nowait: bool) -> bool:
        """Wait for the ticket: True when it is held, False to go on with a snapshot instead.

        Raises :class:`QueueTimeout`, :class:`QueueFull` and :class:`NestedWriteError`. Cancelled:
        the place is given up; at the moment of hand-off, the ticket moves on.
        """
        settings = transaction.settings
        inherits = nesting.settle(self.queue.holder, transaction, ticket)
        if inherits is False:
            return False
        if inherits is None:
            self.queue.take(ticket, settings.max_waiting)
            gives_up = transaction.may_stop_waiting(elsewhere=self.turn.waits)
            if nowait or (gives_up and self.watch.stalled()):
                self.queue.dismiss(ticket)  # no effect on one that is held
        state = ticket.state
        if state is not TicketState.HELD:  # or not yet: another thread may be about to decide
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
                f"{statement!r} was not run. {self.holder_text()}"
            )
        waited = "at once (NOWAIT)" if nowait else f"within {settings.queue_timeout:g} s"
        raise QueueTimeout(
            f"The write ticket was not free {waited}; {statement!r} was not run. "
            f"{self.holder_text()}"
        )

    def open_first(self) -> None:
        """Open the connection before anybody can have the ticket."""
        self._first = True
        try:
            self.open()
        finally:
            self._first = False
            if self._disposed:
                self.dispose()

    def open(self) -> DriverConnection:
        """The connection, opened where it is not. For the holder of the ticket, or the first."""
        with self._switching:
            if self._record is None:
                self._record = self._pool._create_connection()
            record = self._record
        return self._opened(record)

    def _opened(self, record: Any) -> DriverConnection:
        try:
            driver: DriverConnection = record.get_connection()
            self._pool.make_ready(driver, "writer")
        except BaseException as error:
            record.invalidate(error)  # listeners may not have seen it to their end
            raise
        return driver

    def lease(self, ticket: Ticket, proxied: Any, nowait: bool = False) -> WriterLease | None:
        """The connection, and the turn on its file, for the holder of the ticket; or its own.

        None if other processes keep the turn, and the transaction may go on with a snapshot
        instead. ``proxied`` is what listeners of "checkout" see as the pooled connection. Raises
        :class:`QueueTimeout` and :class:`NestedWriteError`.
        """
        assert self.queue.holder is ticket, f"{ticket!r} does not hold the ticket"
        own = None if ticket.owner.own is None else own_of(ticket.owner)
        group = self.group  # its connection is not recycled before the COMMIT
        found = own or group
        driver = self.open() if found is None else found.driver
        if not self._take_turn(ticket, driver, nowait):
            return None
        try:
            if own is not None and group is not None:  # SQLite lets nobody else begin before
                self.close_group()
                group.wait_for_commit()
            if self._pool.dispatch.checkout:
                reopen = self.open if found is None else None
                driver = check_out(self._pool, own.record if own else self._record, proxied, reopen)
        except BaseException:
            self.turn.done(ticket)
            raise
        return WriterLease(self, ticket, driver, own)

    def give_away(self, lease: WriterLease) -> OwnConnection | None:
        """The connection of ``lease``, to be kept: the writer goes on with another one."""
        another: Any = self._pool._create_connection()
        if not self._disposed:
            self._opened(another)
        if lease.ended:  # and somebody else may have the connection
            another.invalidate()
            return None
        with self._switching:
            record, self._record = self._record, another
        return OwnConnection(record)

    def _take_turn(self, ticket: Ticket, driver: DriverConnection, nowait: bool) -> bool:
        transaction: Place = ticket.owner
        if not nesting.settle_between_engines(transaction, driver):
            return False
        self.watch.start()
        self.turn.on(driver.path, driver.identity)
        left = ticket.asked_at + transaction.settings.queue_timeout - time.monotonic()
        if self.turn.take_now(ticket) if nowait else self.turn.take(ticket, max(left, 0.0)):
            return True
        if transaction.may_stop_waiting(elsewhere=True) and not nowait:
            return False
        self.counters.timeouts += 1
        waited = (
            "at once (NOWAIT)" if nowait else f"within {transaction.settings.queue_timeout:g} s"
        )
        raise QueueTimeout(
            f"The turn to write to {self._pool.database!r} did not come {waited}; "
            f"{shorten(transaction.last_statement)!r} was not run. {self._other_process()}"
        )

    def give_back(self, ticket: Ticket, own: OwnConnection | None = None) -> None:
        """The holder's transaction has ended and the connection is clean: the next one's turn."""
        record = self._record
        if own is None and self.group is not None and (self._disposed or self.group.driver.suspect):
            self.close_group(ticket)  # its COMMIT comes before the connection is closed
            return
        try:
            if own is not None:
                own.checkin(self._pool)
                if self._disposed and record is not None:
                    record.close()
            elif record is not None and record.dbapi_connection is not None:
                check_in(self._pool, record)
                if record.dbapi_connection.suspect:
                    record.invalidate()
                elif self._disposed:
                    record.close()
        finally:
            self.counters.holds.observe(time.monotonic() - ticket.taken_at)
            self.turn.done(ticket)
            self.queue.release(ticket)

    def post(
        self, function: Callable[[sqlite3.Connection], None], done: Callable[[], None]
    ) -> None:
        """Run a function in the connection's thread, for the holder of the ticket."""
        if self.is_open:
            self._record.dbapi_connection.post(function, done=done)
        else:
            done()

    def dispose(self) -> None:
        """Close the connection: now, or when the one who uses it is done with it.

        From then on it is opened for one transaction at a time.
        """
        if (record := self._retire()) is not None:
            self.close_group()
            record.close()

    def retire(self) -> None:
        """The same without waiting for the connection to be closed."""
        if (record := self._retire()) is not None:
            self.close_group()
            record.invalidate()

    def _retire(self) -> Any:
        """Take the connection out, where nobody uses it."""
        self._disposed = True
        with self._switching:  # who is handed the ticket from here on opens another one
            holder = self.queue.holder
            if self._first or (holder is not None and holder.owner.writer is self):
                return None
            record, self._record = self._record, None
            return record

    def close_idle(self) -> None:
        """Close the connection if nobody has the ticket; it is opened again when it is needed."""
        self.queue.between(self._close_idle, None)

    def _close_idle(self, _: None) -> None:
        if self.queue.holder is None and self.group is None and not self._first:
            fork.close(self._record)

    @property
    def is_open(self) -> bool:
        return self._record is not None and self._record.dbapi_connection is not None

    def holder(self) -> Holder | None:
        """Who holds the ticket now."""
        ticket = self.queue.holder
        return None if ticket is None else describe(ticket)

    async def until_free(self, deadline: float | None) -> None:
        """Wait until everybody who held the ticket or waited for it is done with it.

        Raises :class:`QueueTimeout` at ``deadline``, by :func:`time.monotonic`.
        """
        ticket = Ticket(stand_in(self._pool, "drain()"))
        state = self.queue.take(ticket)
        if state is not TicketState.HELD:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            state = await self.queue.wait(ticket, left)
        if state is not TicketState.HELD:
            raise QueueTimeout(f"The write ticket was not free in time. {self.holder_text()}")
        self.queue.release(ticket)

    def holder_text(self) -> str:
        """The holder in a sentence, for a message."""
        holder = self.holder()
        if holder is None:
            return "Nobody holds it now."
        others = f" It waits as well. {self._other_process()}" if self.turn.waits else ""
        return f"Its holder: {holder}.{others}"

    def _other_process(self) -> str:
        """Who has the turn on the file, in words."""
        last = self.turn.holder()
        if last is None:
            return "Another process writes to the file, which could not be told."
        pid, since = last
        who = "another engine of this process" if pid == os.getpid() else describe_process(pid)
        return f"The turn is held by {who}, for {max(time.time() - since, 0.0):.1f} s."

    def stats(self, size: int, in_use: int) -> Stats:
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
            longest_inline=counters.longest_inline,
            predicted=len(self.prediction),
            waits=self.queue.waits.freeze(),
            holds=counters.holds.freeze(),
            size=size,
            in_use=in_use,
        )
