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
from qsession.sqlite.queue.owner import Owner
from qsession.waiting.ticket import Ticket, TicketQueue

TICK = 0.01
"""Seconds between two looks at the holder, or less where ``stall_after`` is short."""
LONG_READ = 0.01
"""Seconds of processor time after which a SELECT of the holder is in the way, in access ``auto``.

In access ``write``, and by the clock, it is ``stall_after``: on a busy machine any SELECT may take
10 ms, and nobody would have idled.
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


def judge(look: Look, stall_after: float, warn_after: float) -> Verdict:
    """What is to be done about a holder that others wait for."""
    if look.claimed:
        if look.closed:
            return Verdict.ABANDON
        idles = not look.running and max(look.idles_for, look.stands_for) >= warn_after
        return Verdict.WARN if idles else Verdict.WAIT
    own, by_the_clock = look.reads_for
    if look.closed or max(look.stands_for, by_the_clock) >= stall_after:
        return Verdict.TAKE
    # A report that reads a page, pauses, and reads on never idles for long, and is in the way.
    if not look.promised and (own >= LONG_READ or look.holds_for >= stall_after):
        return Verdict.TAKE
    if not look.running and look.idles_for >= stall_after:
        return Verdict.TAKE
    return Verdict.WAIT


class Wanted(Protocol):
    """The turn between processes."""

    def wanted(self) -> bool:
        """Whether another process waits for it."""
        ...


class StallWatch:
    """Watches the holder of a queue, from each loop that has a holder or a waiter."""

    def __init__(self, queue: TicketQueue, turn: Wanted, settings: Settings) -> None:
        self._queue = queue
        self._turn = turn
        self._settings = settings
        self._watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopWatch] = (
            weakref.WeakKeyDictionary()
        )

    def start(self, waits: bool = False) -> None:
        """Watch from the running loop, if it does not yet. ``waits``: somebody begins to wait."""
        loop = asyncio.get_running_loop()
        watch = self._watches.get(loop)
        if watch is None:
            watch = self._watches[loop] = _LoopWatch(
                self._queue, self._turn, self._settings, weakref.ref(loop)
            )
        watch.start()
        if waits:
            watch.judge()


class _LoopWatch:
    """The watch of one loop."""

    def __init__(
        self,
        queue: TicketQueue,
        turn: Wanted,
        settings: Settings,
        loop: weakref.ref[asyncio.AbstractEventLoop],
    ) -> None:
        self._queue = queue
        self._turn = turn
        self._settings = settings
        self._loop = loop
        self._interval = max(min(TICK, settings.stall_after / PER_STALL), 0.001)
        self._ticks = False
        self._seen: tuple[Ticket, int] | None = None
        self._idle_ticks = 0
        self._holder: Ticket | None = None
        self._holds_ticks = 0
        """How often it was seen in a row, at work or not."""
        self._asked_at: float | None = None
        """Since when the holder's loop has been asked to turn."""
        self._warned = False

    def start(self) -> None:
        if not self._ticks:
            self._ticks = True
            self._look_anew()
            self._tick_later()

    def _tick_later(self) -> None:
        """The loop keeps no engine alive that is forgotten."""
        loop = self._loop()
        if loop is not None:
            loop.call_later(self._interval, _tick, weakref.ref(self))

    def tick(self) -> None:
        """Look at the holder, and again later while there is one."""
        self._ticks = False
        if self._queue.holder is None and not self._queue.waiting:
            self._seen = None  # it keeps nobody alive
            return
        self._ticks = True
        self._tick_later()
        holder = self._queue.holder
        if holder is self._holder:
            self._holds_ticks += 1
            self._dismiss()
        else:
            self._holder, self._holds_ticks = holder, 0
        if holder is None or self._seen != (holder, holder.owner.activity):
            self._look_anew()
            self.judge()
            return
        home = holder.owner.loop
        if home is None or home is self._loop():
            self._idle_ticks += not holder.owner.running
        elif self._asked_at is None:
            self._asked_at = time.monotonic()
            with suppress(RuntimeError):  # it is closed
                home.call_soon_threadsafe(self._turned)
        self.judge()

    def _dismiss(self) -> None:
        """A SELECT waits for the ticket for as long as the queue moves, and no longer."""
        holder = self._holder
        long = self._holds_ticks * self._interval >= self._settings.stall_after
        if long and holder is not None and holder is self._queue.holder and holder.claimed:
            self._queue.dismiss()

    def _turned(self) -> None:
        """In the holder's loop: it turns."""
        self._asked_at = None
        seen = self._seen
        if seen is not None and not seen[0].owner.running:
            self._idle_ticks += 1

    def _look_anew(self) -> None:
        holder = self._queue.holder
        self._seen = None if holder is None else (holder, holder.owner.activity)
        self._idle_ticks, self._asked_at, self._warned = 0, None, False

    def judge(self) -> None:
        """Do something about the holder if others wait for it."""
        self._dismiss()
        holder = self._queue.holder
        if holder is None or self._seen != (holder, holder.owner.activity):
            return
        owner: Owner = holder.owner
        look = self._look(holder, owner)
        verdict = judge(look, self._settings.stall_after, self._settings.warn_after)
        if verdict is Verdict.WAIT or not (self._queue.waiting or self._turn.wanted()):
            return
        if verdict is Verdict.TAKE:
            if self._queue.take_away(holder):
                owner.stalled()
        elif verdict is Verdict.ABANDON:
            self._abandon(owner)
        elif not self._warned:
            self._warned = True
            described = describe(holder)
            logger.warning(
                "%d writers wait for a transaction that has idled for %.1f s: %s%s",
                self._queue.waiting,
                max(look.idles_for, look.stands_for),
                described,
                described.traceback,
            )

    def _look(self, holder: Ticket, owner: Owner) -> Look:
        now = time.monotonic()
        return Look(
            claimed=holder.claimed,
            running=owner.running,
            reads_for=owner.reads_for(),
            promised=owner.promised,
            holds_for=self._holds_ticks * self._interval if holder is self._holder else 0.0,
            idles_for=self._idle_ticks * self._interval,
            stands_for=0.0 if self._asked_at is None else now - self._asked_at,
            closed=owner.loop is not None and owner.loop.is_closed(),
        )

    def _abandon(self, owner: Owner) -> None:
        owner.abandon(
            QSessionError(
                "The transaction held the write ticket while others waited, and its event loop was "
                "closed. It was rolled back; nothing of it was written."
            )
        )


def _tick(watch: weakref.ref[_LoopWatch]) -> None:
    found = watch()
    if found is not None:
        found.tick()
