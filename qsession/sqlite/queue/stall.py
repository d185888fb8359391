"""StallWatch: takes the ticket away from a holder that has only read and is in the way of others.

Time alone would be wrong: after a pause of the whole loop everybody looks idle, also the holder
whose wake-up is already due. So idling is counted in ticks, each set only after the one before: a
loop that stood still counts for one. The holder's loop, where it is another one, has to turn before
a tick counts; a loop that does not turn at all is in the way as well, and that is told by time.
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
"""Seconds between two looks at the holder, or less where ``stall_after`` is short."""
LONG_READ = 0.01
"""Seconds of processor time after which a SELECT of the holder is in the way, in access ``auto``.

In access ``write``, and by the clock, it is ``stall_after``: on a busy machine any SELECT may take
10 ms, and nobody would have idled. Behind a busy loop it may take any time, so its turns have to
say the same.
"""
PER_STALL = 5
"""Looks at the least in ``stall_after``."""

logger = logging.getLogger("qsession")


class Verdict(Enum):
    """What is to be done about a holder while others wait."""

    WAIT = "nothing"
    TAKE = "take the ticket away"
    WARN = "tell that it has written and idles"
    ABANDON = "roll it back: its event loop is closed"


@dataclass(frozen=True, slots=True)
class Look:
    """A holder, as it looks while others wait for it."""

    claimed: bool = False
    """Whether it has written, or locked."""
    running: bool = False
    reads_for: tuple[float, float] = (0.0, 0.0)
    """Seconds that a statement which only reads has run for: by itself, and by the clock."""
    runs_for: float = 0.0
    """Seconds that a statement has run for, counted in turns of its loop: after a loop was busy,
    the clock counts the time in which a result lay ready and nobody could take it."""
    promised: bool = False
    """Whether nothing that it reads may change before it writes, unless it idles."""
    holds_for: float = 0.0
    """Seconds that it has had the ticket, counted in turns of the loop that looks."""
    idles_for: float = 0.0
    """Seconds since it did something, counted in turns of its loop."""
    stands_for: float = 0.0
    """Seconds that its loop, which is another one, has not turned."""
    closed: bool = False
    """Whether its loop is closed."""
    idles_long: bool = False
    """Whether it stands where others have idled for ``stall_after``."""


def judge(look: Look, stall_after: float, warn_after: float) -> Verdict:
    """What is to be done about a holder that others wait for."""
    if look.claimed:
        if look.closed:
            return Verdict.ABANDON
        idles = not look.running and max(look.idles_for, look.stands_for) >= warn_after
        return Verdict.WARN if idles else Verdict.WAIT
    own, by_the_clock = look.reads_for
    if look.closed or max(look.stands_for, min(by_the_clock, look.runs_for)) >= stall_after:
        return Verdict.TAKE
    # A report that reads a page, pauses, and reads on never idles for long, and is in the way.
    if not look.promised and (own >= LONG_READ or look.holds_for >= stall_after):
        return Verdict.TAKE
    if not look.running and (look.idles_long or look.idles_for >= stall_after):
        return Verdict.TAKE
    return Verdict.WAIT


class Wanted(Protocol):
    """The turn between processes."""

    def wanted(self) -> bool:
        """Whether another process waits for it."""


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
        """Watch from the running loop, if it does not yet. ``waits``: somebody begins to wait."""
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
        """Look at the holder once its task waits for something: it has just read."""
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
        self._interval = max(min(TICK, settings.stall_after / PER_STALL), 0.001)
        self._ticks = False
        self._last: weakref.ref[Ticket] | None = None
        """The holder that it looked at last. It keeps nobody alive."""
        self._held_ticks = 0
        """How often it was seen in a row, at work or not."""
        self._activity = 0
        """Of the holder; what follows is counted anew when it changes."""
        self._idle_ticks = 0
        self._running_ticks = 0
        self._asked_at: float | None = None
        """Since when the holder's loop has been asked to turn."""
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
        """The loop keeps no engine alive that is forgotten."""
        loop = self._loop()
        if loop is not None:
            loop.call_later(self._interval, _tick, weakref.ref(self))

    def knows(self, holder: Ticket | None) -> bool:
        """Whether it has looked at a holder before, so that it can judge it at once."""
        return holder is not None and holder is self._holder

    def tick(self) -> None:
        """Look at the holder, and again later while there is one."""
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
        """Whether the holder is another one, or has done something, since it was looked at last."""
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
            with suppress(RuntimeError):  # it is closed
                home.call_soon_threadsafe(self._turned)

    def _turned(self) -> None:
        """The holder's loop turns. In that loop."""
        holder, self._asked_at = self._holder, None
        if holder is not None and holder.owner.running:
            self._running_ticks += 1
        elif holder is not None:
            self._idle_ticks += 1

    def judge_soon(self) -> None:
        """As :meth:`judge`, when the task that runs now waits for something."""
        loop = self._loop()
        if loop is not None:
            loop.call_soon(self.judge)

    def judge(self) -> None:
        """Do something about the holder if others wait for it."""
        self._notice()
        holder, settings = self._holder, self._settings
        if holder is None:
            return
        owner: Owner = holder.owner
        look = self._look(holder, owner)
        if look.claimed and look.holds_for >= settings.stall_after:
            self._queue.dismiss()  # a SELECT waits for as long as the queue moves, and no longer
        verdict = judge(look, settings.stall_after, settings.warn_after)
        if verdict is Verdict.WAIT or not (self._queue.waiting or self._turn.wanted()):
            return
        if verdict is Verdict.TAKE:
            place = self._place(owner)
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
        """Where a holder idles, if it belongs to this loop."""
        if owner.running or owner.loop is not self._loop():
            return None
        return place_of(owner.task)


def _tick(watch: weakref.ref[_LoopWatch]) -> None:
    found = watch()
    if found is not None:
        found.tick()
