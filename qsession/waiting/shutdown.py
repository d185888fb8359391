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


class _Sleep:
    """The sleep of one loop, from the moment it is told to sleep."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.over = threading.Event()

    def run(self) -> None:
        """In the loop."""
        self.begun.set()
        self.over.wait(SLEEP)
        self.over.set()


_sleeps: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Sleep] = weakref.WeakKeyDictionary()
"""The latest sleep of each loop. Only the main thread uses it, at exit."""
_exiting = threading.Event()


def note(loop: asyncio.AbstractEventLoop) -> None:
    """Note a loop that runs statements."""
    _loops.add(weakref.ref(loop, _loops.discard))


def wake(loop: asyncio.AbstractEventLoop) -> bool:
    """Wake the loops for an exit function of the application that calls ``loop``.

    All of them, since ``loop`` may wait for what another one holds. :func:`put_to_sleep` has to
    follow if this returns true. It has no effect in a thread that goes on beside the exit
    functions: the interpreter does not wait for what it does.
    """
    if not _exiting.is_set() or threading.current_thread() is not threading.main_thread():
        return False
    for each, sleep in list(_sleeps.items()):
        if each is loop or sleep.begun.is_set():
            sleep.over.set()
    return True


def put_to_sleep() -> None:
    """Put the loops to sleep. Threads that are not daemons have already ended, with their loops."""
    _exiting.set()
    asleep = []
    for each in list(_loops):
        loop = each()
        if loop is None or loop is running_loop() or not loop.is_running():
            continue
        sleep = _sleeps.get(loop)
        if sleep is not None and not sleep.over.is_set():
            continue  # it sleeps, or will when its callback returns
        sleep = _sleeps[loop] = _Sleep()
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(sleep.run)
            asleep.append(sleep.begun)
    deadline = time.monotonic() + PATIENCE
    for begun in asleep:
        begun.wait(max(0.0, deadline - time.monotonic()))


def _begin_anew() -> None:
    """In a forked child: the threads of the loops exist in the parent only."""
    _exiting.clear()
    _loops.clear()
    _sleeps.clear()


atexit.register(put_to_sleep)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
