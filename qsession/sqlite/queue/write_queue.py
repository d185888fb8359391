"""WriteQueue: how a transaction comes by the right to be the next to write, and gives it back.

The right is the ticket, which orders the transactions of this engine, and with it the turn, which
orders the processes on the file. Neither is a lock of SQLite's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.util import await_only

from qsession.config import Settings
from qsession.errors import QueueFull, QueueTimeout
from qsession.sqlite.processes.owners import describe_process
from qsession.sqlite.processes.turn import FileTurn
from qsession.sqlite.queue.holder import describe, shorten
from qsession.sqlite.queue.nesting import Held, held_here, settle
from qsession.sqlite.queue.owner import Owner
from qsession.sqlite.queue.stall import StallWatch
from qsession.sqlite.transaction.decide import Want
from qsession.sqlite.transaction.prediction import Prediction
from qsession.stats import Counters, Holder, Stats
from qsession.waiting.ticket import Ticket, TicketQueue, TicketState


class WriteQueue:
    """The write queue of one engine. It outlives the pools that ``dispose()`` replaces."""

    def __init__(self, settings: Settings, database: str) -> None:
        self.database = database
        """The database as messages name it."""
        self.queue = TicketQueue()
        self.turn = FileTurn()
        self.watch = StallWatch(self.queue, self.turn, settings)
        self.counters = Counters()
        self.prediction = Prediction()
        self.path = ""
        self.identity: Any = None
        """Device and inode of the file."""
        self.queue.on_given_up = self.turn.release

    def on(self, path: str, identity: Any) -> None:
        """Say which file it is about."""
        if (path, identity) != (self.path, self.identity):
            self.path, self.identity = path, identity
            self.turn.on(path, identity)

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds the ticket."""
        return self.queue.holder is None

    def acquire(
        self,
        transaction: Owner,
        settings: Settings,
        want: Want,
        reads: bool,
        priority: int,
        give_back: Callable[[], None],
    ) -> Ticket | None:
        """Wait for the ticket, and for the turn on the file. None: read without. In a greenlet.

        ``give_back`` is called before it waits: a transaction that waits holds no connection.
        Raises :class:`NestedWriteError`, :class:`QueueFull` and :class:`QueueTimeout`. Cancelled:
        the place is given up; at the moment of hand-off, the ticket moves on.
        """
        if not settle(self.queue, self.identity, transaction, reads):
            return None
        ticket = Ticket(transaction, priority, gives_up=want is Want.WHILE_IT_MOVES)
        state = self.queue.take(ticket, settings.max_waiting)
        if state is TicketState.REFUSED:
            self._refused(ticket, settings)
            return None
        if state is not TicketState.HELD and want is Want.AT_ONCE:
            self.queue.leave(ticket)
            raise self._timeout(transaction, "at once (NOWAIT)")
        try:
            if state is not TicketState.HELD:
                give_back()
                if not self._wait(ticket, settings):
                    return None
            held_here.set(Held(ticket, self.queue, self.identity))
            if not self.turn.take_now():
                give_back()
                if not self._wait_for_turn(ticket, settings, want):
                    self.release(ticket)
                    return None
        except BaseException:
            self.queue.leave(ticket)  # whether it waits, or has just been handed over
            raise
        return ticket

    def _wait(self, ticket: Ticket, settings: Settings) -> bool:
        self.watch.start(waits=True)
        state = await_only(self.queue.wait(ticket, settings.queue_timeout))
        if state is TicketState.HELD or state is TicketState.TAKEN:
            return True
        if state is TicketState.REFUSED:
            self._refused(ticket, settings)
        if ticket.gives_up:
            return False
        raise self._timeout(ticket.owner, f"within {settings.queue_timeout:g} s")

    def _refused(self, ticket: Ticket, settings: Settings) -> None:
        if ticket.gives_up:
            return
        self.counters.timeouts += 1
        raise QueueFull(
            f"{self.queue.waiting} writers wait already (max_waiting={settings.max_waiting}); "
            f"{shorten(ticket.owner.last_statement)!r} was not run. {self.holder_text()}"
        )

    def _wait_for_turn(self, ticket: Ticket, settings: Settings, want: Want) -> bool:
        self.watch.start()
        left = ticket.asked_at + settings.queue_timeout - time.monotonic()
        at_once = want is Want.AT_ONCE
        if not at_once and self.turn.take(max(left, 0.0), settings.stall_after):
            return True
        if ticket.gives_up:
            return False
        self.counters.timeouts += 1
        waited = "at once (NOWAIT)" if at_once else f"within {settings.queue_timeout:g} s"
        raise QueueTimeout(
            f"The turn to write to {self.database!r} did not come {waited}; "
            f"{shorten(ticket.owner.last_statement)!r} was not run. {self._other_process()}"
        )

    def release(self, ticket: Ticket) -> None:
        """Give the ticket back. No effect on one that was taken away."""
        self.counters.holds.observe(time.monotonic() - ticket.granted_at)
        self.queue.release(ticket)

    def _timeout(self, transaction: Owner, waited: str) -> QueueTimeout:
        self.counters.timeouts += 1
        return QueueTimeout(
            f"The write ticket was not free {waited}; {shorten(transaction.last_statement)!r} was "
            f"not run. {self.holder_text()}"
        )

    def holder(self) -> Holder | None:
        """The transaction that holds the ticket now."""
        ticket = self.queue.holder
        return None if ticket is None else describe(ticket)

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
            return "Another process writes to the file; the system does not tell which."
        pid, since = last
        who = "another engine of this process" if pid == os.getpid() else describe_process(pid)
        return f"The turn is held by {who}, for {max(time.time() - since, 0.0):.1f} s."

    async def until_free(self, deadline: float | None, owner: Owner) -> None:
        """Wait until everybody who held the ticket or waited for it is done with it.

        Raises :class:`QueueTimeout` at ``deadline``, by :func:`time.monotonic`.
        """
        ticket = Ticket(owner)
        state = self.queue.take(ticket)
        if state is not TicketState.HELD:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            state = await self.queue.wait(ticket, left)
        if state is not TicketState.HELD:
            raise QueueTimeout(f"The write ticket was not free in time. {self.holder_text()}")
        self.queue.release(ticket)

    def stats(self, size: int, in_use: int, syncs: int) -> Stats:
        """A snapshot of the queue and its counters."""
        counters = self.counters
        return Stats(
            waiting=self.queue.waiting,
            holder=self.holder(),
            acquired=self.queue.acquired,
            timeouts=counters.timeouts,
            conflicts=counters.conflicts,
            validations=counters.validations,
            taken_away=self.queue.taken_away,
            commits=counters.commits,
            syncs=syncs,
            longest_inline=counters.longest_inline,
            predicted=len(self.prediction),
            waits=self.queue.waits.freeze(),
            holds=counters.holds.freeze(),
            size=size,
            in_use=in_use,
        )
