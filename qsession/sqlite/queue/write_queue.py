"""WriteQueue: how a transaction gets the right to write next, and gives it back.

This right is the ticket, which orders the transactions of one engine, and the turn, which orders
the processes on the file. Neither is a lock of SQLite.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy.util import await_only

from qsession import events
from qsession.config import Settings
from qsession.errors import QueueFull, QueueTimeout
from qsession.sqlite.changes.commits import commits_of
from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.processes.owners import describe_process, shorten
from qsession.sqlite.processes.turn import FileTurn
from qsession.sqlite.queue import nesting
from qsession.sqlite.queue.holder import describe, where_it_ends
from qsession.sqlite.queue.nesting import Held, held_here, settle
from qsession.sqlite.queue.owner import Owner
from qsession.sqlite.queue.prediction import Prediction
from qsession.sqlite.queue.stall import StallWatch
from qsession.sqlite.queue.want import Want
from qsession.statistics import Counters, Holder, Stats, Waiting
from qsession.waiting.callers import name_of
from qsession.waiting.ticket import Ticket, TicketQueue, TicketState


class WriteQueue:
    """The write queue of one engine. It outlives the pools that ``dispose()`` replaces."""

    def __init__(self, settings: Settings, database: str) -> None:
        self.database = database
        """The name of the database in messages."""
        self.queue = TicketQueue()
        self.turn = FileTurn()
        self.watch = StallWatch(self.queue, self.turn, settings)
        self.counters = Counters()
        self.prediction = Prediction()
        self.path = ""
        self.identity: Any = None
        """Device and inode of the file."""
        self.commits = commits_of("", None)
        """The commits to the file, for those who observe it."""
        self.more_to_come = False
        """Whether an event loop is running lone writes, and more may follow at once."""
        self.queue.on_given_up = self._given_up
        self.queue.on_taken = self._taken
        nesting.note(self)

    def on(self, path: str, identity: Any) -> None:
        """Set the database file."""
        if (path, identity) != (self.path, self.identity):
            self.path, self.identity = path, identity
            self.turn.on(path, identity)
            self.commits = commits_of(path, identity)

    def _given_up(self, wanted_here: bool) -> None:
        self.turn.release(wanted_here or self.more_to_come)

    def _taken(self, ticket: Ticket) -> None:
        if events.observers:
            told = describe(ticket)
            events.emit(
                events.TicketTaken(self.place, told.held, told.task, told.statement, told.where)
            )

    def no_more_to_come(self) -> None:
        """Note that no more lone writes follow: the turn is released if the ticket is free."""
        self.more_to_come = False
        self.queue.if_free(partial(self.turn.release, False))

    @property
    def is_idle(self) -> bool:
        """Whether the ticket is free."""
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
        """Wait for the ticket and for the turn on the file. None: read without. In a greenlet.

        ``give_back`` is called before it waits: a waiting transaction holds no connection. Raises
        :class:`NestedWriteError`, :class:`QueueFull` and :class:`QueueTimeout`. If cancelled, it
        leaves the queue; a ticket that it just got goes to the next waiter.
        """
        if not settle(self.queue, self.identity, transaction, reads):
            return None
        ticket = Ticket(transaction, priority, gives_up=want is Want.WHILE_IT_MOVES)
        waits, waited, outcome = want is not Want.AT_ONCE, False, "cancelled"
        try:
            state = self.queue.take(ticket, settings.max_waiting)
            if waits and state not in (TicketState.HELD, TicketState.REFUSED):
                waited = True
                give_back()
                self.watch.start(waits=True)
                state = await_only(self.queue.wait(ticket, settings.queue_timeout))
            if state is not TicketState.HELD and state is not TicketState.TAKEN:
                self._has_failed(ticket, settings, waits)
                outcome = "dismissed"
                return None
            held_here.set(Held(ticket, self.queue, self.identity))
            if ticket.held and not self.turn.take_now():
                waited = True
                give_back()
                if not (waits and self._wait_for_turn(ticket, settings)):
                    self._has_failed(ticket, settings, waits)
                    self.release(ticket)
                    outcome = "dismissed"
                    return None
            outcome = "granted"
        except BaseException as error:
            self.queue.leave(ticket)  # whether it waits or is held
            if isinstance(error, QueueTimeout):
                outcome = "timeout"
            elif isinstance(error, QueueFull):
                outcome, waited = "full", True
            raise
        finally:
            if waited and events.observers:
                self.tell_of_wait(ticket, time.monotonic() - ticket.asked_at, outcome)
        if not ticket.held:  # it was taken away: the turn belongs to the new holder, if any
            self.queue.if_free(partial(self.turn.release, False))
        return ticket

    def wait_for_turn(self, ticket: Ticket, settings: Settings) -> None:
        """Wait for the turn while holding the ticket. In a greenlet.

        Raises :class:`QueueTimeout`. After an error or a cancellation the ticket goes to the next
        waiter. The ticket may be taken away during the wait.
        """
        try:
            if not self._wait_for_turn(ticket, settings):
                self._has_failed(ticket, settings, waited=True)
        except BaseException:
            self.queue.leave(ticket)
            raise
        if not ticket.held:  # the turn belongs to the new holder, if any
            self.queue.if_free(partial(self.turn.release, False))

    def refuse(self, ticket: Ticket, settings: Settings) -> None:
        """Raise :class:`QueueFull` or :class:`QueueTimeout` if a ticket was refused or expired."""
        if ticket.state in (TicketState.REFUSED, TicketState.EXPIRED):
            self._has_failed(ticket, settings, waited=True)

    def _wait_for_turn(self, ticket: Ticket, settings: Settings) -> bool:
        self.watch.start()
        left = ticket.asked_at + settings.queue_timeout - time.monotonic()
        return self.turn.take(max(left, 0.0), settings.stall_after)

    def _has_failed(self, ticket: Ticket, settings: Settings, waited: bool) -> None:
        """Raise because the ticket or the turn did not come, unless the statement needs neither."""
        if ticket.gives_up:
            return
        sql = f"{shorten(ticket.owner.last_statement)!r} was not run."
        if ticket.state is TicketState.REFUSED:
            raise QueueFull(
                f"{self.queue.waiting} writers are already waiting "
                f"(max_waiting={settings.max_waiting}); {sql} {self.holder_text()}"
            )
        self.counters.timeouts += 1
        when = f"within {settings.queue_timeout:g} s" if waited else "at once (NOWAIT)"
        if ticket.state in (TicketState.HELD, TicketState.TAKEN):
            raise QueueTimeout(
                f"This process did not get its turn to write to {self.database!r} {when}; {sql} "
                f"{self._other_process()}"
            )
        raise QueueTimeout(f"The write ticket was not free {when}; {sql} {self.holder_text()}")

    def release(self, ticket: Ticket) -> None:
        """Give the ticket back. No effect on a ticket that was taken away."""
        self.queue.release(ticket)
        held = time.monotonic() - ticket.granted_at
        self.counters.holds.observe(held)
        if events.observers:
            owner: Owner = ticket.owner
            events.emit(
                events.TicketHeld(
                    self.place,
                    seconds=held,
                    wrote=ticket.claimed,
                    task=name_of(owner.task),
                    statement=shorten(owner.last_statement),
                    where=where_it_ends(ticket) if held >= events.LONG else "",
                )
            )

    def release_after(self, lease: Lease | None, ticket: Ticket | None) -> None:
        """Give back a connection, then the ticket, after work in the connection's thread."""
        try:
            if lease is not None:
                lease.end()
        finally:
            if ticket is not None:
                self.release(ticket)

    def tell_of_wait(
        self, ticket: Ticket, seconds: float, outcome: str, *, ago: float = 0.0
    ) -> None:
        """Tell the subscribers of events how long a transaction has waited, and what for."""
        statement, at = shorten(ticket.owner.last_statement), time.time() - ago
        events.emit(events.TicketWait(self.place, seconds, outcome, statement, at=at))

    @property
    def place(self) -> str:
        """The database in events."""
        return self.path or self.database

    def holder(self) -> Holder | None:
        """The transaction that holds the ticket now."""
        ticket = self.queue.holder
        return None if ticket is None else describe(ticket)

    def first_in_line(self, limit: int) -> list[Waiting]:
        """The transactions that wait for the ticket, those in front first. Any thread."""
        now = time.monotonic()
        return [
            Waiting(
                task=name_of(ticket.owner.task),
                waited=now - ticket.asked_at,
                statement=shorten(ticket.owner.last_statement),
            )
            for ticket in islice(self.queue.waiters(), limit)
        ]

    def holder_text(self) -> str:
        """A sentence about the holder, for a message."""
        holder = self.holder()
        if holder is None:
            return "The ticket is free now."
        others = (
            f" The holder waits for another process. {self._other_process()}"
            if self.turn.waits
            else ""
        )
        return f"Its holder: {holder}.{others}"

    def _other_process(self) -> str:
        """A sentence about the process that has the turn on the file."""
        last = self.turn.holder()
        if last is None:
            return "Another process is writing to the file; the system does not say which one."
        pid, since = last
        here = pid == os.getpid()
        who = "another engine of this process" if here else describe_process(pid)
        text = f"The turn has been held by {who} for {max(time.time() - since, 0.0):.1f} s."
        others = nesting.neighbours(self.queue, self.identity) if here else []
        return text + _holders_text(each.queue.holder for each in others if each.turn.has_lock)

    def writers_text(self) -> str:
        """Sentences about the transactions of other engines of this process that have written."""
        others = nesting.neighbours(self.queue, self.identity)
        holders = (each.queue.holder for each in others)
        return _holders_text(each for each in holders if each is not None and each.owner.wrote)

    async def until_free(self, deadline: float | None, owner: Owner) -> None:
        """Wait until the present holder and all present waiters have given the ticket back.

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


def _holders_text(holders: Iterable[Ticket | None]) -> str:
    return "".join(f" Its holder: {describe(each)}." for each in holders if each is not None)
