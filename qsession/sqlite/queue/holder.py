"""Description of the holder of the ticket: its task, its last statement, and its present line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import aiosqlite
import sqlalchemy
from greenlet import getcurrent

from qsession.sqlite.processes.owners import shorten
from qsession.sqlite.queue.owner import Owner
from qsession.statistics import Holder
from qsession.waiting import callers
from qsession.waiting.callers import (
    Caller,
    current_call,
    current_caller,
    frames_of,
    name_of,
    outwards,
)
from qsession.waiting.ticket import Ticket

MACHINERY = (
    *(
        os.path.dirname(file or "?") + os.sep
        for file in (
            asyncio.__file__,
            sqlalchemy.__file__,
            aiosqlite.__file__,
            os.path.dirname(__file__),
            callers.__file__,
        )
    ),
    contextlib.__file__,
    threading.__file__,
)
"""Folders whose frames are not part of the application."""
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + os.sep


def describe(ticket: Ticket) -> Holder:
    """The transaction that holds ``ticket``."""
    transaction: Owner = ticket.owner
    task = transaction.task
    stack = _stack(task)
    return Holder(
        task=name_of(task),
        held=time.monotonic() - ticket.granted_at,
        wrote=transaction.wrote,
        statement=shorten(transaction.last_statement),
        where=stack[-1] if stack else _no_place(task),
        stack=stack,
    )


def where_it_ends(ticket: Ticket) -> str:
    """The line of the application that gives ``ticket`` back now, or at which its task waits."""
    task = ticket.owner.task
    if task is not None and task is current_caller():
        for frame in _present():
            if not frame.f_code.co_filename.startswith((*MACHINERY, _PACKAGE)):
                return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
    stack = _stack(task)
    return stack[-1] if stack else ""


def _present() -> Iterator[FrameType]:
    """The frames of the running code and of its callers, innermost first."""
    call = current_call()
    if call is not None:
        yield from outwards(call.frame)
        return
    yield from outwards(sys._getframe(1))
    parent = getcurrent().parent
    while parent is not None:
        yield from outwards(parent.gr_frame)
        parent = parent.parent


def _stack(task: Caller | None) -> tuple[str, ...]:
    """The lines of the application that a caller stands in, from the outside in."""
    return tuple(
        f"{code.co_filename}:{line} in {code.co_name}"
        for code, line in frames_of(task)
        if not code.co_filename.startswith(MACHINERY)
    )


def _no_place(task: Caller | None) -> str:
    if task is not None and task.done():
        what = "task" if isinstance(task, asyncio.Task) else "thread"
        return f"its end: the {what} has finished, but its transaction is still open"
    return "an unknown place"
