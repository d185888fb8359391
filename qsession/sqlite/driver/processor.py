"""Processor: how much time a statement takes by itself, whatever else the machine is busy with.

On a busy machine most of the time between a statement's begin and its end is not its own: its
thread waits for a processor, or for Python's interpreter lock, which another thread keeps for up
to :func:`sys.getswitchinterval`. Counted as its own, that would send short statements to the
thread, where they wait still longer and never prove short again.
"""

from __future__ import annotations

import sys
import time
from typing import TypeAlias

NOTABLE = 0.0001
"""Seconds: nobody asks what a shorter wait was for."""

Mark: TypeAlias = "tuple[float, int, float]"
"""A moment in one thread: processor time, blocks, and the clock.

The clock is read last at the start and first at the end, so that a thread that is put aside between
two of these calls does not count the pause as the statement's own.
"""

if sys.platform == "linux":
    from resource import RUSAGE_THREAD, getrusage

    def _blocks() -> int:
        """Blocks that this thread has read from a disk, or written to a file."""
        usage = getrusage(RUSAGE_THREAD)
        return usage.ru_inblock + usage.ru_oublock

else:

    def _blocks() -> int:
        return 0


def mark() -> Mark:
    """Now, for :func:`spent` in the same thread."""
    return time.thread_time(), _blocks(), time.perf_counter()


def spent(since: Mark) -> float:
    """Seconds that what has run in this thread since then took by itself.

    That is its processor time. A wait is its own as well if it was for the disk (known on
    Linux), or if it is longer than twice the time after which another thread gives the interpreter
    lock back: then it waits for something else, such as a function of the application. Windows
    counts processor time in steps of 15.6 ms, so there all is its own.
    """
    wall = time.perf_counter() - since[2]
    processor = time.thread_time() - since[0]
    wait = wall - processor
    if sys.platform == "win32" or wait < 0:
        return wall
    own = wait > NOTABLE and (wait > 2 * sys.getswitchinterval() or _blocks() != since[1])
    return wall if own else processor
