"""Admission: the open transactions, and the refusal of new ones when an engine is drained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qsession.errors import EngineDraining
from qsession.sqlite.processes.owners import shorten
from qsession.waiting.handoff import Serial, Waiter


class Admission:
    """The transactions of one pool, from their first statement to their end.

    Any thread may enter and leave. No transaction is missed: it joins the list before it checks
    ``is_shut``, and ``drain`` sets ``is_shut`` before it checks the list.
    """

    def __init__(self) -> None:
        self._inside: dict[Any, None] = {}
        self.is_shut = False
        """Whether new transactions are refused."""
        self._drains: list[Waiter] = []
        self._serial = Serial()

    def enter(self, transaction: Any) -> None:
        """Begin or continue. After ``drain``, a new transaction gets :class:`EngineDraining`."""
        if transaction in self._inside:
            return
        self._inside[transaction] = None
        if self.is_shut:
            self.leave(transaction)
            raise EngineDraining(
                f"The engine is being drained and accepts no new transactions; "
                f"{shorten(transaction.last_statement)!r} was not run."
            )

    def leave(self, transaction: Any) -> None:
        """End; no effect on a transaction that is not inside."""
        self._inside.pop(transaction, None)
        if self.is_shut and not self._inside:
            self._serial.serve(self._wake, None)

    def hand_over(self, transaction: Any, other: Any) -> None:
        """Replace an open transaction with ``other``, even after ``drain``."""
        self._inside[other] = None
        self.leave(transaction)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._inside))

    @property
    def inside(self) -> int:
        """The number of open transactions."""
        return len(self._inside)

    async def drain(self, timeout: float | None) -> bool:
        """Refuse new transactions and wait until all have left. False after ``timeout`` seconds.

        After a timeout or a cancellation new transactions are still refused.
        """
        self.is_shut = True
        waiter = Waiter()
        future = waiter.prepare()
        self._serial.serve(self._drains.append, waiter)
        if not self._inside:
            self._serial.serve(self._wake, None)
        await waiter.wait(future, timeout, self._serial, self._give_up, self._give_up)
        return not self._inside

    def _wake(self, _: None) -> None:
        while self._drains:
            self._drains.pop().wake()

    def _give_up(self, waiter: Waiter) -> None:
        """After a timeout or a cancellation. It may stay on the list, as new ones stay refused."""
        waiter.wake()
