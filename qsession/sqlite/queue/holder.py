"""Description of the holder of the ticket: its task, its last statement, and its present line."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from types import CodeType
from typing import Any

import aiosqlite
import sqlalchemy

from qsession.sqlite.processes.owners import shorten
from qsession.sqlite.queue.owner import Owner
from qsession.statistics import Holder
from qsession.waiting.ticket import Ticket

_MACHINERY = tuple(
    os.path.dirname(file or "?") + os.sep
    for file in (
        asyncio.__file__,
        sqlalchemy.__file__,
        aiosqlite.__file__,
        os.path.dirname(__file__),
    )
)
"""Folders whose frames are not part of the application."""


def describe(ticket: Ticket) -> Holder:
    """The transaction that holds ``ticket``."""
    transaction: Owner = ticket.owner
    task: asyncio.Task[Any] | None = transaction.task
    stack = _stack(task)
    return Holder(
        task=f"task {task.get_name()!r}" if task is not None else "code outside of a task",
        held=time.monotonic() - ticket.granted_at,
        wrote=transaction.wrote,
        statement=shorten(transaction.last_statement),
        where=stack[-1] if stack else _no_place(task),
        stack=stack,
    )


def _stack(task: asyncio.Task[Any] | None) -> tuple[str, ...]:
    """The lines of the application at which a task waits, outermost first."""
    return tuple(
        f"{code.co_filename}:{line} in {code.co_name}"
        for code, line in frames(None if task is None else task.get_coro())
        if not code.co_filename.startswith(_MACHINERY)
    )


def _no_place(task: asyncio.Task[Any] | None) -> str:
    if task is not None and task.done():
        return "its end: the task has finished, but its transaction is still open"
    return "an unknown place"


def frames(awaitable: Any) -> Iterator[tuple[CodeType, int]]:
    """The frames of a coroutine and of what it awaits, outermost first."""
    while awaitable is not None:
        inner = None
        for frame_name, await_name in _COROUTINES:
            frame = getattr(awaitable, frame_name, None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno
            inner = inner or getattr(awaitable, await_name, None)
        awaitable = inner


_COROUTINES = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))
