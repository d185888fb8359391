"""Pace: which statements are short enough to run on the event loop, and when it needs a turn.

A hop to a thread and back costs more than most SQLite statements. A text that reads starts on the
loop, under a budget; a text that writes starts in the thread. Either moves when its own times say
so.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from enum import IntEnum
from typing import TypeAlias

from qsession.sqlite.processes import shutdown
from qsession.sqlite.transaction.recent import keep

SHORT = 0.0005
"""Seconds: a text whose average is below runs on the loop."""
BUDGET = 0.001
"""Seconds a read may take on the loop, and after which a turn of the loop is over."""
PATIENCE = 4 * BUDGET
"""Seconds of a turn after which no new connection begins anything in it."""
STEPS = 2_000
"""Virtual machine instructions between two looks at the clock: 0.04 to 0.3 ms of them."""
WEIGHT = 0.25
"""Of the latest time in the average."""
LONG = 16
"""So many in line behind the one who reads for each one more that goes on in its turn, up to three.

Only while writers wait, too: without them, readers begin until the turn is over.
"""
STALLS = 3
"""Times in a row that a text may keep the loop for longer than the budget by mere waiting."""

_Times: TypeAlias = "tuple[float | None, int]"
"""The average of a text, and how often in a row it was over the budget on the loop."""
_UNKNOWN: _Times = None, 0
_Line: TypeAlias = "deque[asyncio.Future[None]]"


class Who(IntEnum):
    """Who waits for a later turn of the loop. Each turn lets one kind go on, each in turn."""

    HOLDER = 0  # has a write ticket, so others wait for it
    MEMBER = 1  # of a group whose COMMIT is done; many at once
    OTHER = 2
    NEW = 3  # has only asked for a connection


class Pace:
    """The average times of statement texts."""

    def __init__(self, inline: bool) -> None:
        self.enabled = inline
        self._times: OrderedDict[int, _Times] = OrderedDict()
        self._alone: OrderedDict[int, None] = OrderedDict()

    def inline(self, text: str, reads: bool) -> bool:
        """Whether a statement starts on the loop. One not seen before does if it only reads."""
        if not self.enabled:
            return False
        average, _ = self._times.get(hash(text), _UNKNOWN)
        return reads if average is None else average < SHORT

    def keep_alone(self, text: str) -> None:
        """Remember a text that writes and returns rows, which might not be the same again.

        A default made by SQLite (a random key, the time of day) would come out different when a
        member of a group is replayed, so such statements join none.
        """
        keep(self._alone, hash(text), None)

    def may_join(self, text: str) -> bool:
        return hash(text) not in self._alone

    def note(self, text: str, own: float, wall: float = 0.0, here: bool = False) -> None:
        """Learn how long a statement took, by itself and by the clock, and whether on the loop.

        One long run sends a text to the thread. A wait that may be for a busy machine is forgiven,
        but not again and again: then it is the text's own, until it runs without.
        """
        average, stalls = self._times.get(hash(text), _UNKNOWN)
        if wall <= BUDGET:
            stalls = 0
        elif here:
            stalls += 1
        seconds = own if stalls < STALLS else wall
        if average is None:
            average = seconds
        elif seconds <= BUDGET:
            average += WEIGHT * (seconds - average)
        else:
            average = max(seconds, average)
        keep(self._times, hash(text), (average, stalls))

    def note_broken_off(self, text: str) -> None:
        """It was over its budget on the loop; how long it takes is learnt in the thread, next."""
        average, stalls = self._times.get(hash(text), _UNKNOWN)
        keep(self._times, hash(text), (average, stalls + 1))


class Budget:
    """Breaks off a statement that runs on the loop past a deadline."""

    __slots__ = ("deadline",)

    def __init__(self) -> None:
        self.deadline = 0.0

    def check(self) -> bool:
        """SQLite's progress handler: true interrupts (https://sqlite.org/c3ref/progress_handler.html)."""
        return time.perf_counter() > self.deadline


class Turn:
    """A turn of one loop: who may still begin a statement in it, and who waits for a later one.

    It is over ``BUDGET`` after its first statement began, all Python in between included: that
    takes many times as long as SQLite does. Each turn lets one of those who wait continue, so that
    it stays short, and each kind in its turn, so that a read does not wait behind a whole group.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.mark: object | None = None
        """Something of this turn alone, once it has begun; None before."""
        self._began: float | None = None
        self._scheduled = self._has_reader = False
        self._waiting: tuple[_Line, ...] = tuple(deque() for _ in Who)
        self._order = deque(self._waiting)

    def begin(self, reader: bool = False) -> None:
        """A statement begins on the loop; ``reader``: of a reader that begins with it."""
        self._has_reader = self._has_reader or reader
        if self._began is None:
            self._began = time.perf_counter()
            self.mark = object()
            self._schedule()

    @property
    def over(self) -> bool:
        """Whether the next statement is for a later turn."""
        return self._began is not None and time.perf_counter() - self._began > BUDGET

    @property
    def spoken_for(self) -> bool:
        """Whether one more reader is for a later turn: one has begun, and a writer waits.

        Many wait for a holder, and members have waited already. Reads that never wait would take
        the whole of each turn from them.
        """
        return self._has_reader and self._writers_wait

    @property
    def _writers_wait(self) -> bool:
        return any(self._waiting[: Who.OTHER])

    @property
    def crowded(self) -> bool:
        """Whether even a new connection is for a later turn: many tasks have begun in this one."""
        return self._began is not None and time.perf_counter() - self._began > PATIENCE

    def later(self, who: Who) -> asyncio.Future[None]:
        """To be awaited before the next statement. It may be cancelled."""
        future = self.loop.create_future()
        self._waiting[who].append(future)
        self._schedule()
        return future

    def let_in(self, futures: Iterable[asyncio.Future[None]]) -> None:
        """Let the members who wait for ``futures`` go on, one in each turn from now on."""
        self._waiting[Who.MEMBER].extend(futures)
        if not self.over:
            _let_go(self._waiting[Who.MEMBER])
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turned)

    def _turned(self) -> None:
        self._began = self.mark = None
        self._scheduled = self._has_reader = False
        for _ in Who:
            self._order.rotate(-1)
            line = self._order[-1]
            if _let_go(line):
                if line is self._waiting[Who.OTHER] and self._writers_wait:
                    for _ in range(min(len(line) // LONG, 2)):
                        _let_go(line)
                break
        if any(self._waiting):
            self._schedule()


def _let_go(line: _Line) -> bool:
    """Let the first who still waits go on; false if nobody does."""
    while line:
        future = line.popleft()
        if not future.done():  # nor cancelled
            future.set_result(None)
            return True
    return False


class Turns(threading.local):
    """The turn of the loop that runs in this thread.

    One that others wait for is kept by its loop, should another loop run in between.
    """

    _latest: Turn | None = None

    def of(self, loop: asyncio.AbstractEventLoop) -> Turn:
        if self._latest is None or self._latest.loop is not loop:
            self._latest = Turn(loop)
            shutdown.note(loop)
        return self._latest


turns = Turns()
