"""The end of the interpreter: event loops in daemon threads are put to sleep first.

At exit the interpreter ends a daemon thread as soon as the thread asks for the interpreter lock. If
the thread is inside a greenlet then, the process crashes: the unwound stack drops references
without holding the lock. So each loop that runs statements is put to sleep outside any greenlet.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from contextlib import suppress

from qsession.waiting.handoff import running_loop

PATIENCE = 1.0
"""Seconds to wait for the loops to sleep, since a loop may be in a long callback."""
SLEEP = 5.0
"""Seconds that a loop sleeps, at most: a later exit function of the application may wait for its
loop.
"""

_loops: set[weakref.ref[asyncio.AbstractEventLoop]] = set()
"""Any thread may use it, since adding and copying are atomic."""


def note(loop: asyncio.AbstractEventLoop) -> None:
    """Note a loop that runs statements."""
    _loops.add(weakref.ref(loop, _loops.discard))


def _at_exit() -> None:
    """Put the loops to sleep. Threads that are not daemons have already ended, with their loops."""
    asleep = []
    for each in list(_loops):
        loop = each()
        if loop is None or loop is running_loop() or not loop.is_running():
            continue
        fallen = threading.Event()
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(_sleep, fallen)
            asleep.append(fallen)
    deadline = time.monotonic() + PATIENCE
    for fallen in asleep:
        fallen.wait(max(0.0, deadline - time.monotonic()))


def _sleep(fallen: threading.Event) -> None:
    fallen.set()
    threading.Event().wait(SLEEP)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_loops.clear)  # their threads exist in the parent only
