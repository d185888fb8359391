"""StallWatch: notices a holder that idles while others wait, here or in other processes.

Time alone would be wrong: after a pause of the whole loop everybody looks idle, the holder whose
wake-up is already due included. So the watch counts its own ticks, each set only after the one
before: a loop that stood still counts for one. The holder's loop, where it is that of another
thread, has to turn before a tick counts.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from qsession.config import Settings
from qsession.sqlite.processes.turn import FileTurn
from qsession.sqlite.queue.holder import describe
from qsession.waiting.ticket import TicketQueue

if TYPE_CHECKING:
    from qsession.sqlite.place import Place

TICKS = 5
"""A holder is stalled when it was seen idle this many times in a row."""

logger = logging.getLogger("qsession")


class StallWatch:
    """Looks at the holder every ``stall_after / TICKS`` seconds, while there is one."""

    def __init__(self, queue: TicketQueue, turn: FileTurn, settings: Settings) -> None:
        self._queue = queue
        self._turn = turn
        self._settings = settings
        self._interval = max(settings.stall_after / TICKS, 0.001)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen: tuple[Place, int] | None = None
        self._idle_ticks = 0
        self._warned = False

    def start(self) -> None:
        """Watch from the running loop, unless another one does already."""
        if self._loop is None or not self._loop.is_running():
            loop = self._loop = asyncio.get_running_loop()
            self._seen = None
            self._tick_later(loop)

    def _tick_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop keeps no engine alive that is forgotten."""
        loop.call_later(self._interval, _tick, weakref.ref(self), loop)

    def _needed(self) -> bool:
        return self._queue.holder is not None

    def stalled(self) -> bool:
        """Whether the holder that was last looked at is stalled, and still holds."""
        return self._idle_ticks >= TICKS and self._seen == self._look()

    def _look(self) -> tuple[Place, int] | None:
        ticket = self._queue.holder
        if ticket is None:
            return None
        transaction: Place = ticket.owner
        return transaction, transaction.activity

    def tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the holder, and look again later while there is one."""
        if self._loop is not loop:
            return  # the loop of another thread watches
        if not self._needed():
            self._loop = None
            if self._needed():  # another thread began to wait just now, and counts on this one
                self.start()
            return
        now = self._look()
        home = None if now is None else now[0].loop
        if home is None or home is loop or not home.is_running():
            self._judge()
        else:  # its thread may only be short of time: let its loop turn before it counts as idle
            with suppress(RuntimeError):
                home.call_soon_threadsafe(self._judge_in, loop)
        self._tick_later(loop)

    def _judge_in(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(self._judge)

    def _judge(self) -> None:
        now = self._look()
        if now is None or now != self._seen:
            self._seen = now
            self._idle_ticks = 0
            self._warned = False
        elif self._is_excused(now[0]):
            self._idle_ticks = 0
        else:
            self._idle_ticks += 1
            if self._idle_ticks >= TICKS:
                self._stall(*now)

    def _is_excused(self, transaction: Place) -> bool:
        """Whether nobody waits for it, or it is at work, or those who have its turn are.

        Waiting for the turn is not work. But while other processes write one after the other,
        nobody is stalled: a read that went to a snapshot now could not be followed by a write.
        """
        if not (self._queue.waiting or self._turn.waits or self._turn.wanted()):
            return True
        if self._turn.waits and self._turn.moved():
            return True
        return bool(transaction.busy) and not (transaction.forsaken or self._turn.waits)

    def _stall(self, transaction: Place, activity: int) -> None:
        """A holder that has only read gives up the ticket; readers stop waiting for any other."""
        if transaction.forsaken:
            holder = self._queue.holder
            if holder is not None and holder.owner is transaction:
                transaction.forsake(holder)
            return
        if transaction.suspendable():
            home = transaction.loop
            if home is None or home.is_closed() or home is asyncio.get_running_loop():
                transaction.suspend_if_idle(activity)
            else:
                home.call_soon_threadsafe(transaction.suspend_if_idle, activity)
            return
        waiting = self._queue.waiting
        elsewhere = self._turn.waits
        for ticket in self._queue.waiters():
            if ticket.owner.may_stop_waiting(elsewhere):
                self._queue.dismiss(ticket)
        if elsewhere and transaction.may_stop_waiting(elsewhere):
            self._turn.stop_waiting()
        holder = self._queue.holder
        idle = self._idle_ticks * self._interval
        if idle >= self._settings.warn_after and not self._warned and holder is not None:
            self._warned = True
            described = describe(holder)
            logger.warning(
                "%d writers wait for a transaction that has idled for %.1f s: %s%s",
                waiting,
                idle,
                described,
                described.traceback,
            )


def _tick(watch: weakref.ref[StallWatch], loop: asyncio.AbstractEventLoop) -> None:
    found = watch()
    if found is not None:
        found.tick(loop)
