"""Nesting: a task that has a transaction open and would wait for itself in a second one.

What it has only read is suspended in favour of the second one. What it has written is in the way
for good: then a read goes to a snapshot, and a write is an error at once. The two may belong to two
engines on one file, where the second one would wait for the turn of the first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qsession.errors import NestedWriteError
from qsession.sqlite.lease import WriterLease
from qsession.sqlite.place import held_here
from qsession.sqlite.queue.holder import shorten

if TYPE_CHECKING:
    from qsession.sqlite.driver.physical import DriverConnection
    from qsession.sqlite.place import Place
    from qsession.waiting.ticket import Ticket


def settle(holder: Ticket | None, transaction: Place, ticket: Ticket) -> bool | None:
    """Settle the case that the asking task waits for itself, within one engine.

    True: ``ticket`` inherits that of ``holder``. False: read instead. None: it does not. Raises
    :class:`NestedWriteError`.
    """
    outer: Place | None = holder.owner if holder is not None else None
    if outer is None or outer is transaction or outer.task is not asyncio.current_task():
        return None
    if outer.lease is None:
        return None  # it was abandoned, and is being rolled back: that needs no help
    if outer.suspendable():
        outer.suspend(heir=ticket)
        return True
    if transaction.may_read_instead:
        return False
    raise _error(outer, transaction)


def settle_between_engines(transaction: Place, driver: DriverConnection) -> bool:
    """The same where the other transaction belongs to another engine on the file of ``driver``.

    False: read instead. True: ask for the turn. Raises :class:`NestedWriteError`.
    """
    found = held_here.get()
    outer = None if found is None else found()
    if outer is None or outer.writer.queue is transaction.writer.queue:
        return True
    if outer.task is not asyncio.current_task() or not isinstance(outer.lease, WriterLease):
        return True
    if driver.identity is None or outer.lease.driver.identity != driver.identity:
        return True
    if outer.suspendable():
        outer.suspend()
        return True
    if transaction.may_read_instead:
        return False
    raise _error(outer, transaction)


def _error(outer: Place, inner: Place) -> NestedWriteError:
    why = "uncommitted writes" if outer.wrote else "an open stream, or too much to be run again"
    return NestedWriteError(
        f"This task would wait for itself: it holds the write ticket with {why} "
        f"(the last statement there: {shorten(outer.last_statement)!r}) and now writes in a "
        f"second transaction ({shorten(inner.last_statement)!r}). Commit the first one "
        "before, or use one session for both."
    )
