"""Pace: which statements are short enough to run on the event loop.

A hop to a thread and back costs more than most SQLite statements. A new statement text always runs
in the thread, because some work cannot be interrupted: SQLite runs count(*) of a large table as one
instruction of its virtual machine. After that, the measured times decide where a text runs.
"""

from __future__ import annotations

from collections import OrderedDict

from qsession.sqlite.driver.recent import keep

SHORT = 0.0005
"""Seconds. A text with a lower average runs on the loop."""
BUDGET = 0.001
"""The longest time of a read on the loop, in seconds."""
LONG_WRITE = 0.01
"""Seconds on the loop after which a first write is interrupted, and run in the thread."""
STEPS = 2_000
"""Virtual machine instructions between two checks of the clock: 0.04 to 0.3 ms."""
MOST_ROWS = 1_000
"""The most rows of an executemany that run on the loop at once."""
WEIGHT = 0.25
"""The weight of the latest time in the average."""


class Pace:
    """The average times of statement texts."""

    def __init__(self, inline: bool) -> None:
        self.enabled = inline
        self._times: OrderedDict[int, float] = OrderedDict()

    def inline(self, text: str) -> bool:
        """Whether a statement starts on the loop, judged by its earlier times."""
        return self.enabled and self._times.get(hash(text), SHORT) < SHORT

    def rows(self, text: str, few: int) -> int:
        """How many rows of an executemany may run on the loop at once; 0: run it in the thread.

        The average of its text is the time of ``few`` rows.
        """
        if not self.inline(text):
            return 0
        average = self._times.get(hash(text), SHORT)
        return max(few, min(MOST_ROWS, int(few * SHORT / max(average, 1e-6))))

    def note(self, text: str, seconds: float) -> None:
        """Record the time of a statement. After one long run it goes to the thread."""
        average = self._times.get(hash(text))
        if average is None:
            average = seconds
        elif seconds <= BUDGET:
            average += WEIGHT * (seconds - average)
        else:
            average = max(seconds, average)
        keep(self._times, hash(text), average)
