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
_alarms: dict[int, threading.Event] = {}
"""What wakes a loop that sleeps, by its id."""


def note(loop: asyncio.AbstractEventLoop) -> None:
    """Note a loop that runs statements."""
    _loops.add(weakref.ref(loop, _loops.discard))


def wake(loop: asyncio.AbstractEventLoop) -> bool:
    """Wake a loop for an exit function of the application; then :func:`put_to_sleep` has to follow.

    False if it does not sleep, or if this is a thread that goes on beside the exit functions: the
    interpreter does not wait for what it does.
    """
    if not _alarms or threading.current_thread() is not threading.main_thread():
        return False
    alarm = _alarms.pop(id(loop), None)
    if alarm is None:
        return False
    alarm.set()
    return True


def put_to_sleep() -> None:
    """Put the loops to sleep. Threads that are not daemons have already ended, with their loops."""
    asleep = []
    for each in list(_loops):
        loop = each()
        if loop is None or loop is running_loop() or not loop.is_running() or id(loop) in _alarms:
            continue
        fallen = threading.Event()
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(_sleep, id(loop), fallen)
            asleep.append(fallen)
    deadline = time.monotonic() + PATIENCE
    for fallen in asleep:
        fallen.wait(max(0.0, deadline - time.monotonic()))


def _sleep(loop: int, fallen: threading.Event) -> None:
    alarm = _alarms[loop] = threading.Event()
    fallen.set()
    alarm.wait(SLEEP)
    if _alarms.get(loop) is alarm:
        del _alarms[loop]


def _begin_anew() -> None:
    """In a forked child: the threads of the loops exist in the parent only."""
    _loops.clear()
    _alarms.clear()


atexit.register(put_to_sleep)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
