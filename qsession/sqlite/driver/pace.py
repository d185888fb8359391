"""Pace: which statements are short enough to run on the event loop.

A hop to a thread and back costs more than most SQLite statements. A text not seen before runs in
the thread, whatever it is: what SQLite does in one instruction of its machine, such as count(*) of
a large table, cannot be broken off. From then on its own times say where it runs.
"""

from __future__ import annotations

from collections import OrderedDict

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


class Pace:
    """The average times of statement texts."""

    def __init__(self, inline: bool) -> None:
        self.enabled = inline
        self._times: OrderedDict[int, float] = OrderedDict()

    def inline(self, text: str) -> bool:
        """Whether a statement starts on the loop, by what it took before."""
        return self.enabled and self._times.get(hash(text), SHORT) < SHORT

    def rows(self, text: str, few: int) -> int:
        """How many rows of an executemany fit on the loop at once; 0 if it is for the thread.

        The average of its text is that of ``few`` rows.
        """
        if not self.inline(text):
            return 0
        average = self._times.get(hash(text), SHORT)
        return max(few, min(MOST_ROWS, int(few * SHORT / max(average, 1e-6))))

    def note(self, text: str, seconds: float) -> None:
        """Learn how long a statement took. One long run, or part of one, sends it to the thread."""
        average = self._times.get(hash(text))
        if average is None:
            average = seconds
        elif seconds <= BUDGET:
            average += WEIGHT * (seconds - average)
        else:
            average = max(seconds, average)
        keep(self._times, hash(text), average)
