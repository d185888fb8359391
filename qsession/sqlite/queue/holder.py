"""Description of the holder of the ticket: its task, its last statement, and its present line."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import aiosqlite
import sqlalchemy

from qsession.sqlite.processes.owners import shorten
from qsession.sqlite.queue.owner import Owner
from qsession.statistics import Holder
from qsession.waiting import callers
from qsession.waiting.callers import Caller, frames_of, name_of
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
    threading.__file__,
)
"""Folders whose frames are not part of the application."""


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
