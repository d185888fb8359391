"""Processor: how much of it a statement takes by itself, and whose turn it is first.

On a busy machine most of the time between a statement's begin and its end is not its own: its
thread waits for a processor, or for Python's interpreter lock, which another thread keeps for up
to :func:`sys.getswitchinterval`. Counted as its own, that would send short statements to the
thread, where they wait still longer and never prove short again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from typing import TypeAlias

NOTABLE = 0.0001
"""Seconds: nobody asks what a shorter wait was for."""
NICER = 5
"""By how much a reader's thread is nicer than the process: it gets a third of the loop's share."""

Mark: TypeAlias = "tuple[float, float, int]"
"""A moment in one thread."""

if sys.platform == "linux":
    from resource import RUSAGE_THREAD, getrusage

    def _blocks_read() -> int:
        """Blocks that this thread has read from a disk, not from memory."""
        return getrusage(RUSAGE_THREAD).ru_inblock

    def let_loop_go_first() -> None:
        """Give this thread less of the processors than the loop, where there are not enough.

        For the threads of readers, which have the long reads. They would take a third of its
        processor from a loop that has one, on a machine with two, 3 ms and more at a time, and
        everybody waits for the loop. A priority by thread is Linux's alone: man 2 setpriority.
        """
        nice = os.getpriority(os.PRIO_PROCESS, os.getpid())
        with suppress(OSError):  # forbidden by a sandbox: then it has the priority that it had
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice + NICER)

else:

    def _blocks_read() -> int:
        return 0

    def let_loop_go_first() -> None:
        pass


def mark() -> Mark:
    return time.perf_counter(), time.thread_time(), _blocks_read()


def own_time(since: Mark) -> float:
    """Seconds that what has run in this thread since then took by itself.

    That is its processor time. A wait is its own if it read from a disk meanwhile (known on Linux),
    or if it is longer than twice the time after which another thread gives the interpreter lock
    back: then it waits for something else, such as a function of the application.
    """
    wall, processor = time.perf_counter() - since[0], time.thread_time() - since[1]
    wait = wall - processor
    if wait > NOTABLE and (wait > 2 * sys.getswitchinterval() or _blocks_read() != since[2]):
        return wall
    return processor
