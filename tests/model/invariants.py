"""What has to be so whenever nothing runs, whatever the transactions do."""

from __future__ import annotations

from typing import Any

from qsession.sqlite.transaction.decide import State


class Broken(AssertionError):
    """An invariant does not hold."""


def check(engine: Any) -> None:
    """Raise :class:`Broken`. Between two steps of the simulation."""
    pool = engine.pool
    queue = pool.write_queue.queue
    if queue.holder is None and queue.waiting:
        raise Broken(f"nobody holds the ticket, and {queue.waiting} wait")
    if queue.holder is not None and not queue.holder.held:
        raise Broken(f"the holder does not hold it: {queue.holder}")
    for transaction in pool.admission:
        work = transaction.work
        if transaction.running:
            continue
        if work.state is State.LOCKED:
            ticket, kept = work.ticket, transaction._kept
            if ticket is None and kept.lent:
                continue  # written on the driver's connection: SQLite's lock alone is there
            if ticket is None or not (ticket.held and ticket.claimed and queue.holder is ticket):
                raise Broken(
                    f"{work} has written, and its ticket is {ticket}; holder {queue.holder}"
                )
            if work.lease is None:
                raise Broken(f"{work} has no connection")
            if work.log.entries:
                raise Broken(f"{work} has written, and keeps a log")
        if work.state is State.SNAPSHOT and work.lease is None:
            raise Broken(f"{work} has no connection")
    for waiter in queue.waiters():
        work = getattr(waiter.owner, "work", None)
        # The rest of a stream is fetched before its connection is given back. A transaction stays
        # on its connection if it gave up the ticket to wait for one: the reserve was kept.
        lease = None if work is None or work.stays else work.lease
        if lease is not None and not lease.streams and waiter.owner._kept.lease is None:
            raise Broken(f"{work} waits for the ticket, and has a connection")
    most = pool.size() + pool._max_overflow + 1
    stats = pool.stats()
    if stats.size > most:
        raise Broken(f"{stats.size} connections are open, and at most {most} may be")
