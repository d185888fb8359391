"""HoldLimit: ends a transaction that has held the ticket for longer than ``max_hold``."""

from __future__ import annotations

import asyncio

from qsession.errors import HoldTimeout
from qsession.sqlite.queue.holder import describe
from qsession.waiting.ticket import Ticket

LOOK_AGAIN = 0.005
"""Seconds between two looks whether it is idle."""


class HoldLimit:
    """The time for which one ticket may be held. It runs in the loop of its transaction."""

    def __init__(self, ticket: Ticket, seconds: float) -> None:
        self._ticket, self._seconds = ticket, seconds
        self.timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        """Roll the transaction back as soon as it is idle."""
        ticket, owner = self._ticket, self._ticket.owner
        if owner.running:
            self.timer = asyncio.get_running_loop().call_later(LOOK_AGAIN, self._expire)
        elif ticket.held:
            holder = describe(ticket)
            failure = HoldTimeout(
                f"The transaction was rolled back because it held the write ticket longer than "
                f"max_hold={self._seconds:g} s; its last statement was {owner.last_statement!r}. "
                f"Nothing was written. At that time, {holder.task} was at {holder.where}."
                f"{holder.traceback}"
            )
            owner.abandon(failure)
