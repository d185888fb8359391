"""StallWatch: takes the ticket away from a holder that has only read and makes others wait.

The clock alone is not enough: after a pause of the whole loop every task looks idle, even a holder
that is about to continue. So idling is counted in ticks, and each tick is scheduled after the one
before: a loop that stood still counts as one tick. If the holder is in another loop, that loop must
turn before a tick counts. A loop that does not turn at all is detected by the clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from qsession.config import Settings
from qsession.errors import QSessionError
from qsession.sqlite.queue.holder import describe
from qsession.sqlite.queue.idle_places import IdlePlaces, place_of
from qsession.sqlite.queue.owner import Owner
from qsession.waiting.ticket import Ticket, TicketQueue

TICK = 0.01
"""Seconds between two checks of the holder, or less if ``stall_after`` is short."""
LONG_READ = 0.01
"""Seconds of processor time after which a SELECT of an ``auto`` holder loses the ticket.

In access ``write``, and for clock time, the limit is ``stall_after``: on a busy machine any SELECT
may take 10 ms by the clock. If the loop is busy, a SELECT may take much longer by the clock, so the
turns of the loop must reach the limit as well.
"""
PER_STALL = 5
"""The least number of checks in ``stall_after``."""
SHORTEST = 2
"""The number of checks for which every holder may idle. In the second one its loop has turned, so
it waits for something else.
"""

logger = logging.getLogger("qsession")


class Verdict(Enum):
    """What to do about a holder while others wait."""

    WAIT = "nothing"
    TAKE = "take the ticket away"
    WARN = "log that it has written and idles"
    ABANDON = "roll it back: its event loop is closed"


@dataclass(frozen=True, slots=True)
class Look:
    """The state of a holder at one check."""

    claimed: bool = False
    """Whether it has written or taken the lock."""
    running: bool = False
    reads_for: tuple[float, float] = (0.0, 0.0)
    """How long the present SELECT has run: processor time and clock time, in seconds."""
    runs_for: float = 0.0
    """How long the present statement has run, in seconds, counted in turns of its loop. The clock
    would include time in which the result was ready, and the loop was too busy to take it."""
    promised: bool = False
    """Whether its reads must not change before it writes, unless it idles."""
    holds_for: float = 0.0
    """How long it has had the ticket, in seconds, counted in turns of the watching loop."""
    idles_for: float = 0.0
    """How long it has been idle, in seconds, counted in turns of its loop."""
    stands_for: float = 0.0
    """How long its loop, if it is another one, has not turned, in seconds."""
    closed: bool = False
    """Whether its loop is closed."""
    idles_long: bool = False
    """Whether it waits at a line where others have idled for long."""


def patience(stall_after: float, waiting: int, insists: bool) -> float:
    """For how long a holder that has only read may idle, in seconds, while ``waiting`` others wait.

    Together they wait for it for no longer than one of them would. So a handler that awaits a web
    service for 100 ms in between keeps one writer waiting, but not a hundred. If the holder
    ``insists``, its reads must not change, or did change before it wrote, and it may idle for
    ``stall_after`` in any case.
    """
    shortest = SHORTEST * _interval(stall_after)
    return stall_after if insists else max(stall_after / max(waiting, 1), shortest)


def _interval(stall_after: float) -> float:
    """Seconds between two checks."""
    return max(min(TICK, stall_after / PER_STALL), 0.001)


def judge(look: Look, stall_after: float, warn_after: float, may_idle: float) -> Verdict:
    """What to do about a holder while others wait. ``may_idle``: from :func:`patience`."""
    if look.claimed:
        if look.closed:
            return Verdict.ABANDON
        idles = not look.running and max(look.idles_for, look.stands_for) >= warn_after
        return Verdict.WARN if idles else Verdict.WAIT
    own, by_the_clock = look.reads_for
    if look.closed or max(look.stands_for, min(by_the_clock, look.runs_for)) >= stall_after:
        return Verdict.TAKE
    # A report that reads a page, pauses, and reads on never idles for long, but makes others wait.
    if not look.promised and (own >= LONG_READ or look.holds_for >= stall_after):
        return Verdict.TAKE
    if not look.running and (look.idles_long or look.idles_for >= may_idle):
        return Verdict.TAKE
    return Verdict.WAIT


class Wanted(Protocol):
    """The turn between processes."""

    def wanted(self) -> bool:
        """Whether another process waits for the turn."""


class StallWatch:
    """Watches the holder of a queue, from each loop that has a holder or a waiter."""

    def __init__(self, queue: TicketQueue, turn: Wanted, settings: Settings) -> None:
        self._queue = queue
        self._turn = turn
        self._settings = settings
        self.places = IdlePlaces()
        self._watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopWatch] = (
            weakref.WeakKeyDictionary()
        )

    def start(self, waits: bool = False) -> None:
        """Start to watch from the running loop. ``waits``: a task begins to wait for the ticket."""
        loop = asyncio.get_running_loop()
        watch = self._watches.get(loop)
        if watch is None:
            watch = self._watches[loop] = _LoopWatch(
                self._queue, self._turn, self._settings, self.places, weakref.ref(loop)
            )
        watch.start()
        if waits and (self.places or watch.knows(self._queue.holder)):
            watch.judge()

    def look_soon(self) -> None:
        """Check the holder, which has just read, when its task waits for something."""
        watch = self._watches.get(asyncio.get_running_loop())
        if watch is not None:
            watch.judge_soon()


class _LoopWatch:
    """The watch of one loop."""

    def __init__(
        self,
        queue: TicketQueue,
        turn: Wanted,
        settings: Settings,
        places: IdlePlaces,
        loop: weakref.ref[asyncio.AbstractEventLoop],
    ) -> None:
        self._queue = queue
        self._turn = turn
        self._settings = settings
        self._places = places
        self._loop = loop
        self._interval = _interval(settings.stall_after)
        self._ticks = False
        self._last: weakref.ref[Ticket] | None = None
        """The holder at the last check."""
        self._held_ticks = 0
        """The number of consecutive checks that found this holder."""
        self._activity = 0
        """The holder's activity. When it changes, the counts below begin again."""
        self._idle_ticks = 0
        self._running_ticks = 0
        self._asked_at: float | None = None
        """When the holder's loop was asked to turn."""
        self._warned = False

    @property
    def _holder(self) -> Ticket | None:
        return None if self._last is None else self._last()

    def start(self) -> None:
        if not self._ticks:
            self._ticks = True
            self._notice()
            self._tick_later()

    def _tick_later(self) -> None:
        """Schedule the next tick. The loop must not keep an unused engine alive."""
        loop = self._loop()
        if loop is not None:
            loop.call_later(self._interval, _tick, weakref.ref(self))

    def knows(self, holder: Ticket | None) -> bool:
        """Whether it has checked this holder before, and can judge it at once."""
        return holder is not None and holder is self._holder

    def tick(self) -> None:
        """Check the holder, and schedule the next tick while there is one."""
        self._ticks = self._queue.holder is not None or self._queue.waiting > 0
        if not self._ticks:
            self._last = None
            return
        self._tick_later()
        self._held_ticks += 1
        if not self._notice():
            self._count_idling()
        self.judge()

    def _notice(self) -> bool:
        """Whether the holder has changed, or has done something, since the last check."""
        holder = self._queue.holder
        activity = 0 if holder is None else holder.owner.activity
        if holder is self._holder and activity == self._activity:
            return False
        if holder is not self._holder:
            self._held_ticks = 0
        self._last = None if holder is None else weakref.ref(holder)
        self._activity = activity
        self._idle_ticks, self._running_ticks = 0, 0
        self._asked_at, self._warned = None, False
        return True

    def _count_idling(self) -> None:
        if self._holder is None:
            return
        home = self._holder.owner.loop
        if home is None or home is self._loop():
            self._turned()
        elif self._asked_at is None:
            self._asked_at = time.monotonic()
            with suppress(RuntimeError):  # the loop is closed
                home.call_soon_threadsafe(self._turned)

    def _turned(self) -> None:
        """Count a turn of the holder's loop. In that loop."""
        holder, self._asked_at = self._holder, None
        if holder is not None and holder.owner.running:
            self._running_ticks += 1
        elif holder is not None:
            self._idle_ticks += 1

    def judge_soon(self) -> None:
        """Call :meth:`judge` when the running task waits for something."""
        loop = self._loop()
        if loop is not None:
            loop.call_soon(self.judge)

    def judge(self) -> None:
        """Act on the holder if others wait for it."""
        self._notice()
        holder, settings = self._holder, self._settings
        if holder is None:
            return
        owner: Owner = holder.owner
        look = self._look(holder, owner)
        if look.claimed and look.holds_for >= settings.stall_after:
            self._queue.dismiss()  # a SELECT waits only while the queue moves
        may_idle = patience(settings.stall_after, self._queue.waiting, owner.insists)
        verdict = judge(look, settings.stall_after, settings.warn_after, may_idle)
        if verdict is Verdict.WAIT or not (self._queue.waiting or self._turn.wanted()):
            return
        if verdict is Verdict.TAKE:
            long = look.idles_long or look.holds_for >= settings.stall_after
            place = self._place(owner) if long else None
            if self._queue.take_away(holder):
                owner.taken_away(place, stalled=not look.idles_long)
        elif verdict is Verdict.ABANDON:
            owner.abandon(
                QSessionError(
                    "The transaction was rolled back, and nothing was written: it held the write "
                    "ticket while others waited, and its event loop had been closed. End every "
                    "transaction before you close its loop."
                )
            )
        elif not self._warned:
            self._warned = True
            described = describe(holder)
            logger.warning(
                "%d writers are waiting for a transaction that has been idle for %.1f s: %s%s",
                self._queue.waiting,
                max(look.idles_for, look.stands_for),
                described,
                described.traceback,
            )

    def _look(self, holder: Ticket, owner: Owner) -> Look:
        asked_at = self._asked_at
        return Look(
            claimed=holder.claimed or owner.locked_by_driver,
            running=owner.running,
            reads_for=owner.reads_for(),
            runs_for=self._running_ticks * self._interval,
            promised=owner.promised,
            holds_for=self._held_ticks * self._interval,
            idles_for=self._idle_ticks * self._interval,
            stands_for=0.0 if asked_at is None else time.monotonic() - asked_at,
            closed=owner.loop is not None and owner.loop.is_closed(),
            idles_long=bool(self._places) and self._place(owner) in self._places,
        )

    def _place(self, owner: Owner) -> int | None:
        """Where a holder of this loop idles; None if it runs or belongs to another loop."""
        if owner.running or owner.loop is not self._loop():
            return None
        return place_of(owner.task)


def _tick(watch: weakref.ref[_LoopWatch]) -> None:
    found = watch()
    if found is not None:
        found.tick()
