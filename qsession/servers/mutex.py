"""Mutex: a lock between tasks of any event loops."""

from __future__ import annotations

from typing import Any

from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only

from qsession.waiting.ticket import Ticket, TicketQueue


class Mutex:
    """A context manager, in greenlets. First come, first served. A cancelled task gives up."""

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


def serve_all_loops(pool: Pool, mutex: Mutex) -> None:
    """Allow several loops to open the first connections of a pool at the same time.

    SQLAlchemy runs "connect" listeners for the first connection under an ``asyncio.Lock``. Such a
    lock belongs to one loop: a task of another loop that waits for it is not woken, or fails. Pools
    with one dialect share a mutex: the first connection of all initializes the dialect.
    """
    for name in ("connect", "first_connect"):
        listeners: Any = getattr(pool.dispatch, name).for_modify(pool.dispatch)
        listeners._exec_once_mutex = mutex
