"""TicketQueue: a fair queue for one ticket, the right to write next.

Within a priority, tickets are granted first come, first served. A release hands the ticket directly
to the next waiter: no other task can take it in between, and only that waiter is woken.

Any thread can take the ticket away from its holder until the holder claims it. Both sides pop the
same one-element list. A pop is atomic, so exactly one of them succeeds, and neither waits.

Waiters may be in several event loops and threads. Each change of the queue is a plain function.
These functions run one at a time (:class:`.handoff.Serial`), and no thread blocks.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from qsession.statistics import HistogramRecorder
from qsession.waiting.handoff import Serial, Waiter

AGEING = 1.0
"""Seconds of waiting that are worth one step of priority."""


class TicketState(Enum):
    """The states of a ticket: new, then waiting or held, then one of the final states."""

    NEW = "new"
    WAITING = "waiting"
    HELD = "held"
    RELEASED = "released"
    LEFT = "left"  # cancelled while waiting
    EXPIRED = "expired"  # waited longer than its timeout
    REFUSED = "refused"  # the queue was full
    DISMISSED = "dismissed"  # told to continue without the ticket
    TAKEN = "taken"  # taken away from a holder that had not claimed it


class Ticket(Waiter):
    """One request to write, by ``owner``."""

    __slots__ = (
        "_removable",
        "asked_at",
        "claimed",
        "detached",
        "gives_up",
        "granted_at",
        "on_granted",
        "owner",
        "priority",
        "state",
    )

    def __init__(self, owner: Any, priority: int = 0, gives_up: bool = False) -> None:
        super().__init__()
        self.owner = owner
        self.gives_up = gives_up
        """Whether it continues without the ticket if the queue does not move."""
        self.priority = priority
        self.state = TicketState.NEW
        self.asked_at = 0.0
        self.granted_at = 0.0
        self.claimed = False
        """Whether it can no longer be taken away."""
        self.detached = False
        """Whether other code gives it back, even if the waiting task is cancelled."""
        self.on_granted: Callable[[], bool] | None = None
        """Called when it is granted, in any thread, instead of waking a task. It must not wait. It
        returns False if the owner no longer wants the ticket.
        """
        self._removable: list[None] = [None]

    def claim(self) -> bool:
        """Keep it until it is released. False if it was already taken away. Any thread."""
        if not self.claimed:
            try:
                self._removable.pop()
            except IndexError:
                return False
            self.claimed = True
        return True

    def lose(self) -> bool:
        """Remove the right to claim it, before it is taken away. False if it is claimed."""
        try:
            self._removable.pop()
        except IndexError:
            return False
        return True

    @property
    def held(self) -> bool:
        """Whether its owner holds the ticket now."""
        return self.state is TicketState.HELD

    def __repr__(self) -> str:
        return f"<Ticket {self.state.value} priority={self.priority} owner={self.owner!r}>"


class TicketQueue:
    """A queue for one ticket.

    Invariant: while ``holder`` is None no ticket waits, and ``holder`` is the only ticket in the
    state HELD.
    """

    def __init__(self) -> None:
        self.holder: Ticket | None = None
        self.waiting = 0
        self.acquired = 0
        self.taken_away = 0
        self.waits = HistogramRecorder()
        self._levels: dict[int, OrderedDict[Ticket, None]] = {}
        self._may_give_up: dict[Ticket, None] = {}
        """The waiters with ``gives_up``, to be found without a search: 100,000 others may wait."""
        self.on_given_up: Callable[[bool], None] | None = None
        """Called before the ticket passes on, with True if another one waits; must not wait."""
        self.on_taken: Callable[[Ticket], None] | None = None
        """Called after a ticket was taken away, by the thread that took it."""
        self.on_free: Callable[[], None] | None = None
        """Called when the ticket is given back and no ticket waits; must not wait."""
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

        A task that is cancelled leaves the queue. If it just got the ticket, the ticket goes to the
        next waiter.
        """
        future = ticket.prepare()
        if ticket.state not in (TicketState.NEW, TicketState.WAITING):
            return ticket.state  # another thread decided before there was a future to wake
        await ticket.wait(future, timeout, self._serial, self._expire, self._leave)
        return ticket.state

    async def answer(
        self, ticket: Ticket, future: asyncio.Future[None], timeout: float | None
    ) -> None:
        """Await the future of a ticket with ``on_granted``, whose owner resolves it.

        If cancelled, as in :meth:`wait`; a ticket that is still held is released, unless it is
        ``detached``.
        """
        await ticket.wait(future, timeout, self._serial, self._expire, self._leave)

    def release(self, ticket: Ticket) -> None:
        """Give the ticket back, and grant it to the next waiter.

        No effect on a ticket that was taken away.
        """
        if ticket.claim():
            self._serve(self._release, ticket)

    def take_away(self, ticket: Ticket) -> bool:
        """Pass the held ``ticket`` to the next waiter. False if its holder has claimed it."""
        if ticket.state is not TicketState.HELD or not ticket.lose():
            return False
        self._serve(self._take_away, ticket)
        if self.on_taken is not None:
            self.on_taken(ticket)
        return True

    def dismiss(self, which: Callable[[Ticket], bool] = lambda ticket: True) -> None:
        """Tell waiters with ``gives_up`` to continue without the ticket."""
        for ticket in list(self._may_give_up):
            if which(ticket):
                self._serve(self._dismiss, ticket)

    def leave(self, ticket: Ticket) -> None:
        """Leave the queue. If the ticket is held, it goes to the next waiter."""
        self._serve(self._leave, ticket)

    def if_free(self, function: Callable[[], None]) -> None:
        """Call a function, which must not wait, if the ticket is free; it stays free meanwhile."""
        self._serve(self._if_free, function)

    def waiters(self) -> Iterator[Ticket]:
        """The tickets that wait now, in order within each priority."""
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
            if ticket.gives_up:
                self._may_give_up[ticket] = None

    def _grant(self, ticket: Ticket) -> bool:
        """Make ``ticket`` the holder; False if its owner no longer wants it.

        Waking comes after the other changes, because the task may run in another thread at once.
        """
        before, now = ticket.state, time.monotonic()
        ticket.state, ticket.granted_at, self.holder = TicketState.HELD, now, ticket
        if not (ticket.wake if ticket.on_granted is None else ticket.on_granted)():
            ticket.state, self.holder = before, None
            return False
        self.acquired += 1
        self.waits.observe(now - ticket.asked_at)
        return True

    def _release(self, ticket: Ticket) -> None:
        self._pass_on(ticket, TicketState.RELEASED)

    def _take_away(self, ticket: Ticket) -> None:
        self.taken_away += 1
        self._pass_on(ticket, TicketState.TAKEN)

    def _pass_on(self, ticket: Ticket, state: TicketState) -> None:
        assert self.holder is ticket, f"{ticket!r} is given up but {self.holder!r} holds"
        ticket.state = state
        if self.on_given_up is not None:
            self.on_given_up(self.waiting > 0)
        self.holder = None
        while (heir := self._next()) is not None:
            self._drop(heir, TicketState.LEFT)
            if self._grant(heir):
                return
        if self.on_free is not None:
            self.on_free()

    def _next(self) -> Ticket | None:
        """First come, first served within a priority; long waiting outweighs priority."""
        heads = [next(iter(level)) for level in self._levels.values()]
        if len(heads) < 2:
            return heads[0] if heads else None
        return min(heads, key=lambda head: head.asked_at + head.priority * AGEING)

    def _drop(self, ticket: Ticket, state: TicketState) -> None:
        level = self._levels[ticket.priority]
        del level[ticket]
        if not level:
            del self._levels[ticket.priority]
        self._may_give_up.pop(ticket, None)
        self.waiting -= 1
        ticket.state = state

    def _leave(self, ticket: Ticket) -> None:
        if ticket.state is TicketState.WAITING:
            self._drop(ticket, TicketState.LEFT)
        elif ticket.state is TicketState.HELD and not ticket.detached and ticket.claim():
            self._release(ticket)  # cancelled at the hand-off

    def _if_free(self, function: Callable[[], None]) -> None:
        if self.holder is None:
            function()

    def _expire(self, ticket: Ticket) -> None:
        if ticket.state is TicketState.WAITING:
            self._drop(ticket, TicketState.EXPIRED)
            ticket.wake()

    def _dismiss(self, ticket: Ticket) -> None:
        if ticket.state is TicketState.WAITING:
            self._drop(ticket, TicketState.DISMISSED)
            ticket.wake()
