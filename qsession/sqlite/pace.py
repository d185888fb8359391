"""Pace: which statements are short enough to run on the event loop, and when it needs a turn.

A hop to a thread and back costs more than most SQLite statements. A text that reads starts on the
loop, under a budget; a text that writes starts in the thread. Either moves when its own times say
so.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict

SHORT = 0.0005
"""Seconds: a text whose average is below runs on the loop."""
BUDGET = 0.001
"""Seconds a read may take on the loop, and work on the loop in one turn of it."""
STEPS = 2_000
"""Virtual machine instructions between two looks at the clock: 0.04 to 0.3 ms of them."""
WEIGHT = 0.25
"""Of the latest time in the average."""
TEXTS = 1_000


class Pace:
    """The average times of statement texts."""

    def __init__(self, inline: bool) -> None:
        self._enabled = inline
        self._averages: OrderedDict[str, float] = OrderedDict()
        self._alone: OrderedDict[str, None] = OrderedDict()

    def inline(self, text: str, reads: bool) -> bool:
        """Whether a statement starts on the loop. One not seen before does if it only reads."""
        if not self._enabled:
            return False
        average = self._averages.get(text)
        return reads if average is None else average < SHORT

    def keep_alone(self, text: str) -> None:
        """Remember a text that writes and returns rows, which might not be the same again.

        A default made by SQLite (a random key, the time of day) would come out different when a
        member of a group is replayed, so such statements join none.
        """
        self._alone.pop(text, None)  # another thread may be here too: each step stands by itself
        self._alone[text] = None
        if len(self._alone) > TEXTS:
            self._alone.popitem(last=False)

    def may_join(self, text: str) -> bool:
        return text not in self._alone

    def note(self, text: str, seconds: float) -> None:
        """Learn how long a statement took. One long run sends a text to the thread."""
        averages = self._averages
        average = averages.pop(text, seconds)  # as in keep_alone
        if seconds > BUDGET:
            averages[text] = max(seconds, average)
        else:
            averages[text] = average + WEIGHT * (seconds - average)
        if len(averages) > TEXTS:
            averages.popitem(last=False)


class Budget:
    """Breaks off a statement that runs on the loop past a deadline."""

    __slots__ = ("deadline",)

    def __init__(self) -> None:
        self.deadline = 0.0

    def check(self) -> bool:
        """SQLite's progress handler: true interrupts (https://sqlite.org/c3ref/progress_handler.html)."""
        return time.perf_counter() > self.deadline


class Turn(threading.local):
    """How much work this thread's loop has done since it last turned."""

    loop: asyncio.AbstractEventLoop | None = None
    spent = 0.0
    number = 0
    """Counts the turns that did work."""

    def charge(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """Count work that was done on the loop."""
        if self.loop is not loop or not self.spent:
            self.loop, self.spent = loop, 0.0
            self.number += 1
            loop.call_soon(self._turned)
        self.spent += seconds

    def current(self, loop: asyncio.AbstractEventLoop) -> int | None:
        """The number of a turn that has done work already; None in a fresh one."""
        return self.number if self.spent and self.loop is loop else None

    def over(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether others should have a turn before the next statement."""
        return self.spent > BUDGET and self.loop is loop

    def _turned(self) -> None:
        self.spent = 0.0


turn = Turn()
