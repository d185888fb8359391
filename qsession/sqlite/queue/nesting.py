"""Nesting: a task that has a transaction open, and would wait for itself in a second one.

If the first transaction has only read, its ticket is taken away. If it has written, a SELECT in the
second one runs without the ticket, and a write raises an error at once. The two transactions may
belong to two engines on one file, where the second one would wait for the turn of the first. A call
of a synchronous engine blocks the event loop of its thread, so it must not wait for a task there.
"""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar
from typing import Any, Protocol

from qsession.errors import NestedWriteError
from qsession.sqlite.processes.owners import shorten
from qsession.sqlite.processes.turn import FileTurn
from qsession.sqlite.queue.owner import Owner
from qsession.waiting.callers import (
    ThreadCaller,
    current_call,
    current_caller,
    name_of,
    outwards,
)
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


class Queue(Protocol):
    """The queue of an engine."""

    queue: TicketQueue
    turn: FileTurn
    identity: Any


_queues: set[weakref.ref[Queue]] = set()
"""Any thread may use it, since adding and copying are atomic."""


def note(queue: Queue) -> None:
    """Register the queue of an engine, which may have open transactions in any loop."""
    _queues.add(weakref.ref(queue, _queues.discard))


def neighbours(queue: TicketQueue, file: Any) -> list[Queue]:
    """The queues of the other engines of this process on the same file. From any thread."""
    found = [each() for each in list(_queues)]
    return [
        each
        for each in found
        if each is not None and each.queue is not queue and file and each.identity == file
    ]


def settle(queue: TicketQueue, file: Any, transaction: Owner, reads: bool) -> bool:
    """Handle a task that would wait for itself. False: its SELECT runs without the ticket.

    ``file`` is the identity of the database: a ticket of another engine on the same file counts.
    Raises :class:`NestedWriteError`.
    """
    call = current_call()
    stopped = None if call is None else call.stopped
    found = _outer(queue, file) or _standing(queue, file, stopped)
    if found is None:
        return True
    outer_queue, holder = found
    outer: Owner = holder.owner
    stands = stopped is not None and _belongs_to(outer, stopped)
    if outer is transaction or (outer.running and not stands):
        return True
    if not outer.locked_by_driver and outer_queue.take_away(holder):
        return True
    if outer.ticket is not holder:
        return True  # it was abandoned: the ticket passes on when SQLite has rolled it back
    if not holder.held or not (stands or outer.task is current_caller()):
        return True  # the holder started this task, and may continue at any moment
    if reads:
        return False
    raise NestedWriteError(_text(outer, transaction))


def _text(outer: Owner, transaction: Owner) -> str:
    caller = current_caller()
    what = "task" if isinstance(caller, asyncio.Task) else "thread"
    there = f"uncommitted writes (last statement: {shorten(outer.last_statement)!r})"
    here = f"now writes in a second transaction ({shorten(transaction.last_statement)!r})"
    if outer.task is caller:
        return (
            f"This {what} would wait for itself: its first transaction has {there} and it {here}. "
            "Commit the first transaction before you write in the second, or use one session for "
            "both."
        )
    return (
        f"This {what} would wait for ever: a transaction of {name_of(outer.task)} has {there}, and "
        f"this call, which {here}, blocks the event loop of that task. Call the synchronous engine "
        "in a separate thread, for example with 'await asyncio.to_thread(...)'."
    )


def _outer(queue: TicketQueue, file: Any) -> tuple[TicketQueue, Ticket] | None:
    """The ticket that this task holds, or the task that started it, with its queue."""
    holder = queue.holder
    if holder is not None and holder.owner.task is current_caller() and _stands_here(holder.owner):
        return queue, holder
    held = held_here.get()
    ticket = None if held is None else held.ticket()
    if held is None or ticket is None or not (ticket.held and _stands_here(ticket.owner)):
        return None
    outer = held.queue()
    if outer is not None and (outer is queue or (file is not None and held.file == file)):
        return outer, ticket
    return None


def _stands_here(owner: Owner) -> bool:
    """Whether the code that has begun a transaction waits for the present call.

    Of a task that is known. A thread of a pool runs parts of many requests, one after the other:
    another one may end the transaction that one part has begun. So it counts whether functions
    that had called then have not returned yet.
    """
    call = current_call()
    if not isinstance(owner.task, ThreadCaller):
        return True
    return call is not None and any(frame in owner.stack for frame in outwards(call.frame))


def _standing(
    queue: TicketQueue, file: Any, stopped: asyncio.AbstractEventLoop | None
) -> tuple[TicketQueue, Ticket] | None:
    """The held ticket of a task whose loop this call blocks."""
    if stopped is None:
        return None
    for each in (queue, *(other.queue for other in neighbours(queue, file))):
        holder = each.holder
        if holder is not None and _belongs_to(holder.owner, stopped):
            return each, holder
    return None


def _belongs_to(owner: Owner, loop: asyncio.AbstractEventLoop) -> bool:
    task = owner.task
    return owner.loop is loop or (isinstance(task, asyncio.Task) and task.get_loop() is loop)
