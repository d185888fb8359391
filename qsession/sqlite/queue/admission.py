"""Admission: which transactions are at work, and an end to new ones when an engine is drained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qsession.errors import EngineDraining
from qsession.sqlite.processes.owners import shorten
from qsession.waiting.handoff import Serial, Waiter


class Admission:
    """The transactions of one pool, from their first statement to their end.

    Any thread may enter and leave. Nobody is missed: who enters is on the list before it looks
    whether the door is shut, and who shuts the door does so before it looks at the list.
    """

    def __init__(self) -> None:
        self._inside: dict[Any, None] = {}
        self.is_shut = False
        """Whether new ones are refused."""
        self._drains: list[Waiter] = []
        self._serial = Serial()

    def enter(self, transaction: Any) -> None:
        """Begin, or go on. Raises :class:`EngineDraining` for one that is new."""
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
        """End; no effect on one that is not inside."""
        self._inside.pop(transaction, None)
        if self.is_shut and not self._inside:
            self._serial.serve(self._wake, None)

    def hand_over(self, transaction: Any, other: Any) -> None:
        """Let ``other`` go on in the place of one that is at work, also when the door is shut."""
        self._inside[other] = None
        self.leave(transaction)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._inside))

    @property
    def inside(self) -> int:
        """How many are at work."""
        return len(self._inside)

    async def drain(self, timeout: float | None) -> bool:
        """Shut the door and wait until all have left: False after ``timeout`` seconds.

        Cancelled, or out of time: the door stays shut.
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
        """Out of time, or cancelled: it may stay on the list, for the door stays shut."""
        waiter.wake()
