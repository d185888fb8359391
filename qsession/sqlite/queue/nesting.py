"""Nesting: a task that has a transaction open, and would wait for itself in a second one.

If the first transaction has only read, its ticket is taken away. If it has written, a SELECT in the
second one runs without the ticket, and a write raises an error at once. The two transactions may
belong to two engines on one file, where the second one would wait for the turn of the first.
"""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar
from typing import Any

from qsession.errors import NestedWriteError
from qsession.sqlite.processes.owners import shorten
from qsession.sqlite.queue.owner import Owner
from qsession.waiting.ticket import Ticket, TicketQueue


class Held:
    """A ticket that this task took, or the task that started it."""

    __slots__ = ("__weakref__", "file", "queue", "ticket")

    def __init__(self, ticket: Ticket, queue: TicketQueue, file: Any) -> None:
        self.ticket = weakref.ref(ticket)
        self.queue = weakref.ref(queue)  # the context of a long task must not keep an engine alive
        self.file = file
        """Device and inode of the database."""


held_here: ContextVar[Held | None] = ContextVar("held_here", default=None)


def settle(queue: TicketQueue, file: Any, transaction: Owner, reads: bool) -> bool:
    """Handle a task that would wait for itself. False: its SELECT runs without the ticket.

    ``file`` is the identity of the database: a ticket of another engine on the same file counts.
    Raises :class:`NestedWriteError`.
    """
    found = _outer(queue, file)
    if found is None:
        return True
    outer_queue, holder = found
    outer: Owner = holder.owner
    if outer is transaction or outer.running:
        return True
    if not outer.locked_by_driver and outer_queue.take_away(holder):
        return True
    if outer.ticket is not holder:
        return True  # it was abandoned: the ticket passes on when SQLite has rolled it back
    if not holder.held or outer.task is not asyncio.current_task():
        return True  # the holder started this task, and may continue at any moment
    if reads:
        return False
    raise NestedWriteError(
        "This task would wait for itself: its first transaction has uncommitted writes (last "
        f"statement: {shorten(outer.last_statement)!r}) and it now writes in a second transaction "
        f"({shorten(transaction.last_statement)!r}). Commit the first transaction before, or use "
        "one session for both."
    )


def _outer(queue: TicketQueue, file: Any) -> tuple[TicketQueue, Ticket] | None:
    """The ticket that this task holds, or the task that started it, with its queue."""
    holder = queue.holder
    if holder is not None and holder.owner.task is asyncio.current_task():
        return queue, holder
    held = held_here.get()
    ticket = None if held is None else held.ticket()
    if held is None or ticket is None or not ticket.held:
        return None
    outer = held.queue()
    if outer is not None and (outer is queue or (file is not None and held.file == file)):
        return outer, ticket
    return None
