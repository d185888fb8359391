"""TicketQueue: who may write next. A fair hand-off between tasks that knows nothing of databases.

Tickets are served first come, first served within a priority. A release hands the ticket to the
next waiter itself: nobody can barge in between, and nobody else is woken for nothing.

Waiters may live in several event loops, and so in several threads. Every change of the queue is a
plain function; they run one at a time (:class:`qsession.handoff.Serial`), and no thread blocks.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from qsession.stats import HistogramRecorder
from qsession.waiting.handoff import Serial, Waiter

AGEING = 1.0
"""Seconds of waiting that outweigh one step of priority."""


class TicketState(Enum):
    """The life of a ticket: asked for, then waiting or held at once, then one of the ends."""

    NEW = "new"
    WAITING = "waiting"
    HELD = "held"
    RELEASED = "released"
    LEFT = "left"  # gave up its place: cancelled while waiting
    EXPIRED = "expired"  # waited longer than its timeout
    REFUSED = "refused"  # the queue was full
    DISMISSED = "dismissed"  # told to go on without the ticket


class Ticket(Waiter):
    """One request to write, by ``owner``."""

    __slots__ = ("asked_at", "owner", "priority", "state", "taken_at")

    def __init__(self, owner: Any, priority: int = 0) -> None:
        super().__init__()
        self.owner = owner
        self.priority = priority
        self.state = TicketState.NEW
        self.asked_at = 0.0
        self.taken_at = 0.0

    def __repr__(self) -> str:
        return f"<Ticket {self.state.value} priority={self.priority} owner={self.owner!r}>"


class TicketQueue:
    """A queue for one ticket.

    Invariant: while ``holder`` is None nobody waits, and ``holder`` is the only ticket in the
    state HELD.
    """

    def __init__(self) -> None:
        self.holder: Ticket | None = None
        self.waiting = 0
        self.acquired = 0
        self.waits = HistogramRecorder()
        self._levels: dict[int, OrderedDict[Ticket, None]] = {}
        self.on_free: Callable[[], None] | None = None
        """Called when the ticket is given back and nobody takes it; must not wait."""
        self._serial = Serial()
        self._serve = self._serial.serve

    def __repr__(self) -> str:
        return f"<TicketQueue holder={self.holder!r} waiting={self.waiting}>"

    def take(self, ticket: Ticket, max_waiting: int | None = None) -> TicketState:
        """Ask for the ticket without waiting: HELD, WAITING (then ``await wait()``) or REFUSED."""
        if ticket.state is not TicketState.NEW:
            raise ValueError(f"{ticket!r} was used before")
        self._serve(self._take, (ticket, max_waiting))
        return ticket.state

    async def wait(self, ticket: Ticket, timeout: float | None) -> TicketState:
        """Wait until the ticket is HELD, DISMISSED, or EXPIRED after ``timeout`` seconds.

        Cancelled while waiting, the place is given up; cancelled at the moment of hand-off, the
        ticket goes to the next in the queue.
        """
        future = ticket.prepare()
        if ticket.state not in (TicketState.NEW, TicketState.WAITING):
            return ticket.state  # decided by another thread before there was a future to wake
        await ticket.wait(future, timeout, self._serial, self._expire, self._leave)
        return ticket.state

    def release(self, ticket: Ticket) -> None:
        """Give the ticket back; the next in the queue holds it from now on."""
        self._serve(self._release, ticket)

    def transfer(self, ticket: Ticket, heir: Ticket) -> None:
        """Give the held ``ticket`` to ``heir`` past the queue."""
        self._serve(self._transfer, (ticket, heir))

    def dismiss(self, ticket: Ticket) -> None:
        """Tell a waiting ticket to go on without; no effect on one that no longer waits."""
        self._serve(self._dismiss, ticket)

    def between(self, function: Callable[[Any], None], subject: Any) -> None:
        """Call ``function(subject)`` while nobody takes, gets or gives back the ticket.

        It runs at once, or in the thread that is changing the queue now, right behind that.
        """
        self._serve(function, subject)

    def waiters(self) -> Iterator[Ticket]:
        """Those who wait now, in order within each priority."""
        for level in list(self._levels.values()):
            yield from list(level)

    def _take(self, request: tuple[Ticket, int | None]) -> None:
        ticket, max_waiting = request
        ticket.asked_at = time.monotonic()
        if self.holder is None:
            self._grant(ticket)
        elif max_waiting is not None and self.waiting >= max_waiting:
            ticket.state = TicketState.REFUSED
            ticket.wake()
        else:
            ticket.state = TicketState.WAITING
            self._levels.setdefault(ticket.priority, OrderedDict())[ticket] = None
            self.waiting += 1

    def _grant(self, ticket: Ticket) -> bool:
        """Make ``ticket`` the holder; False if it can no longer take it.

        It is woken last: its task may run in another thread before this function returns.
        """
        before, taken_at = ticket.state, time.monotonic()
        ticket.state, ticket.taken_at, self.holder = TicketState.HELD, taken_at, ticket
        if not ticket.wake():
            ticket.state, self.holder = before, None
            return False
        self.acquired += 1
        self.waits.observe(taken_at - ticket.asked_at)
        return True

    def _release(self, ticket: Ticket) -> None:
        assert self.holder is ticket, f"{ticket!r} is released but {self.holder!r} holds"
        ticket.state = TicketState.RELEASED
        self.holder = None
        while (heir := self._next()) is not None:
            self._drop(heir, TicketState.LEFT)
            if self._grant(heir):
                return
        if self.on_free is not None:
            self.on_free()

    def _transfer(self, pair: tuple[Ticket, Ticket]) -> None:
        ticket, heir = pair
        assert self.holder is ticket, f"{ticket!r} is transferred but {self.holder!r} holds"
        ticket.state = TicketState.RELEASED
        heir.asked_at = time.monotonic()
        self._grant(heir)

    def _next(self) -> Ticket | None:
        """First come, first served within a priority; between them, waiting makes up for it."""
        heads = [next(iter(level)) for level in self._levels.values()]
        if len(heads) < 2:
            return heads[0] if heads else None
        return min(heads, key=lambda head: head.asked_at + head.priority * AGEING)

    def _drop(self, ticket: Ticket, state: TicketState) -> None:
        level = self._levels[ticket.priority]
        del level[ticket]
        if not level:
            del self._levels[ticket.priority]
        self.waiting -= 1
        ticket.state = state

    def _leave(self, ticket: Ticket) -> None:
        if ticket.state is TicketState.WAITING:
            self._drop(ticket, TicketState.LEFT)
        elif ticket.state is TicketState.HELD:  # cancelled at the moment of hand-off
            self._release(ticket)

    def _expire(self, ticket: Ticket) -> None:
        if ticket.state is TicketState.WAITING:
            self._drop(ticket, TicketState.EXPIRED)
            ticket.wake()

    def _dismiss(self, ticket: Ticket) -> None:
        if ticket.state is TicketState.WAITING:
            self._drop(ticket, TicketState.DISMISSED)
            ticket.wake()
