"""Pace: which statements are short enough to run on the event loop.

A hop to a thread and back costs more than most SQLite statements. A text not seen before runs in
the thread, whatever it is: what SQLite does in one instruction of its machine, such as count(*) of
a large table, cannot be broken off. From then on its own times say where it runs.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TypeAlias

from qsession.sqlite.driver.recent import keep

SHORT = 0.0005
"""Seconds: a text whose average is below runs on the loop."""
BUDGET = 0.001
"""Seconds a read may take on the loop."""
LONG_WRITE = 0.01
"""Seconds on the loop after which a first write is broken off, to be run in the thread."""
STEPS = 2_000
"""Virtual machine instructions between two looks at the clock: 0.04 to 0.3 ms of them."""
MOST_ROWS = 1_000
"""Of an executemany, on the loop at once."""
WEIGHT = 0.25
"""Of the latest time in the average."""
STALLS = 3
"""Times in a row that a text may keep the loop for longer than the budget by mere waiting."""

_Times: TypeAlias = "tuple[float | None, int]"
"""The average of a text, and how often in a row it was over the budget on the loop."""
_UNKNOWN: _Times = None, 0


class Pace:
    """The average times of statement texts."""

    def __init__(self, inline: bool) -> None:
        self.enabled = inline
        self._times: OrderedDict[int, _Times] = OrderedDict()

    def inline(self, text: str, reads: bool = False) -> bool:
        """Whether a statement starts on the loop, by what it took before."""
        if not self.enabled:
            return False
        average, _ = self._times.get(hash(text), _UNKNOWN)
        return average is not None and average < SHORT

    def rows(self, text: str, few: int) -> int:
        """How many rows of an executemany fit on the loop at once; 0 if it is for the thread.

        The average of its text is that of ``few`` rows.
        """
        average, _ = self._times.get(hash(text), _UNKNOWN)
        if not self.enabled or average is None or average >= SHORT:
            return 0
        return max(few, min(MOST_ROWS, int(few * SHORT / max(average, 1e-6))))

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
