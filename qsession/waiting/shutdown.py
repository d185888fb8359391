"""The end of the interpreter: event loops of daemon threads sleep before their threads are ended.

The interpreter ends a daemon thread where it stands, as soon as it wants Python's lock. If that is
inside a greenlet, the process crashes: the unwound stack gives up references without the lock. So
each loop that runs our statements is put to sleep first, outside of any greenlet.
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
"""Seconds that the end waits for the loops to fall asleep: they may be in a long callback."""
SLEEP = 5.0
"""Seconds that a loop sleeps for, at the most: an application may have registered something that
runs behind us, and waits for its loop.
"""

_loops: set[weakref.ref[asyncio.AbstractEventLoop]] = set()
"""Changed and copied in one step each, by whatever thread."""


def note(loop: asyncio.AbstractEventLoop) -> None:
    """A loop that runs statements."""
    _loops.add(weakref.ref(loop, _loops.discard))


def _at_exit() -> None:
    """Threads that are no daemons have ended by now, and their loops with them."""
    asleep = []
    for each in list(_loops):
        loop = each()
        if loop is None or loop is running_loop() or not loop.is_running():
            continue
        fallen = threading.Event()
        with suppress(RuntimeError):  # closed in between
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
    os.register_at_fork(after_in_child=_loops.clear)  # their threads are the parent's
