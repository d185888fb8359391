"""Mutex: what one task does while others wait for it, whatever loops they are in."""

from __future__ import annotations

from typing import Any

from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only

from qsession.waiting.ticket import Ticket, TicketQueue


class Mutex:
    """A context manager, in greenlets: first come, first served. Cancelled, one leaves the line."""

    def __init__(self) -> None:
        self._queue = TicketQueue()

    def __enter__(self) -> None:
        ticket = Ticket(self)
        self._queue.take(ticket)
        if self._queue.holder is not ticket:
            await_only(self._queue.wait(ticket, None))

    def __exit__(self, *_: object) -> None:
        holder = self._queue.holder
        assert holder is not None
        self._queue.release(holder)


def serve_all_loops(pool: Pool) -> None:
    """Let the first connections of a pool be opened in several loops at once.

    SQLAlchemy runs "connect" listeners, its own among them, for one connection first, behind an
    ``asyncio.Lock``. That belongs to one loop: a task of another one that waits for it is not woken
    up, or fails.
    """
    for name in ("connect", "first_connect"):
        listeners: Any = getattr(pool.dispatch, name).for_modify(pool.dispatch)
        listeners._exec_once_mutex = Mutex()
