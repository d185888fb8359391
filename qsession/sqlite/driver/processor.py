"""Processor: a statement's own time, without the waits caused by a busy machine.

On a busy machine most of the time between the start and the end of a statement is not its own: its
thread waits for a processor, or for the interpreter lock, which another thread keeps for up to
:func:`sys.getswitchinterval`. If such waits counted, short statements would go to the thread, wait
there even longer, and never count as short again.
"""

from __future__ import annotations

import sys
import time
from typing import TypeAlias

NOTABLE = 0.0001
"""Seconds. The cause of a shorter wait does not matter."""

Mark: TypeAlias = "tuple[float, int, float]"
"""A moment in one thread: processor time, blocks, and clock time.

The clock is read last at the start and first at the end. So a pause of the thread between two of
these calls does not count as the statement's own time.
"""

if sys.platform == "linux":
    from resource import RUSAGE_THREAD, getrusage

    def _blocks() -> int:
        """The number of blocks that this thread has read from a disk or written to a file."""
        usage = getrusage(RUSAGE_THREAD)
        return usage.ru_inblock + usage.ru_oublock

else:

    def _blocks() -> int:
        return 0


def mark() -> Mark:
    """The present moment, for :func:`spent` in the same thread."""
    return time.thread_time(), _blocks(), time.perf_counter()


def spent(since: Mark) -> float:
    """The own time, in seconds, of the code that has run in this thread since ``since``.

    This is its processor time. A wait counts as well if it was for the disk (known on Linux), or if
    it is longer than twice the switch interval of the interpreter lock: then it was for something
    else, such as a function of the application. Windows measures processor time in steps of
    15.6 ms, so there all time counts.
    """
    wall = time.perf_counter() - since[2]
    processor = time.thread_time() - since[0]
    wait = wall - processor
    if sys.platform == "win32" or wait < 0:
        return wall
    own = wait > NOTABLE and (wait > 2 * sys.getswitchinterval() or _blocks() != since[1])
    return wall if own else processor
