"""Background: an event loop in a separate thread, which runs functions for waiting threads.

A synchronous engine uses the asyncio engine: each call is a function that runs in a greenlet on
this loop, while the calling thread waits. All synchronous engines of a process share the loop. The
first call starts it, and in a forked child the first call there.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, TypeVar

from qsession.errors import QSessionError
from qsession.waiting import shutdown
from qsession.waiting.callers import Call, answering
from qsession.waiting.greenlets import spawn

PATIENCE = 1.0
"""Seconds that a fork waits until the loop has ended its step."""

T = TypeVar("T")


def _nothing() -> None:
    """The default for ``lost``: no action."""


class _Errand:
    """A function to run on the loop, and its result."""

    __slots__ = (
        "_dropped", "_function", "_task", "after", "before", "call", "done", "error", "result",
    )  # fmt: skip

    def __init__(self, function: Callable[[], Any], call: Call) -> None:
        self._function = function
        self.call = call
        self.before = copy_context()
        self.after: Context | None = None
        """The context at its end."""
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        """A lock that is held until the function has ended."""
        self.done.acquire()
        self._task: asyncio.Task[None] | None = None
        self._dropped = False

    def begin(self) -> None:
        """Start it. On the loop."""
        if not self._dropped:
            self.before.run(answering.set, self.call)
            self._task = self.before.run(asyncio.ensure_future, self._run())

    async def _run(self) -> None:
        try:
            self.result = await spawn(self._function)
        except BaseException as error:
            self.error = error
        self.after = copy_context()
        self.done.release()

    async def drop(self, lost: Callable[[], None]) -> None:
        """Cancel it and wait for its end. If it succeeded all the same, call ``lost``."""
        self._dropped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if self.error is None:
                lost()


class Background:
    """The loop, and the functions that use it."""

    _thread = staticmethod(threading.get_ident)
    is_over = staticmethod(sys.is_finalizing)
    """Whether the interpreter ends, so that the thread of the loop runs no more.

    Kept here: the names of a module are taken away before the last objects are.
    """

    def __init__(self) -> None:
        self._heeds_forks = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ident: int | None = None
        self._starting = threading.Lock()
        self._forking = threading.Lock()
        self._parked: threading.Event | None = None

    def run(self, function: Callable[[], T], lost: Callable[[], None] = _nothing) -> T:
        """Run ``function()`` on the loop, in a greenlet, and wait for it in this thread.

        It runs in the context of the caller, and context variables that it sets are also set here.
        Raises the function's errors. On the loop itself the function is called directly.

        If the thread is interrupted, by Ctrl-C or another exception of a signal handler, the
        function is cancelled, and the exception is raised when the function has ended. If the
        function succeeded all the same, ``lost()`` is called on the loop, because its result is
        lost. A second exception is raised at once; the function is still cancelled.
        """
        if self._thread() == self._ident:
            return function()
        if self.is_over():
            raise QSessionError("The interpreter is ending, and no thread can run this call.")
        errand = _Errand(function, Call(sys._getframe()))
        woken = False
        try:
            loop = self._loop or self._start()
            woken = shutdown.wake(loop)
            loop.call_soon_threadsafe(errand.begin)
            errand.done.acquire()
        except BaseException:
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(errand.drop(lost), self._loop).result()
            raise
        finally:
            errand.call.frame = None  # it refers to the errand
            if woken:
                shutdown.put_to_sleep()
        _take_over(errand)
        error, errand.error = errand.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        return errand.result  # type: ignore[no-any-return]

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._heed_forks()
                loop = asyncio.SelectorEventLoop()
                thread = threading.Thread(target=loop.run_forever, name="qsession", daemon=True)
                thread.start()
                self._ident, self._loop = thread.ident, loop
            return self._loop

    # Forks. A child inherits the loop without its thread. The fork must happen between two steps of
    # the loop, or the child inherits half changed objects.

    def _heed_forks(self) -> None:
        """Register late: the last one is called first, before connections are closed."""
        if self._heeds_forks or not hasattr(os, "register_at_fork"):
            return
        self._heeds_forks = True
        os.register_at_fork(
            before=self._park, after_in_parent=self._go_on, after_in_child=self._leave_to_parent
        )

    def _park(self) -> None:
        """Stop the loop before a fork. If the loop itself forks, it already stands still."""
        self._forking.acquire()
        if self._loop is None or self._thread() == self._ident:
            return
        parked, self._parked = threading.Event(), threading.Event()
        self._loop.call_soon_threadsafe(_stand, parked, self._parked)
        parked.wait(PATIENCE)

    def _go_on(self) -> None:
        if self._parked is not None:
            self._parked.set()
            self._parked = None
        self._forking.release()

    def _leave_to_parent(self) -> None:
        """Leave the loop to the parent. Closing it, even at exit, would affect the parent."""
        if self._loop is not None:
            import ctypes  # not above: it would cost every program that imports qsession

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loop))
        self._begin_anew()


def _stand(parked: threading.Event, go_on: threading.Event) -> None:
    parked.set()
    go_on.wait()


def _take_over(errand: _Errand) -> None:
    """Set the context variables here that the function has set."""
    if errand.after is None:
        return
    for variable, value in errand.after.items():
        if errand.before.get(variable, errand) is not value:
            variable.set(value)


background = Background()
