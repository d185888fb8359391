"""Callers: the task or thread for which a statement runs.

On an asyncio engine this is the running task. A synchronous engine runs statements on a loop in the
background while the calling thread waits. Then it is that thread, or the task that runs in it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import islice
from types import CodeType, FrameType
from typing import Any, TypeAlias

from qsession.waiting.handoff import running_loop

DEEP = 64
"""Frames that are looked at, from the innermost on."""
_STANDARD = os.path.dirname(threading.__file__) + os.sep
_ANYIO = f"{os.sep}anyio{os.sep}"


class ThreadCaller:
    """A thread that calls a synchronous engine outside any task."""

    def __init__(self) -> None:
        self._thread = threading.current_thread()

    def __str__(self) -> str:
        return f"thread {self._thread.name!r}"

    def done(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def frames(self) -> Iterator[tuple[CodeType, int]]:
        """The present frames of the thread, outermost first."""
        ident = self._thread.ident
        frame = None if ident is None else sys._current_frames().get(ident)
        return reversed([(each.f_code, each.f_lineno) for each in outwards(frame)])


Caller: TypeAlias = "asyncio.Task[Any] | ThreadCaller"


class _Here(threading.local):
    """The caller object of each thread."""

    caller: ThreadCaller | None = None


_here = _Here()


class Call:
    """A call of a thread, which waits until the call has ended."""

    __slots__ = ("caller", "frame", "stopped")

    def __init__(self, frame: FrameType) -> None:
        self.stopped = running_loop()
        """The loop of the thread, which is blocked with it."""
        task = None if self.stopped is None else asyncio.current_task(self.stopped)
        self.caller: Caller = task or _thread_caller()
        self.frame: FrameType | None = frame
        """The frame of the thread; None when the call has ended."""


def _thread_caller() -> ThreadCaller:
    if _here.caller is None:
        _here.caller = ThreadCaller()
    return _here.caller


answering: ContextVar[Call | None] = ContextVar("answering", default=None)
"""The call that is being run here, on the loop in the background."""


def current_call() -> Call | None:
    """The call that is being run here; None on the loop of an application."""
    call = answering.get()
    return None if call is None or call.frame is None else call


def current_caller(loop: asyncio.AbstractEventLoop | None = None) -> Caller | None:
    """The caller of the running code; None in a loop outside tasks. ``loop``: the running one."""
    call = answering.get()
    return asyncio.current_task(loop) if call is None or call.frame is None else call.caller


def name_of(caller: Caller | None) -> str:
    """A caller in words."""
    if caller is None:
        return "code outside a task"
    return f"task {caller.get_name()!r}" if isinstance(caller, asyncio.Task) else str(caller)


def frames_of(caller: Caller | None) -> Iterator[tuple[CodeType, int]]:
    """The lines at which a caller waits, outermost first."""
    if isinstance(caller, ThreadCaller):
        return caller.frames()
    return _frames(None if caller is None else caller.get_coro())


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and its callers, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def application_frames(frame: FrameType) -> tuple[FrameType, ...]:
    """The frames of a job that a thread does: none of what gives one job after the other to it."""
    own = (each for each in outwards(frame) if not _gives_jobs(each.f_code.co_filename))
    return tuple(islice(own, DEEP))


def _gives_jobs(file: str) -> bool:
    return (file.startswith(_STANDARD) and "site-packages" not in file) or _ANYIO in file


def _frames(awaitable: Any) -> Iterator[tuple[CodeType, int]]:
    """The frames of a coroutine and of what it awaits."""
    while awaitable is not None:
        inner = None
        for frame_name, await_name in _COROUTINES:
            frame = getattr(awaitable, frame_name, None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno
            inner = inner or getattr(awaitable, await_name, None)
        awaitable = inner


_COROUTINES = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))
